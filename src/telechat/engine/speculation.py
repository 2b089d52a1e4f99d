"""Guesses for the next tokens of requests, which the model checks all at once.

A guess never changes an answer: the sampler draws each token as it would have drawn it anyway, and a guess
that equals it has only saved a step. Here is what every source of guesses has in common, and the source that
needs no model: what followed the same words earlier in the text. Knows nothing of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from telechat.engine.request import Request
from telechat.engine.work import Work

# How many of the last tokens must have stood together before; the longer run is looked for first.
_RUN_LENGTHS = (3, 2)


class Proposer(Protocol):
    """A source of guesses. The engine calls the three methods in this order, once in every step."""

    def propose(self, requests: Sequence[Request]) -> None:
        """Before scheduling: give requests that are to get their next token their `draft_token_ids`.

        Who guesses later, in `fill`, puts zeros there, so that room is made for as many guesses.
        """
        ...

    def fill(self, works: Sequence[Work]) -> None:
        """Before the model computes `works`: what zeros stand for must now be known."""
        ...

    def follow(self, works: Sequence[Work]) -> None:
        """After the model has computed `works`, before their tokens are handed out."""
        ...


def allowed_drafts(request: Request, drafts: list[int]) -> list[int]:
    """Drafts as far as they can be the answer: room and grammar permitting."""
    drafts = drafts[: max(request.max_new_tokens - len(request.token_ids) - 1, 0)]
    if request.grammar is not None and drafts:
        request.grammar.catch_up(request.token_ids)
        drafts = drafts[: request.grammar.num_allowed(drafts)]
    return drafts


class PromptLookup:
    """Guesses that a text goes on as it did before, where its last tokens stood together earlier.

    Args:
        num_draft_tokens: most guesses for one request in a step.
    """

    def __init__(self, num_draft_tokens: int) -> None:
        self._num_draft_tokens = num_draft_tokens
        self._texts: WeakKeyDictionary[Request, _IndexedText] = WeakKeyDictionary()

    def propose(self, requests: Sequence[Request]) -> None:
        """Look up the last tokens of each request in its own text."""
        for request in requests:
            text = self._texts.get(request)
            if text is None:
                text = self._texts[request] = _IndexedText(request.prompt_token_ids)
            text.catch_up(request.token_ids)
            request.draft_token_ids = allowed_drafts(request, text.continuation(self._num_draft_tokens))

    def fill(self, works: Sequence[Work]) -> None:
        """Nothing is left open."""

    def follow(self, works: Sequence[Work]) -> None:
        """Nothing to keep in step."""


class _IndexedText:
    """Prompt and answer, with the places where each short run of tokens last ended."""

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._num_answer_tokens = 0
        # Run -> position behind it.
        self._ends: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in _RUN_LENGTHS)
        self._extend(prompt_token_ids)

    def catch_up(self, answer_token_ids: Sequence[int]) -> None:
        """Take in what the answer has gained; it only ever grows."""
        self._extend(answer_token_ids[self._num_answer_tokens :])
        self._num_answer_tokens = len(answer_token_ids)

    def _extend(self, token_ids: Sequence[int]) -> None:
        ids = self._ids
        for token_id in token_ids:
            # A run is entered when something follows it, so that the last one is never its own predecessor.
            for length, ends in zip(_RUN_LENGTHS, self._ends, strict=True):
                if len(ids) >= length:
                    ends[tuple(ids[-length:])] = len(ids)
            ids.append(token_id)

    def continuation(self, most: int) -> list[int]:
        """What followed the last tokens where they stood before; empty where they did not."""
        ids = self._ids
        for length, ends in zip(_RUN_LENGTHS, self._ends, strict=True):
            start = ends.get(tuple(ids[-length:]))
            if start is not None:
                period = len(ids) - start
                # What reaches the end of the text goes on with its own beginning: it repeats.
                return [ids[start + offset % period] for offset in range(most)]
        return []
