"""The protobuf wire format, as much of it as MindSpore's files use: integers and length-prefixed bytes.

Reads from a memory map without copying contents. Knows no message.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

VARINT, BYTES = 0, 2
_SIGN = 1 << 63
_MASK = (1 << 64) - 1
Data = bytes | mmap.mmap


class WireError(ValueError):
    """Bytes that are no protobuf message. `offset` is where."""

    def __init__(self, problem: str, offset: int) -> None:
        super().__init__(problem)
        self.offset = offset


class Field(NamedTuple):
    """One field: its number, and either an integer or where its bytes lie."""

    number: int
    value: int
    start: int
    stop: int

    @property
    def is_bytes(self) -> bool:
        """Whether `start` and `stop` hold."""
        return self.start >= 0


def read_varint(data: Data, at: int, stop: int) -> tuple[int, int]:
    """(value 0 .. 2^64-1, offset behind it)."""
    value = shift = 0
    begin = at
    while at < stop and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7
    raise WireError("a number is cut off or too long", begin)


def signed(value: int) -> int:
    """A 64-bit number read as two's complement."""
    return value - (1 << 64) if value >= _SIGN else value


def fields(data: Data, start: int, stop: int) -> Iterator[Field]:
    """The fields of a message between two offsets.

    Raises:
        WireError: cut off, or a field of another kind.
    """
    at = start
    while at < stop:
        begin = at
        key, at = read_varint(data, at, stop)
        number, kind = key >> 3, key & 7
        if number == 0 or kind not in (VARINT, BYTES):
            raise WireError(f"field {number} has kind {kind}", begin)
        value, at = read_varint(data, at, stop)
        if kind == VARINT:
            yield Field(number, value, -1, -1)
            continue
        if value > stop - at:
            raise WireError(f"field {number} announces {value} bytes, {stop - at} are left", begin)
        yield Field(number, 0, at, at + value)
        at += value


def integers(data: Data, field: Field) -> list[int]:
    """The numbers of a repeated integer field, packed or not; signed."""
    if not field.is_bytes:
        return [signed(field.value)]
    numbers, at = [], field.start
    while at < field.stop:
        value, at = read_varint(data, at, field.stop)
        numbers.append(signed(value))
    return numbers


def varint(value: int) -> bytes:
    """A number as it is written; negative ones take ten bytes."""
    value &= _MASK
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer_field(number: int, value: int) -> bytes:
    """A field with an integer."""
    return varint(number << 3 | VARINT) + varint(value)


def bytes_header(number: int, num_bytes: int) -> bytes:
    """What precedes the content of a field of bytes."""
    return varint(number << 3 | BYTES) + varint(num_bytes)


def bytes_field(number: int, content: bytes) -> bytes:
    """A field with bytes, a text or a message."""
    return bytes_header(number, len(content)) + content
