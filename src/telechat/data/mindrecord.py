"""Reads MindRecord files (version 3.0), without MindSpore.

A file is a JSON header, then pages of one size. A blob page holds rows end to end; a row holds its columns of
arrays and bytes in alphabetical order. Integers are stored in as few of 1, 2, 4 or 8 bytes as each of them
needs. A raw page holds the single numbers and texts of the same rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from telechat.data.mindrecord_scalars import Scalar, read_scalars
from telechat.errors import ConfigError

_NAME = re.compile(r"\.mindrecord\d*")
_LENGTH_BYTES = 8
_COUNT_BYTES = 4
_INTEGERS = {"int32": np.int32, "int64": np.int64}
_FLOATS = {"float32": np.float32, "float64": np.float64}
_WIDTHS = (1, 2, 4, 8)

Columns = dict[str, npt.NDArray[Any] | bytes | Scalar]


def is_mindrecord(path: Path) -> bool:
    """By its name: `X.mindrecord`, or `X.mindrecord0` for the first of several shards."""
    return _NAME.fullmatch(path.suffix) is not None


def read_mindrecord(path: Path) -> Iterator[Columns]:
    """The rows of a file and of the shards that follow it: arrays, bytes, numbers and texts by column.

    Raises:
        ConfigError: no such file, a damaged one, or a shard other than the first.
    """
    header = _read_header(path)
    if header["shard_id"] != 0:
        raise ConfigError(
            f"{path} is shard {header['shard_id']} of several.", hint=f"Name {header['shard_addresses'][0]}."
        )
    # A single file may have been renamed; several are found by the names they have in one another.
    others = [path.with_name(Path(name).name) for name in header["shard_addresses"][1:]]
    for shard in (path, *others):
        yield from _shard_rows(shard, _read_header(shard))


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            content = file.read(length) if length <= path.stat().st_size else b""
        header = json.loads(content)
        known = {"header_size", "page_size", "page", "schema", "shard_id", "shard_addresses"} <= header.keys()
    except OSError as error:
        raise ConfigError(f"Cannot read the training file {path}: {error.strerror or error}.") from error
    except (ValueError, AttributeError):
        known = False
    if not known:
        raise ConfigError(f"{path} is no MindRecord file, or it is damaged at its beginning.")
    return dict(header)


def _shard_rows(path: Path, header: dict[str, Any]) -> Iterator[Columns]:
    schema = header["schema"][0]
    types = {name: schema["schema"][name] for name in schema["blob_fields"]}
    scalars = [name for name in schema["schema"] if name not in types]
    blobs = _contents(path, header, "BLOB_DATA")
    raws = _contents(path, header, "RAW_DATA") if scalars else None
    for content in blobs if types else raws or ():
        columns = _row(_Bytes(path, content), types) if types else {}
        if raws is not None:
            columns |= _scalars(path, next(raws, b"") if types else content, scalars)
        yield columns


def _contents(path: Path, header: dict[str, Any], kind: str) -> Iterator[bytes]:
    """The rows of all pages of a kind, in order."""
    pages = (page for page in header["page"] if page["page_type"] == kind)
    with path.open("rb") as file:
        for page in sorted(pages, key=lambda page: int(page["page_type_id"])):
            file.seek(header["header_size"] + page["page_id"] * header["page_size"])
            content = _Bytes(path, file.read(page["page_size"]))
            if content.left < page["page_size"]:
                raise ConfigError(
                    f"{path} is damaged: {page['page_size']} bytes are announced and {content.left} are left."
                )
            while content.left:
                yield content.take(content.number(_LENGTH_BYTES, "little"))


def _scalars(path: Path, content: bytes, wanted: list[str]) -> Columns:
    try:
        found = read_scalars(content)
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged in the numbers and texts of a row: {error}.") from error
    return {name: found[name] for name in wanted if name in found}


def _row(row: _Bytes, types: dict[str, Any]) -> Columns:
    columns: Columns = {}
    for name, kind in types.items():
        # A single column has no length of its own.
        length = row.number(_LENGTH_BYTES, "big") if len(types) > 1 else row.left
        field = _Bytes(row.path, row.take(length))
        if kind["type"] in _INTEGERS:
            columns[name] = _integers(field).astype(_INTEGERS[kind["type"]]).reshape(kind["shape"])
        elif kind["type"] in _FLOATS:
            values = np.frombuffer(field.take(length), dtype=_FLOATS[kind["type"]])
            columns[name] = values.reshape(kind["shape"])
        else:
            columns[name] = field.take(length)
    return columns


def _integers(field: _Bytes) -> npt.NDArray[np.int64]:
    """Integers of differing widths: their number, two bits a piece for the widths, and the integers."""
    count = field.number(_COUNT_BYTES, "big")
    packed = np.frombuffer(field.take((2 * count + 7) // 8), dtype=np.uint8)
    shifts = np.array([6, 4, 2, 0], dtype=np.uint8)
    codes = ((packed[:, None] >> shifts) & 3).reshape(-1)[:count]
    widths = np.array(_WIDTHS)[codes]
    ends = np.cumsum(widths)
    values = np.frombuffer(field.take(int(widths.sum())), dtype=np.uint8)
    integers = np.zeros(count, dtype=np.int64)
    for width in _WIDTHS:
        chosen = np.flatnonzero(widths == width)
        places = (ends[chosen] - width)[:, None] + np.arange(width)
        integers[chosen] = np.ascontiguousarray(values[places]).view(f"<i{width}")[:, 0] if len(chosen) else 0
    return integers


class _Bytes:
    """A stretch of a file that is read from front to back; what is missing at its end is an error."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self._content = content
        self._position = 0

    @property
    def left(self) -> int:
        """Bytes not taken yet."""
        return len(self._content) - self._position

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise ConfigError(
                f"{self.path} is damaged: {count} bytes are announced and {self.left} are left."
            )
        self._position += count
        return self._content[self._position - count : self._position]

    def number(self, num_bytes: int, order: str) -> int:
        """The next bytes as a number without sign."""
        return int.from_bytes(self.take(num_bytes), "little" if order == "little" else "big")
