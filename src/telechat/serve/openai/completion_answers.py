"""Answers of the plain completion route: whole, or in chunks, with log-probabilities in their old form."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from telechat.engine.outputs import TokenLogprob
from telechat.serve.openai.answers import Chunks, usage_json
from telechat.serve.openai.job import Piece, Usage
from telechat.serve.openai.token_text import LOWEST_LOGPROB, TokenText


class CompletionForm(Chunks):
    """An answer of the plain completion route.

    Args:
        model: name for clients.
        num_answers: answers to all prompts.
        tokens: single tokens as text.
        wants_usage: a stream ends with a chunk that counts tokens.
        echoed: for each answer its prompt, to be given back before it: (text, token ids). None: no echo.
        is_echo_only: the answers themselves were not asked for.
    """

    def __init__(
        self,
        model: str,
        num_answers: int,
        tokens: TokenText,
        *,
        wants_usage: bool,
        echoed: Sequence[tuple[str, Sequence[int]]] | None,
        is_echo_only: bool,
    ) -> None:
        super().__init__("cmpl", "text_completion", model, wants_usage=wants_usage)
        self._num_answers = num_answers
        self._echoed = echoed
        self._is_echo_only = is_echo_only
        self._logprobs = [OldLogprobs(tokens) for _ in range(num_answers)]
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    def opening(self) -> Iterator[bytes]:
        """Nothing comes before the first piece."""
        return iter(())

    def events(self, piece: Piece) -> Iterator[bytes]:
        """The chunks that carry `piece`."""
        for choice in self._choices(piece):
            yield self.chunk(choice)

    def closing(self, usage: Usage) -> Iterator[bytes]:
        """The end of a stream."""
        return super().closing(self._counted(usage))

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """The whole answer, of all its pieces."""
        joined: list[dict[str, Any]] = [{"index": index, "text": ""} for index in range(self._num_answers)]
        for piece in pieces:
            for choice in self._choices(piece):
                answer = joined[choice["index"]]
                answer["text"] += choice["text"]
                answer["logprobs"] = _joined(answer.get("logprobs"), choice["logprobs"])
                answer["finish_reason"] = choice["finish_reason"]
        return {
            **self.fields("text_completion"),
            "choices": joined,
            "usage": usage_json(self._counted(usage)),
        }

    def _counted(self, usage: Usage) -> Usage:
        """The token that the engine makes in any case is not counted where none was asked for."""
        return Usage(usage.prompt_tokens, 0, usage.cached_tokens) if self._is_echo_only else usage

    def _choices(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """What a piece adds to its answer, the prompt before it where that is wanted."""
        index = piece.index
        if index in self._ended:
            return
        logprobs = self._logprobs[index]
        if self._echoed is not None and index not in self._begun:
            text, token_ids = self._echoed[index]
            reported = piece.prompt_logprobs
            lines = None if reported is None else logprobs.lines(token_ids, reported)
            yield _choice(index, text, lines, None)
        self._begun.add(index)
        if self._is_echo_only:
            self._ended.add(index)
            yield _choice(index, "", None, "length")
        else:
            entries = piece.logprobs
            lines = None
            if entries is not None:
                lines = logprobs.lines([entry.token_id for entry in entries], entries)
            yield _choice(index, piece.text, lines, piece.finish_reason)


def _choice(
    index: int, text: str, logprobs: dict[str, list[Any]] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _joined(
    before: dict[str, list[Any]] | None, new: dict[str, list[Any]] | None
) -> dict[str, list[Any]] | None:
    if before is None or new is None:
        return new if before is None else before
    for name, values in new.items():
        before[name].extend(values)
    return before


class OldLogprobs:
    """Log-probabilities of one answer in four lists, as they were before chat.

    Args:
        tokens: single tokens as text.
    """

    def __init__(self, tokens: TokenText) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def lines(self, token_ids: Sequence[int], entries: Sequence[TokenLogprob | None]) -> dict[str, list[Any]]:
        """The next tokens.

        Args:
            entries: what is known of each; None for a prompt's first token, which nothing precedes.
        """
        offsets: list[int] = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(self._tokens.data(token_id)))
        return {
            "tokens": [self._tokens.text(token_id) for token_id in token_ids],
            "token_logprobs": [None if entry is None else _finite(entry.logprob) for entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in entries],
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens, and the chosen one whether or not it is among them."""
        pairs = (*entry.top, (entry.token_id, entry.logprob))
        return {self._tokens.text(token_id): _finite(logprob) for token_id, logprob in pairs}


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
