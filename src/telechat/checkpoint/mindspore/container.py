"""MindSpore's `.ckpt` files, read and written: names, dtypes, shapes, and where the bytes lie.

A file is one protobuf message of values; a tensor above 512 MiB is several values of one name. It may end
with a CRC, which is checked when the file is opened. Only headers are read here; contents are streamed.
Knows nothing of what the names mean.
"""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from telechat.checkpoint.formats.file_tensor import FileTensor
from telechat.checkpoint.formats.lazy import LazyTensor
from telechat.checkpoint.formats.streaming import Piece
from telechat.checkpoint.formats.writing import FilePlan
from telechat.checkpoint.headers import refuse_pointer
from telechat.checkpoint.mindspore.wire import (
    Data,
    Field,
    WireError,
    bytes_field,
    bytes_header,
    fields,
    integer_field,
    integers,
)
from telechat.errors import CheckpointError

SUFFIX = ".ckpt"
SLICE_BYTES = 512 << 20
DTYPES: dict[str, torch.dtype] = {
    "Int8": torch.int8,
    "UInt8": torch.uint8,
    "Int16": torch.int16,
    "UInt16": torch.uint16,
    "Int32": torch.int32,
    "UInt32": torch.uint32,
    "Int64": torch.int64,
    "UInt64": torch.uint64,
    "Float16": torch.float16,
    "Float32": torch.float32,
    "Float64": torch.float64,
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
}
TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Held as bytes: text in UTF-32 and four-bit integers have no dtype in torch.
_RAW = ("str", "Int4")
_CRC_MARK = b"crc_num"
_CRC_BYTES = len(_CRC_MARK) + 10
_ENCRYPTED = (b"\x7f\x3a\x5e\xd8", b"\xd8\x5e\x3a\x7f")
_AGAIN = "Copy or download it again."


@dataclass(frozen=True)
class Value:
    """One named value of a file.

    Attributes:
        tensor: its content; bytes in one dimension where torch has no such dtype.
        kind: dtype in the file's spelling.
        dims: shape as the file states it; (0,) for a text, () for a single number.
    """

    tensor: LazyTensor
    kind: str
    dims: tuple[int, ...]

    @staticmethod
    def of(tensor: LazyTensor) -> Value:
        """A tensor as a value."""
        return Value(tensor, TYPE_NAMES[tensor.dtype], tensor.shape)

    @property
    def is_tensor(self) -> bool:
        """Whether `tensor` has the dtype and shape that the file states."""
        return self.kind in DTYPES


@dataclass
class _Open:
    """A value whose pieces are being collected."""

    kind: str
    dims: tuple[int, ...]
    spans: list[tuple[int, int]]


def read_values(path: Path) -> dict[str, Value]:
    """All values of a `.ckpt` file by name, in file order.

    Raises:
        CheckpointError: no such file, truncated, damaged, encrypted, or its CRC does not fit.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            refuse_pointer(path, start)
            if not start:
                raise CheckpointError(f"{path.name} is empty.", hint=_AGAIN)
            if start[:4] in _ENCRYPTED or start[4:8] in _ENCRYPTED:
                raise CheckpointError(
                    f"{path.name} is encrypted.", hint="Decrypt it with MindSpore, which holds the key."
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _values(path, data, _checked_end(path, data))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error


def has_crc(path: Path) -> bool:
    """Whether a file ends with a CRC."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _CRC_BYTES))
        return file.read(len(_CRC_MARK)) == _CRC_MARK


def _checked_end(path: Path, data: mmap.mmap) -> int:
    """Where the values end, having checked the CRC behind them if there is one."""
    end = len(data) - _CRC_BYTES
    if end < 0 or data[end : end + len(_CRC_MARK)] != _CRC_MARK:
        return len(data)
    crc = 0
    for at in range(0, end, 1 << 22):
        crc = zlib.crc32(data[at : min(end, at + (1 << 22))], crc)
    stated = int.from_bytes(data[end + len(_CRC_MARK) :], "big")
    if crc != stated:
        raise CheckpointError(
            f"{path.name} is damaged: its CRC is {crc:08x}, it says {stated:08x}.", hint=_AGAIN
        )
    return end


def _values(path: Path, data: Data, end: int) -> dict[str, Value]:
    collected: dict[str, _Open] = {}
    last = ""
    try:
        for entry in fields(data, 0, end):
            if entry.number != 1 or not entry.is_bytes:
                raise WireError(f"field {entry.number} at the top", entry.start)
            name, kind, dims, span = _read_value(data, entry)
            if name not in collected:
                collected[name] = _Open(kind, dims, [])
            elif name != last or (kind, dims) != (collected[name].kind, collected[name].dims):
                raise CheckpointError(f"{path.name} holds {name} twice.")
            collected[name].spans.append(span)
            last = name
    except (WireError, UnicodeDecodeError) as error:
        where = f" behind {last}" if last else ""
        what = "is truncated or damaged" if last else "is no MindSpore checkpoint, or is truncated"
        raise CheckpointError(f"{path.name} {what}{where}: {error}.", hint=_AGAIN) from error
    return {name: _closed(path, name, value) for name, value in collected.items()}


def _read_value(data: Data, entry: Field) -> tuple[str, str, tuple[int, ...], tuple[int, int]]:
    """(name, dtype, dims, (offset, bytes)) of one value message."""
    name = kind = ""
    dims: list[int] = []
    span = (entry.start, 0)
    for part in fields(data, entry.start, entry.stop):
        if part.number == 1 and part.is_bytes:
            name = data[part.start : part.stop].decode("utf-8")
        elif part.number == 2 and part.is_bytes:
            for item in fields(data, part.start, part.stop):
                if item.number == 1:
                    dims += integers(data, item)
                elif item.number == 2 and item.is_bytes:
                    kind = data[item.start : item.stop].decode("ascii")
                elif item.number == 3 and item.is_bytes:
                    span = (item.start, item.stop - item.start)
        else:
            raise WireError(f"{name or 'a value'} is a hash table, not a tensor", entry.start)
    if not name or not kind:
        raise WireError("a value has no name or no dtype", entry.start)
    return name, kind, tuple(dims), span


def _closed(path: Path, name: str, value: _Open) -> Value:
    """Check a value's size against its shape."""
    num_bytes = sum(size for _, size in value.spans)
    if value.kind in _RAW:
        return Value(FileTensor(path, value.spans, (num_bytes,), torch.uint8), value.kind, value.dims)
    dtype = DTYPES.get(value.kind)
    if dtype is None:
        raise CheckpointError(f"{path.name}: {name} has the unknown dtype {value.kind}.")
    # Older files write a single number as dims [0] with a content.
    shape = () if value.dims == (0,) and num_bytes else value.dims
    expected = math.prod(shape) * dtype.itemsize
    if any(extent < 0 for extent in shape) or expected != num_bytes:
        raise CheckpointError(
            f"{path.name} is truncated or damaged: {name} {list(shape)} of {value.kind} needs {expected} "
            f"bytes and has {num_bytes}.",
            hint=_AGAIN,
        )
    return Value(FileTensor(path, value.spans, shape, dtype), value.kind, value.dims)


def plan_ckpt(
    name: str, values: Mapping[str, Value], *, with_crc: bool = False, slice_bytes: int = SLICE_BYTES
) -> FilePlan:
    """The plan of a `.ckpt` file, byte for byte as MindSpore writes it.

    Args:
        name: path of the file below the target.
        with_crc: end with a CRC, as MindSpore does when asked to.
        slice_bytes: most bytes of one value; larger tensors become several.
    """
    pieces = tuple(_piece(key, value, slice_bytes) for key, value in values.items())
    if not with_crc:
        return FilePlan(name, pieces)
    return FilePlan(name, pieces, lambda crc: _CRC_MARK + crc.to_bytes(10, "big"), _CRC_BYTES)


def _piece(name: str, value: Value, slice_bytes: int) -> Piece:
    num_bytes = value.tensor.num_bytes
    inserts = []
    for start in range(0, max(num_bytes, 1), slice_bytes):
        size = min(slice_bytes, num_bytes - start)
        header = b"".join(integer_field(1, extent) for extent in value.dims)
        header += bytes_field(2, value.kind.encode()) + bytes_header(3, size)
        message = bytes_field(1, name.encode()) + bytes_header(2, len(header) + size) + header
        inserts.append((start, bytes_header(1, len(message) + size) + message))
    return Piece(name, value.tensor, tuple(inserts))


def as_values(tensors: Mapping[str, LazyTensor]) -> dict[str, Value]:
    """Tensors as the values of a file."""
    return {name: Value.of(tensor) for name, tensor in tensors.items()}


def renamed(value: Value, tensor: LazyTensor) -> Value:
    """The value with another tensor in place of its own."""
    return replace(value, tensor=tensor, dims=tensor.shape) if value.is_tensor else value
