"""Tool calls in an answer, read while it is written.

Text goes through as it comes; from a `<tool_call>` tag on everything waits until the call is complete or
cannot become one. What turns out not to be a call (malformed, of a function that was not offered, with
arguments that are no object) comes out as text, character by character what the model wrote. Where the text
was cut makes no difference to what comes out.

White space between calls, and around them, is not part of the text; texts before and after a call are kept
apart by a line break.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from telechat.serve.openai.json_scan import JsonScanner, NotJson
from telechat.tokenizer.tool_calls import CLOSING_TAG, OPENING_TAG, parse_tool_calls

_FENCE = "```"
# What may stand between the tag and the object: white space and the first line of a code fence.
_FENCE_LINE = re.compile(r"\s*```[a-zA-Z]*[ \t]*\n\s*(?=\S)")
_FENCE_LINE_BEGUN = re.compile(r"\s*(?:`{1,2}|```[a-zA-Z]*[ \t]*(?:\n\s*)?)?")


@dataclass(frozen=True)
class TextPiece:
    """Text of the answer."""

    text: str


@dataclass(frozen=True)
class CallPiece:
    """A part of a call.

    Attributes:
        index: which of the answer's calls.
        arguments: next part of the text of its arguments, which joined are a JSON object.
        id, name: in the first part of a call only.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


ToolPiece = TextPiece | CallPiece


class ToolCallParser:
    """Separates the text of one answer from its tool calls.

    Args:
        names: of the functions that may be called, by their names without spaces around.
        only_first: the answer is over after its first call.

    Attributes:
        is_complete: nothing that follows would be looked at.
    """

    def __init__(self, names: Mapping[str, str], *, only_first: bool = False) -> None:
        self._names = names
        self._only_first = only_first
        self._held = ""
        self._is_whole = False
        self._step: Callable[[], bool] = self._read_text
        self._scanner: JsonScanner | None = None
        self._object_start = 0
        self._has_fence = False
        self._pieces: list[ToolPiece] = []
        self._has_text = self._follows_call = False
        self.num_calls = 0
        self.is_complete = False

    def push(self, text: str) -> list[ToolPiece]:
        """Take what the model wrote next; returns what is certain now."""
        self._held += text
        while not self.is_complete and self._step():
            pass
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[ToolPiece]:
        """The answer is over: what is left of it."""
        self._is_whole = True
        return self.push("")

    # Each step looks at the beginning of what is held; True when the next step can go on with the rest.

    def _read_text(self) -> bool:
        opening = self._held.find(OPENING_TAG)
        if opening >= 0:
            cut = opening
        elif self._is_whole:
            cut = len(self._held)
        else:
            cut = len(self._held) - _overlap(self._held, OPENING_TAG)
        # White space before a call is not part of the text, so it waits as well.
        text = self._held[:cut]
        shown = text if self._is_whole and opening < 0 else text.rstrip()
        self._show(shown)
        self._held = self._held[len(shown) :]
        if opening >= 0:
            self._scanner = None
            self._step = self._read_call
        return opening >= 0

    def _read_call(self) -> bool:
        start = self._held.index(OPENING_TAG) + len(OPENING_TAG)
        try:
            end = self._find_object(start)
            if end is None:
                return False
            name, arguments = self._as_call(self._held[self._object_start : end])
        except NotJson:
            # The tag is text; behind it there may be another one.
            self._show(self._held[:start])
            self._held = self._held[start:]
            self._step = self._read_text
            return True
        self._pieces += [
            CallPiece(self.num_calls, id=f"call_{secrets.token_hex(12)}", name=name),
            CallPiece(self.num_calls, arguments),
        ]
        self.num_calls += 1
        self._follows_call = True
        self._has_fence = self._held[start : self._object_start].strip() != ""
        self._held = self._held[end:]
        self.is_complete = self._only_first
        self._step = self._skip_end
        return True

    def _find_object(self, start: int) -> int | None:
        """Where the object behind the tag ends; None when more text is needed."""
        if self._scanner is None:
            fence = _FENCE_LINE.match(self._held, start)
            self._object_start = fence.end() if fence else start + _num_spaces(self._held, start)
            if self._held[self._object_start : self._object_start + 1] != "{":
                if not self._is_whole and _FENCE_LINE_BEGUN.fullmatch(self._held, start):
                    return None
                raise NotJson
            self._scanner = JsonScanner(self._object_start)
        return self._scanner.scan(self._held, is_whole=self._is_whole)

    def _as_call(self, text: str) -> tuple[str, str]:
        """(name, arguments as the text of a JSON object); NotJson when it is no call that was offered."""
        _, calls = parse_tool_calls(OPENING_TAG + text)
        if not calls or calls[0]["name"] not in self._names:
            raise NotJson
        try:
            arguments = json.dumps(calls[0]["arguments"], ensure_ascii=False, allow_nan=False)
            arguments.encode("utf-8")
        except (ValueError, RecursionError) as error:
            # Numbers without end, half a surrogate pair: a model can write them, clients cannot read them.
            raise NotJson from error
        return self._names[calls[0]["name"]], arguments

    def _skip_end(self) -> bool:
        """Behind a call: the end of its code fence and its closing tag, each if it is there."""
        expected = ([_FENCE] if self._has_fence else []) + [CLOSING_TAG]
        for mark in expected:
            spaces = _num_spaces(self._held, 0)
            rest = self._held[spaces : spaces + len(mark)]
            if not self._is_whole and rest != mark and mark.startswith(rest):
                return False
            # At the very end, half a mark is one that was cut off.
            if mark.startswith(rest):
                self._held = self._held[spaces + len(rest) :]
                self._has_fence = False
        self._step = self._read_text
        return True

    def _show(self, text: str) -> None:
        if self._follows_call:
            text = text.lstrip()
            if text and self._has_text:
                text = "\n" + text
        if text:
            self._follows_call = False
            self._has_text = True
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, TextPiece):
                self._pieces[-1] = TextPiece(last.text + text)
            else:
                self._pieces.append(TextPiece(text))


def _num_spaces(text: str, start: int) -> int:
    return len(text) - start - len(text[start:].lstrip())


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
