"""Chat answers as OpenAI clients read them: whole, or in chunks.

Builds dictionaries from pieces of an answer; knows neither the engine nor how they are sent.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from telechat.engine.outputs import TokenLogprob
from telechat.serve import sse
from telechat.serve.errors import ApiError
from telechat.serve.openai.job import Piece, Usage
from telechat.serve.openai.token_text import TokenText
from telechat.serve.openai.tool_parser import CallPiece


def usage_json(usage: Usage) -> dict[str, Any]:
    """OpenAI's counts; how much of the prompt was cached where the engine tells."""
    counts: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if usage.cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    return counts


class Chunks:
    """What the streams of chat and of plain completions have in common.

    Args:
        id_prefix: of the answer's id.
        kind: `object` of a chunk.
        model: name for clients.
        wants_usage: the stream ends with a chunk that counts tokens.
    """

    def __init__(self, id_prefix: str, kind: str, model: str, *, wants_usage: bool) -> None:
        self.id = f"{id_prefix}-{secrets.token_hex(16)}"
        self.created = int(time.time())
        self.model = model
        self._kind = kind
        self._wants_usage = wants_usage

    def fields(self, kind: str) -> dict[str, Any]:
        """The fields at the head of every answer and chunk."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """One chunk about one answer. Where usage was asked for every chunk has the key, the last a value."""
        extra = {"usage": None} if self._wants_usage else {}
        return sse.event({**self.fields(self._kind), "choices": [choice], **extra})

    def closing(self, usage: Usage) -> Iterator[bytes]:
        """The end of a stream."""
        if self._wants_usage:
            yield sse.event({**self.fields(self._kind), "choices": [], "usage": usage_json(usage)})
        yield sse.DONE

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """The end of a stream that cannot be completed: clients raise what this event holds."""
        yield sse.event(error.body())


class ChatForm(Chunks):
    """An answer of the chat route.

    Args:
        model: name for clients.
        num_choices: number of answers.
        tokens: single tokens as text.
        wants_usage: as in `Chunks`.
    """

    def __init__(self, model: str, num_choices: int, tokens: TokenText, *, wants_usage: bool) -> None:
        super().__init__("chatcmpl", "chat.completion.chunk", model, wants_usage=wants_usage)
        self._num_choices = num_choices
        self._tokens = tokens

    def opening(self) -> Iterator[bytes]:
        """Every answer begins with its role."""
        for index in range(self._num_choices):
            yield self._delta(index, {"role": "assistant", "content": ""})

    def events(self, piece: Piece) -> Iterator[bytes]:
        """The chunks that carry `piece`; a finish reason comes in one of its own, with an empty delta."""
        if piece.text or piece.logprobs:
            yield self._delta(piece.index, {"content": piece.text}, logprobs=self._logprobs(piece.logprobs))
        if piece.call is not None:
            yield self._delta(piece.index, {"tool_calls": [_call_delta(piece.call)]})
        if piece.finish_reason is not None:
            yield self._delta(piece.index, {}, finish_reason=piece.finish_reason)

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """The whole answer, of all its pieces."""
        choices = [
            self._choice(index, [piece for piece in pieces if piece.index == index])
            for index in range(self._num_choices)
        ]
        return {**self.fields("chat.completion"), "choices": choices, "usage": usage_json(usage)}

    def _delta(self, index: int, delta: dict[str, Any], **more: Any) -> bytes:
        return self.chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more})

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        calls = joined_calls([piece.call for piece in pieces if piece.call is not None])
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
        if calls:
            message["tool_calls"] = calls
        entries = [entry for piece in pieces for entry in piece.logprobs or ()]
        wanted = any(piece.logprobs is not None for piece in pieces)
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(entries) if wanted else None,
            "finish_reason": pieces[-1].finish_reason,
        }

    def _logprobs(self, entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        return None if entries is None else {"content": [self._tokens.entry(entry) for entry in entries]}


def _call_delta(part: CallPiece) -> dict[str, Any]:
    """A fragment of a call: the first carries id, type and name, later ones only arguments."""
    if part.name is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.index, "id": part.id, "type": "function", "function": function}


def joined_calls(parts: Sequence[CallPiece]) -> list[dict[str, Any]]:
    """Whole calls of their parts."""
    calls: list[dict[str, Any]] = []
    for part in parts:
        if part.name is not None:
            function = {"name": part.name, "arguments": part.arguments}
            calls.append({"id": part.id, "type": "function", "function": function})
        else:
            calls[part.index]["function"]["arguments"] += part.arguments
    return calls
