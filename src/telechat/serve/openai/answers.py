"""Answers as OpenAI clients read them: whole, or in chunks.

Builds dictionaries from pieces of an answer; knows neither the engine nor how they are sent.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from telechat.engine.outputs import TokenLogprob

# JSON has no infinity; a token that cannot occur gets what other servers give it.
_LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one of the answers gained.

    Attributes:
        index: which of the `n` answers.
        text: new text.
        tool_calls: complete calls, in OpenAI's shape.
        logprobs: of the new tokens; None when not asked for.
        finish_reason: `stop`, `length` or `tool_calls` in an answer's last piece.
    """

    index: int
    text: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: Sequence[TokenLogprob] | None = None
    finish_reason: str | None = None


@dataclass
class Usage:
    """Tokens spent on a request."""

    prompt_tokens: int
    completion_tokens: int = 0

    def as_json(self) -> dict[str, int]:
        """OpenAI's three counts."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True)
class Heading:
    """What all chunks of an answer have in common.

    Attributes:
        model: name for clients.
        decode: text of a list of token ids.
    """

    model: str
    decode: Callable[[list[int]], str]
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def _fields(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def chunk(self, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        """One chunk about one answer."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return {**self._fields("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The extra chunk at the end of a stream."""
        return {**self._fields("chat.completion.chunk"), "choices": [], "usage": usage.as_json()}

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks that carry `piece`; a finish reason comes in one of its own, with an empty delta."""
        found: list[dict[str, Any]] = []
        logprobs = None if piece.logprobs is None else logprobs_json(piece.logprobs, self.decode)
        if piece.text or (piece.logprobs and not piece.tool_calls):
            found.append(self.chunk(piece.index, {"content": piece.text}, logprobs=logprobs))
        for position, call in enumerate(piece.tool_calls):
            found.append(self.chunk(piece.index, {"tool_calls": [{"index": position, **call}]}))
        if piece.finish_reason is not None:
            found.append(self.chunk(piece.index, {}, finish_reason=piece.finish_reason))
        return found

    def completion(self, pieces: Sequence[Piece], num_choices: int, usage: Usage) -> dict[str, Any]:
        """The whole answer, of all its pieces."""
        choices = [
            self._choice(index, [piece for piece in pieces if piece.index == index])
            for index in range(num_choices)
        ]
        return {**self._fields("chat.completion"), "choices": choices, "usage": usage.as_json()}

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        calls = [call for piece in pieces for call in piece.tool_calls]
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
        if calls:
            message["tool_calls"] = calls
        entries = [entry for piece in pieces for entry in piece.logprobs or ()]
        wanted = any(piece.logprobs is not None for piece in pieces)
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs_json(entries, self.decode) if wanted else None,
            "finish_reason": pieces[-1].finish_reason,
        }


def logprobs_json(entries: Sequence[TokenLogprob], decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """Log-probabilities in OpenAI's shape."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        text = decode([token_id])
        # A token may be part of a character; its bytes are then not those of its text.
        data = None if "\ufffd" in text else list(text.encode("utf-8"))
        return {"token": text, "logprob": max(logprob, _LOWEST_LOGPROB), "bytes": data}

    content = [
        {**one(entry.token_id, entry.logprob), "top_logprobs": [one(*pair) for pair in entry.top]}
        for entry in entries
    ]
    return {"content": content}
