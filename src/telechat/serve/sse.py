"""Server-sent events as OpenAI clients expect them, byte for byte.

Each event is `data: {json}` and one empty line, with `\\n` only: some clients split on that. Knows nothing of
what is inside an event.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DONE = b"data: [DONE]\n\n"
# A comment, which clients pass over.
KEEP_ALIVE = b": keep-alive\n\n"

# `json.dumps` would make one for every event.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

# no-cache and X-Accel-Buffering keep proxies from collecting a stream before they pass it on.
HEADERS: Mapping[str, str] = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


def event(data: Mapping[str, Any]) -> bytes:
    """One event; JSON escapes line ends, so the data is one line whatever the text holds."""
    return b"data: " + _ENCODER.encode(data).encode("utf-8") + b"\n\n"


def named_event(name: str, data: Mapping[str, Any]) -> bytes:
    """One event that also carries its name, as clients of `/v1/responses` read them."""
    return b"event: " + name.encode("ascii") + b"\n" + event(data)
