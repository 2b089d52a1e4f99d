"""Server-sent events: parsing an API's stream, writing our own.

Lines end at "\\n" only (with an optional "\\r" before it): JSON may carry U+2028 and friends unescaped, which
`str.splitlines` would cut. Knows nothing of what the events mean.
"""

from __future__ import annotations

import json
from typing import Any

MAX_EVENT_BYTES = 4 * 1024 * 1024


class EventTooLong(ValueError):
    """An upstream event longer than `MAX_EVENT_BYTES`; the stream cannot be trusted any further."""


class EventParser:
    """Bytes in, the `data` of complete events out; comments and other fields are skipped."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[str]:
        """Events completed by `chunk`, in order; raises `EventTooLong`."""
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        if len(self._buffer) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        events: list[str] = []
        for line in (raw.removesuffix(b"\r") for raw in lines):
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data).decode("utf-8", errors="replace"))
                self._data = []
        return events


def format_event(payload: dict[str, Any] | str) -> bytes:
    """One event; a string goes out as it is (`[DONE]`), anything else as JSON on one line."""
    text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
    return f"data: {text}\n\n".encode("utf-8", errors="replace")
