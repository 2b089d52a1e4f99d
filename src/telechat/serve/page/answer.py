"""One streamed answer on its way through the page process: the API's events in, frames for the browser out.

A frame is a `chat.completion.chunk` whose text is everything since the frame before, with a `page` object
beside it that carries the rendered blocks. Frames come at most ten times a second, fewer when rendering is
dear or the tail is long. Knows nothing of HTTP; time is handed in.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from telechat.serve.page.rendering import StreamRenderer

MIN_FRAME_SECONDS = 0.1
MAX_RENDER_SHARE = 0.2
"""Share of one core that the rendering of a single answer may take."""
MAX_TAIL_BYTES_PER_SECOND = 400_000
"""The browser parses every tail again; more than this and it would stutter."""


@dataclass
class AnswerBuffer:
    """What the API sent and no frame has carried yet; the reader fills it, the writer empties it."""

    text: str = ""
    num_pieces: int = 0
    first_piece_at: float | None = None
    last_piece_at: float | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    is_done: bool = False
    is_closed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def take_event(self, data: str, now: float) -> None:
        """Note one event of the API; one that is not what an API sends becomes an error."""
        if data.strip() == "[DONE]":
            self.is_done = True
        else:
            try:
                self._take_chunk(json.loads(data), now)
            except (ValueError, TypeError, AttributeError, LookupError):
                self.error = _error(f"The model service sent an event that is not a chunk: {data[:80]!r}")
        self.changed.set()

    def close(self) -> None:
        """No more events will come, for whatever reason."""
        self.is_closed = True
        self.changed.set()
        self.closed.set()

    def take_text(self) -> str:
        """The text not sent yet; empties it."""
        text, self.text = self.text, ""
        self.changed.clear()
        return text

    def _take_chunk(self, chunk: dict[str, Any], now: float) -> None:
        if error := chunk.get("error"):
            self.error = error if isinstance(error, dict) else _error(str(error))
            return
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or []:
            if choice.get("index", 0) != 0:
                continue
            if piece := (choice.get("delta") or {}).get("content"):
                self.text += piece
                self.num_pieces += 1
                self.first_piece_at = self.first_piece_at or now
                self.last_piece_at = now
            self.finish_reason = choice.get("finish_reason") or self.finish_reason


def _error(message: str) -> dict[str, Any]:
    return {"message": message, "type": "server_error", "param": None, "code": "bad_upstream"}


class FrameWriter:
    """Turns the buffer into frames and says how long to wait before the next one."""

    def __init__(self, buffer: AnswerBuffer, started_at: float) -> None:
        self._buffer = buffer
        self._renderer = StreamRenderer()
        self._started_at = started_at
        self.pause_seconds = 0.0

    async def next_frame(self) -> dict[str, Any]:
        """Everything that arrived since the frame before; the last one once the buffer is closed."""
        buffer = self._buffer
        is_last = buffer.is_closed
        text = buffer.take_text()
        self._renderer.push(text)
        began = time.perf_counter()
        # In a thread, so that one long block does not hold up the other answers.
        update = await asyncio.to_thread(self._renderer.finish if is_last else self._renderer.update)
        render_seconds = time.perf_counter() - began
        self.pause_seconds = max(
            MIN_FRAME_SECONDS,
            render_seconds / MAX_RENDER_SHARE,
            3 * len(update.tail) / MAX_TAIL_BYTES_PER_SECOND,
        )
        page: dict[str, Any] = {"settled": update.settled, "tail": update.tail, **self._timing()}
        frame: dict[str, Any] = {
            "object": "chat.completion.chunk",
            "choices": [
                {
                    "index": 0,
                    "delta": {"content": text},
                    "finish_reason": buffer.finish_reason if is_last else None,
                }
            ],
            "page": page,
        }
        if is_last and buffer.usage:
            frame["usage"] = buffer.usage
        return frame

    def _timing(self) -> dict[str, Any]:
        buffer = self._buffer
        if buffer.first_piece_at is None or buffer.last_piece_at is None:
            return {"num_pieces": 0}
        return {
            "num_pieces": buffer.num_pieces,
            "first_piece_seconds": round(buffer.first_piece_at - self._started_at, 4),
            "writing_seconds": round(buffer.last_piece_at - buffer.first_piece_at, 4),
        }
