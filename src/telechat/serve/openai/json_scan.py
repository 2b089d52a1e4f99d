"""Follows a JSON object while its text arrives: where it ends, or that it cannot be JSON any more.

A decision falls with the first character that allows it, so it does not depend on how the text was cut.
Forgives raw line breaks in strings, as models write them. Builds no values.
"""

from __future__ import annotations

import re

# As deep as a request body may be, less what a call is wrapped in there: what we hand out must come back in.
MAX_DEPTH = 56

_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_SCALAR_PART = re.compile(r"[-+.0-9A-Za-z]+")
_PLAIN_PART = re.compile(r'[^"\\]+')
_SPACE = re.compile(r"[ \t\r\n]+")
_HEX = re.compile(r"[0-9a-fA-F]{4}")


class NotJson(Exception):
    """The text is no JSON object, however it goes on."""


class JsonScanner:
    """Scans one object. Feed it the same text again, grown; it goes on where it stopped.

    Args:
        start: where the object begins.
    """

    def __init__(self, start: int) -> None:
        self._position = start
        # What may come next: value, first value or end of an array, key, first key or end, colon, comma or
        # end; or what the text is in the middle of: key text, text, scalar.
        self._state = "begin"
        self._closers: list[str] = []
        self._scalar_start = 0

    def scan(self, text: str, *, is_whole: bool = False) -> int | None:
        """Where the object ends in `text` (the index behind it); None when that is still to come.

        Args:
            text: as before, and longer.
            is_whole: nothing will follow.

        Raises:
            NotJson: it cannot become one, or `is_whole` and it does not end.
        """
        while self._position < len(text):
            if self._state in ("text", "key text"):
                if not self._in_string(text):
                    break
            elif self._state == "scalar":
                if not self._in_scalar(text):
                    break
            elif (space := _SPACE.match(text, self._position)) and self._state != "begin":
                self._position = space.end()
            else:
                self._take(text[self._position])
                if not self._closers:
                    return self._position
        if is_whole:
            raise NotJson
        return None

    def _take(self, character: str) -> None:
        """One character outside of strings and scalars."""
        state = self._state
        if self._closers and character == self._closers[-1] and state in _MAY_CLOSE[character]:
            self._closers.pop()
            self._state = "comma or end"
        elif state == "colon" and character == ":":
            self._state = "value"
        elif state == "comma or end" and character == ",":
            self._state = "key" if self._closers[-1] == "}" else "value"
        elif state in ("key", "first key") and character == '"':
            self._state = "key text"
        elif state in ("begin", "value", "first value"):
            self._begin_value(character)
        else:
            raise NotJson
        if self._state != "scalar":
            self._position += 1

    def _begin_value(self, character: str) -> None:
        if character == "{":
            self._open("}", "first key")
        elif self._state == "begin":
            raise NotJson
        elif character == "[":
            self._open("]", "first value")
        elif character == '"':
            self._state = "text"
        elif character in "-0123456789tfn":
            self._state, self._scalar_start = "scalar", self._position
        else:
            raise NotJson

    def _open(self, closer: str, state: str) -> None:
        self._closers.append(closer)
        if len(self._closers) > MAX_DEPTH:
            raise NotJson
        self._state = state

    def _in_scalar(self, text: str) -> bool:
        """Go on in a number or word; False when the rest of the text is needed."""
        part = _SCALAR_PART.match(text, self._position)
        if part is not None:
            self._position = part.end()
        if self._position == len(text):
            return False
        if not _SCALAR.fullmatch(text, self._scalar_start, self._position):
            raise NotJson
        self._state = "comma or end"
        return True

    def _in_string(self, text: str) -> bool:
        """Go on in a string; False when the rest of the text is needed."""
        plain = _PLAIN_PART.match(text, self._position)
        if plain is not None:
            self._position = plain.end()
            return self._position < len(text)
        if text[self._position] == '"':
            self._state = "colon" if self._state == "key text" else "comma or end"
            self._position += 1
            return True
        length = 6 if text[self._position + 1 : self._position + 2] == "u" else 2
        escape = text[self._position : self._position + length]
        if len(escape) > 1 and escape[1] not in '"\\/bfnrtu':
            raise NotJson
        if len(escape) < length:
            # Decided with the first wrong character, not with the last.
            if any(character not in "0123456789abcdefABCDEF" for character in escape[2:]):
                raise NotJson
            return False
        if length == 6 and not _HEX.fullmatch(escape[2:]):
            raise NotJson
        self._position += length
        return True


_MAY_CLOSE = {
    "}": ("first key", "comma or end"),
    "]": ("first value", "comma or end"),
}
