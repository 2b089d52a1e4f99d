"""Tool calls read back from generated text: `<tool_call>`, one JSON object, `</tool_call>`.

The object (name and arguments) is parsed where it stands instead of being cut out between tags, so a tag or a
code fence inside one of its strings does no harm. What is not a well-formed call stays text. Knows nothing of
which tools were offered.
"""

from __future__ import annotations

import json
import re
from typing import Any

OPENING_TAG = "<tool_call>"
CLOSING_TAG = "</tool_call>"

_DECODER = json.JSONDecoder(strict=False)  # models write raw line breaks into strings
_FENCE_START = re.compile(r"```[a-zA-Z]*[ \t]*\n\s*")
_FENCE_END = re.compile(r"\s*```")
_SPACE = re.compile(r"\s*")


def parse_tool_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Split an answer into its text and its tool calls.

    Args:
        text: the generated text, tags included.

    Returns:
        The text outside the calls (stripped; unchanged when there is no call), and the calls in order, each
        `{"name": str, "arguments": dict}`. Malformed calls, a truncated one included, remain in the text.
        Forgiven: a missing closing tag, a code fence around the object, arguments given as a string.
    """
    calls: list[dict[str, Any]] = []
    pieces: list[str] = []
    position = 0
    while (opening := text.find(OPENING_TAG, position)) != -1:
        pieces.append(text[position:opening])
        position = opening + len(OPENING_TAG)
        parsed = _parse_call(text, position)
        if parsed is None:
            pieces.append(OPENING_TAG)
            continue
        call, position = parsed
        calls.append(call)
    if not calls:
        return text, []
    pieces.append(text[position:])
    return "\n".join(piece.strip() for piece in _joined(pieces) if piece.strip()), calls


def _joined(pieces: list[str]) -> list[str]:
    """Pieces with each kept tag glued to the text around it, as it was written."""
    joined: list[str] = []
    glue = False
    for piece in pieces:
        if joined and (glue or piece == OPENING_TAG):
            joined[-1] += piece
        else:
            joined.append(piece)
        glue = piece == OPENING_TAG
    return joined


def _parse_call(text: str, position: int) -> tuple[dict[str, Any], int] | None:
    """The call that starts at `position` and where it ends, closing tag included; None when there is none."""
    position = _skip(_SPACE, text, position)
    fence = _FENCE_START.match(text, position)
    if fence:
        position = fence.end()
    try:
        value, position = _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):  # besides malformed: endless numbers, endless nesting
        return None
    call = _read_call(value)
    if call is None:
        return None
    if fence:
        position = _skip(_FENCE_END, text, position)
    end = _skip(_SPACE, text, position)
    return call, end + len(CLOSING_TAG) if text.startswith(CLOSING_TAG, end) else position


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _read_call(value: Any) -> dict[str, Any] | None:
    """`{"name", "arguments"}` of a parsed object, or None when it is no call."""
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        return None
    return {"name": name.strip(), "arguments": arguments}
