"""The GGUF container: metadata and tensors of a file, read, and the plan of one.

Knows the encoding of values and where tensors lie; knows no names and no quantisation.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from telechat.checkpoint.formats.file_tensor import FileTensor
from telechat.checkpoint.formats.lazy import LazyTensor
from telechat.checkpoint.formats.streaming import Piece
from telechat.checkpoint.formats.writing import FilePlan
from telechat.errors import CheckpointError

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_MAX_COUNT = 1 << 32


@dataclass(frozen=True)
class Encoding:
    """How a tensor type stores rows: `block` numbers in `block_bytes` bytes, or a plain dtype."""

    number: int
    name: str
    block: int
    block_bytes: int
    dtype: torch.dtype | None = None


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        Encoding(0, "F32", 1, 4, torch.float32),
        Encoding(1, "F16", 1, 2, torch.float16),
        Encoding(30, "BF16", 1, 2, torch.bfloat16),
        Encoding(8, "Q8_0", 32, 34),
        Encoding(2, "Q4_0", 32, 18),
    )
}
_BY_NUMBER = {encoding.number: encoding for encoding in ENCODINGS.values()}


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: its shape in numbers, and its content, bytes [rows, …] where it is quantised."""

    shape: tuple[int, ...]
    encoding: Encoding
    tensor: LazyTensor


@dataclass(frozen=True)
class GgufFile:
    """A file's metadata, and its tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def stored_shape(shape: Sequence[int], encoding: Encoding) -> tuple[int, ...]:
    """Shape of the content: numbers as they are, or the bytes of each row."""
    if encoding.dtype is not None:
        return tuple(shape)
    return (*shape[:-1], shape[-1] // encoding.block * encoding.block_bytes)


def plan_gguf(name: str, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> FilePlan:
    """The plan of a file. Metadata values are str, bool, int (32 bits), float, or lists of one of these."""
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [_text(key), *_typed(value)]
    at = 0
    for key, stored in tensors.items():
        extents = tuple(reversed(stored.shape))
        head += [_text(key), struct.pack("<I", len(extents)), struct.pack(f"<{len(extents)}Q", *extents)]
        head.append(struct.pack("<IQ", stored.encoding.number, at))
        at += stored.tensor.num_bytes + -stored.tensor.num_bytes % ALIGNMENT
    start = b"".join(head)
    pieces = [_bytes(start + b"\0" * (-len(start) % ALIGNMENT))]
    for key, stored in tensors.items():
        pieces.append(Piece(key, stored.tensor))
        padding = -stored.tensor.num_bytes % ALIGNMENT
        if padding:
            pieces.append(_bytes(b"\0" * padding))
    return FilePlan(name, tuple(pieces))


def _bytes(content: bytes) -> Piece:
    return Piece("", None, ((0, content),))


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _typed(value: Any) -> Iterator[bytes]:
    """A value preceded by its type."""
    if isinstance(value, list | tuple):
        kind = _type_of(value[0]) if value else _INT32
        kind = _INT32 if kind == _UINT32 else kind  # as llama.cpp wants the types of tokens
        yield struct.pack("<IIQ", _ARRAY, kind, len(value))
        yield from (_encoded(item, kind) for item in value)
    else:
        yield struct.pack("<I", _type_of(value))
        yield _encoded(value, _type_of(value))


def _type_of(value: Any) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _UINT32 if value >= 0 else _INT32
    return _FLOAT32 if isinstance(value, float) else _STRING


def _encoded(value: Any, kind: int) -> bytes:
    return _text(value) if kind == _STRING else struct.pack(_SCALARS[kind], value)


class _Reader:
    """Reads values from a memory map one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def unpack(self, form: str) -> Any:
        size = struct.calcsize(form)
        [value] = struct.unpack(form, self.data[self.at : self.at + size])
        self.at += size
        return value

    def count(self) -> int:
        value: int = self.unpack("<Q")
        if value > _MAX_COUNT:
            raise ValueError(f"it announces {value} entries")
        return value

    def text(self) -> str:
        size = self.count()
        content = self.data[self.at : self.at + size]
        self.at += size
        return content.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner = self.unpack("<I")
            return [self.value(inner) for _ in range(self.count())]
        return self.unpack(_SCALARS[kind])


def read_gguf(path: Path) -> GgufFile:
    """The metadata and tensors of a file.

    Raises:
        CheckpointError: damaged, or tensors in an encoding that is not read here.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != MAGIC:
                raise CheckpointError(f"{path.name} is no GGUF file.")
            return _parse(path, _Reader(data), len(data))
    except (ValueError, KeyError, struct.error) as error:
        raise CheckpointError(f"{path.name} is truncated or damaged: {error}.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error


def _parse(path: Path, reader: _Reader, num_bytes: int) -> GgufFile:
    reader.at = 4
    version = reader.unpack("<I")
    if version not in (2, VERSION):
        raise CheckpointError(f"{path.name} is GGUF version {version}; versions 2 and 3 are read.")
    num_tensors, num_values = reader.count(), reader.count()
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = reader.text()
        metadata[key] = reader.value(reader.unpack("<I"))
    infos = []
    for _ in range(num_tensors):
        name = reader.text()
        extents = [reader.count() for _ in range(reader.unpack("<I"))]
        infos.append((name, tuple(reversed(extents)), reader.unpack("<I"), reader.unpack("<Q")))
    alignment = int(metadata.get(_ALIGNMENT_KEY, ALIGNMENT))
    start = reader.at + -reader.at % alignment
    return GgufFile(metadata, {name: _stored(path, start, num_bytes, name, *rest) for name, *rest in infos})


def _stored(
    path: Path, start: int, num_bytes: int, name: str, shape: tuple[int, ...], kind: int, offset: int
) -> Stored:
    encoding = _BY_NUMBER.get(kind)
    if encoding is None:
        known = ", ".join(ENCODINGS)
        raise CheckpointError(f"{path.name}: {name} is stored as type {kind}; {known} are read.")
    extents, dtype = stored_shape(shape, encoding), encoding.dtype or torch.uint8
    size = math.prod(extents) * dtype.itemsize
    if start + offset + size > num_bytes:
        raise CheckpointError(f"{path.name} is truncated: {name} ends behind its end.")
    return Stored(shape, encoding, FileTensor(path, [(start + offset, size)], extents, dtype))
