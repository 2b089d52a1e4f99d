"""Answers of the responses route: one object of items, or events that build it up.

Every event has a name of its own and a running number; clients put the answer together from them and check
that they fit.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from telechat.serve.errors import ApiError
from telechat.serve.openai.job import Piece, Usage
from telechat.serve.openai.token_text import TokenText
from telechat.serve.openai.tool_parser import CallPiece
from telechat.serve.sse import named_event


class ResponseForm:
    """An answer of the responses route.

    Args:
        echoed: fields of the answer that repeat the request and the settings in use.
        tokens: single tokens as text.
    """

    def __init__(self, echoed: Mapping[str, Any], tokens: TokenText) -> None:
        self._tokens = tokens
        self._response: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(24)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **echoed,
        }
        self._number = 0
        self._finish_reason: str | None = None
        self._is_open = False

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed: what the events would have built."""
        for piece in pieces:
            for _ in self.events(piece):
                pass
        for _ in self.closing(usage):
            pass
        return self._response

    def opening(self) -> Iterator[bytes]:
        """The answer without its items."""
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)

    def events(self, piece: Piece) -> Iterator[bytes]:
        """The events that carry `piece`."""
        if piece.text or piece.logprobs:
            yield from self._text(piece)
        if piece.call is not None:
            yield from self._call(piece.call)
        if piece.finish_reason is not None:
            self._finish_reason = piece.finish_reason

    def closing(self, usage: Usage) -> Iterator[bytes]:
        """The end of the last item, and the whole answer."""
        if not self._output:
            yield from self._open_message()
        yield from self._end_item()
        is_complete = self._finish_reason != "length"
        self._response["status"] = "completed" if is_complete else "incomplete"
        if not is_complete:
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._response["usage"] = _usage_json(usage)
        yield self._event(f"response.{self._response['status']}", response=self._response)

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """The answer as far as it came, and the error in a form that clients raise."""
        code = error.code if error.code == "rate_limit_exceeded" else "server_error"
        self._response["status"] = "failed"
        self._response["error"] = {"code": code, "message": error.message}
        yield self._event("response.failed", response=self._response)
        fields = {"code": error.code, "message": error.message, "param": error.param}
        yield self._event("error", **fields, **error.body())

    @property
    def _output(self) -> list[dict[str, Any]]:
        output: list[dict[str, Any]] = self._response["output"]
        return output

    @property
    def _place(self) -> dict[str, Any]:
        """Where the item under way stands."""
        return {"output_index": len(self._output) - 1, "item_id": self._output[-1]["id"]}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return named_event(kind, data)

    def _text(self, piece: Piece) -> Iterator[bytes]:
        if not self._is_open or self._output[-1]["type"] != "message":
            yield from self._end_item()
            yield from self._open_message()
        part = self._output[-1]["content"][0]
        part["text"] += piece.text
        entries = [self._tokens.entry(entry) for entry in piece.logprobs or ()]
        part["logprobs"] += entries
        yield self._event(
            "response.output_text.delta",
            **self._place,
            content_index=0,
            delta=piece.text,
            logprobs=entries,
        )

    def _open_message(self) -> Iterator[bytes]:
        item: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(24)}",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        yield self._open_item(item)
        item["content"].append({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
        yield self._event(
            "response.content_part.added", **self._place, content_index=0, part=item["content"][0]
        )

    def _call(self, part: CallPiece) -> Iterator[bytes]:
        if part.name is not None:
            yield from self._end_item()
            yield self._open_item(
                {
                    "id": f"fc_{secrets.token_hex(24)}",
                    "type": "function_call",
                    "call_id": part.id,
                    "name": part.name,
                    "arguments": "",
                    "status": "in_progress",
                }
            )
        if part.arguments:
            self._output[-1]["arguments"] += part.arguments
            yield self._event("response.function_call_arguments.delta", **self._place, delta=part.arguments)

    def _open_item(self, item: dict[str, Any]) -> bytes:
        self._output.append(item)
        self._is_open = True
        index = len(self._output) - 1
        return self._event("response.output_item.added", output_index=index, item=item)

    def _end_item(self) -> Iterator[bytes]:
        if not self._is_open:
            return
        self._is_open = False
        item = self._output[-1]
        if item["type"] == "message":
            part = item["content"][0]
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._event("response.output_text.done", **self._place, content_index=0, **text)
            yield self._event("response.content_part.done", **self._place, content_index=0, part=part)
        else:
            arguments = item["arguments"]
            yield self._event("response.function_call_arguments.done", **self._place, arguments=arguments)
        # The last item of an answer that was cut off is itself incomplete.
        item["status"] = "incomplete" if self._finish_reason == "length" else "completed"
        index = len(self._output) - 1
        yield self._event("response.output_item.done", output_index=index, item=item)


def _usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0},
        "output_tokens": usage.completion_tokens,
        # These models write no reasoning apart from their answer.
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
