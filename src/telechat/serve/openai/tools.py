"""Tool calls in an answer: held back while they are written, handed out complete.

Text goes through as it comes, up to a `<tool_call>` tag; from there on everything waits for the end of the
answer (or of the first call, when only one is wanted). What turns out not to be a call comes back as text.
How a call is written is `telechat.tokenizer.tool_calls`' business.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from telechat.tokenizer.tool_calls import CLOSING_TAG, OPENING_TAG, parse_tool_calls

Calls = tuple[dict[str, Any], ...]


class ToolGate:
    """Separates the text of one answer from its tool calls.

    Args:
        only_first: end the answer after its first call.
    """

    def __init__(self, *, only_first: bool) -> None:
        self._only_first = only_first
        self._held = ""
        self._has_shown_text = False
        # Where to look for the end of a call; what lies before was looked at.
        self._searched = 0
        self.is_complete = False

    def push(self, text: str) -> str:
        """Take new text; returns what may be shown now. Sets `is_complete` when the answer may end here."""
        self._held += text
        opening = self._held.find(OPENING_TAG)
        if opening >= 0:
            cut = len(self._held[:opening].rstrip())
            self._look_for_end()
        else:
            cut = len(self._held) - _overlap(self._held, OPENING_TAG)
            cut = len(self._held[:cut].rstrip())
        return self._show(cut)

    def finish(self) -> tuple[str, Calls]:
        """The answer is over: the rest of its text, and its calls in OpenAI's shape."""
        held, self._held = self._held, ""
        text, calls = parse_tool_calls(held)
        written = _as_openai(calls[:1] if self._only_first else calls)
        if not written:
            return held, ()
        return ("\n" + text if text and self._has_shown_text else text), written

    def _show(self, cut: int) -> str:
        shown, self._held = self._held[:cut], self._held[cut:]
        self._searched = max(self._searched - cut, 0)
        self._has_shown_text = self._has_shown_text or bool(shown)
        return shown

    def _look_for_end(self) -> None:
        if not self._only_first:
            return
        found = self._held.find(CLOSING_TAG, self._searched)
        if found < 0:
            self._searched = max(len(self._held) - len(CLOSING_TAG), 0)
        else:
            self._searched = found + len(CLOSING_TAG)
            self.is_complete = bool(parse_tool_calls(self._held)[1])


def _as_openai(calls: Sequence[dict[str, Any]]) -> Calls:
    """Calls with their arguments as the text of a JSON object; empty when that cannot be written as JSON."""
    found = []
    for call in calls:
        try:
            arguments = json.dumps(call["arguments"], ensure_ascii=False, allow_nan=False)
            (call["name"] + arguments).encode("utf-8")
        except (ValueError, RecursionError):
            # NaN, half a surrogate pair, nesting without end: a model can write them, JSON clients cannot
            # read them.
            return ()
        function = {"name": call["name"], "arguments": arguments}
        found.append({"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function})
    return tuple(found)


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
