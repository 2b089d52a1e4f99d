"""The numbers and texts of a MindRecord row: a MessagePack map from column to value.

Reads what MindSpore writes there, which is a small part of MessagePack: one flat map of numbers and texts.
"""

from __future__ import annotations

import struct

Scalar = int | float | str | bool | None

_FIXED = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_TEXT_LENGTHS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_MAP_LENGTHS = {0xDE: ">H", 0xDF: ">I"}
_CONSTANTS: dict[int, Scalar] = {0xC0: None, 0xC2: False, 0xC3: True}


def read_scalars(content: bytes) -> dict[str, Scalar]:
    """The columns of a row.

    Raises:
        ValueError: no such map, or more than one flat map of numbers and texts.
    """
    reader = _Reader(content)
    first = int(reader.number(">B"))
    count = first & 0x0F if first & 0xF0 == 0x80 else int(reader.number(_MAP_LENGTHS.get(first, "")))
    columns: dict[str, Scalar] = {}
    for _ in range(count):
        name = reader.value()
        if not isinstance(name, str):
            raise ValueError(f"a column is called {name!r}")
        columns[name] = reader.value()
    return columns


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def number(self, form: str) -> float:
        """The next bytes by a form of `struct`; an empty form stands for a kind that is not read."""
        if not form:
            raise ValueError("a value that is neither a number nor a text")
        try:
            (value,) = struct.unpack_from(form, self._content, self._at)
        except struct.error as error:
            raise ValueError("it ends early") from error
        self._at += struct.calcsize(form)
        number: float = value
        return number

    def value(self) -> Scalar:
        kind = int(self.number(">B"))
        if kind < 0x80:
            return kind
        if kind >= 0xE0:
            return kind - 0x100
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind & 0xE0 == 0xA0 or kind in _TEXT_LENGTHS:
            size = kind & 0x1F if kind < 0xC0 else int(self.number(_TEXT_LENGTHS[kind]))
            text = self._content[self._at : self._at + size]
            if len(text) < size:
                raise ValueError("it ends early")
            self._at += size
            return text.decode("utf-8")
        return self.number(_FIXED.get(kind, ""))
