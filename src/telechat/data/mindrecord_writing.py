"""Writes MindRecord files (version 3.0) of int32 columns, with the index that MindSpore wants beside them.

Rows are cut over several shards in contiguous runs. Layout as in `mindrecord`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HEADER_BYTES = 16 << 20
PAGE_BYTES = 32 << 20
INDEX_SUFFIX = ".db"
_LENGTH_BYTES = 8
_WIDTHS = (1, 2, 4)
# MessagePack of {"id": 0}: rows without a single number or text get this in its place.
_NO_SCALARS = b"\x81\xa2id\x00"
_INDEX_COLUMNS = (
    "ROW_ID", "PAGE_ID_RAW", "PAGE_OFFSET_RAW", "PAGE_OFFSET_RAW_END", "ROW_GROUP_ID", "PAGE_ID_BLOB",
    "PAGE_OFFSET_BLOB", "PAGE_OFFSET_BLOB_END",
)  # fmt: skip

Row = Mapping[str, npt.NDArray[Any]]


@dataclass
class _Page:
    """A page being filled: its number in the file and among its kind, rows, content."""

    number: int
    number_of_kind: int
    first_row: int
    content: bytearray = field(default_factory=bytearray)
    groups: list[tuple[int, int]] = field(default_factory=list)
    num_rows: int = 0


def write_mindrecord(
    path: Path,
    rows: Sequence[Row],
    *,
    num_shards: int = 1,
    description: str = "lm-schema",
    header_bytes: int = HEADER_BYTES,
    page_bytes: int = PAGE_BYTES,
) -> list[Path]:
    """Write rows that all have the same int32 columns.

    Args:
        num_shards: files; with several, their number is added to the name.
        header_bytes, page_bytes: geometry; the defaults are MindSpore's.

    Returns:
        The files, without their indexes.
    """
    paths = [path] if num_shards == 1 else [path.with_name(f"{path.name}{n}") for n in range(num_shards)]
    columns = sorted(rows[0]) if rows else ["input_ids", "labels"]
    encoded = [{name: _integers(row[name]) for name in columns} for row in rows]
    saved = sum(
        4 * row[name].size - len(code[name])
        for row, code in zip(rows, encoded, strict=True)
        for name in columns
    )
    size, rest = divmod(len(rows), num_shards)
    first = 0
    for number, shard in enumerate(paths):
        count = size + (number < rest)
        writer = _Shard(page_bytes)
        for row in encoded[first : first + count]:
            writer.add(row)
        first += count
        header = {
            "header_size": header_bytes,
            "index_fields": None,
            "page": writer.pages(number),
            "page_size": page_bytes,
            "compression_size": saved,
            "schema": [_schema(columns, description)],
            "shard_addresses": [name.name for name in paths],
            "shard_id": number,
            "statistics": None,
            "version": "3.0",
        }
        shard.write_bytes(_head(header, header_bytes) + writer.content())
        _write_index(shard, writer.index)
    return paths


def _schema(columns: Sequence[str], description: str) -> dict[str, Any]:
    kinds = {name: {"shape": [-1], "type": "int32"} for name in columns}
    return {"blob_fields": list(columns), "desc": description, "schema": kinds}


def _head(header: Mapping[str, Any], header_bytes: int) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) + _LENGTH_BYTES <= header_bytes, "too many pages for the header"
    return (len(text).to_bytes(_LENGTH_BYTES, "little") + text).ljust(header_bytes, b"\0")


def _integers(values: npt.NDArray[Any]) -> bytes:
    """Count, two bits a number for its width, then the numbers in as few bytes as each needs."""
    values = np.asarray(values, dtype=np.int64)
    codes = np.select([(values >= -128) & (values < 128), (values >= -32768) & (values < 32768)], [0, 1], 2)
    padded = np.zeros(-(-len(values) // 4) * 4, dtype=np.uint8)
    padded[: len(values)] = codes
    fours = padded.reshape(-1, 4)
    packed = (fours[:, 0] << 6 | fours[:, 1] << 4 | fours[:, 2] << 2 | fours[:, 3]).astype(np.uint8)
    whole = values.astype("<i4").view(np.uint8).reshape(-1, 4)
    kept = np.arange(4) < np.array(_WIDTHS)[codes][:, None]
    content: bytes = packed.tobytes() + whole[kept].tobytes()
    return len(values).to_bytes(4, "big") + content


class _Shard:
    """One file's pages and index rows."""

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._blobs: list[_Page] = []
        self._raws: list[_Page] = []
        self.index: list[tuple[int, ...]] = []

    def add(self, row: Mapping[str, bytes]) -> None:
        """Append a row of encoded columns, in alphabetical order."""
        payload = b"".join(len(part).to_bytes(8, "big") + part for part in row.values())
        if len(row) == 1:  # needs no length of its own
            payload = next(iter(row.values()))
        blob = len(payload).to_bytes(_LENGTH_BYTES, "little") + payload
        raw = len(_NO_SCALARS).to_bytes(_LENGTH_BYTES, "little") + _NO_SCALARS
        page = self._page_for(self._blobs, len(blob))
        raw_page = self._page_for(self._raws, len(raw))
        if page.num_rows == 0:
            raw_page.groups.append((page.number_of_kind, len(raw_page.content)))
        starts = len(raw_page.content), len(page.content)
        raw_page.content += raw
        page.content += blob
        self.index.append(
            (len(self.index), raw_page.number, starts[0], len(raw_page.content), page.number_of_kind,
             page.number, starts[1], len(page.content))
        )  # fmt: skip
        page.num_rows += 1
        raw_page.num_rows += 1

    def _page_for(self, pages: list[_Page], num_bytes: int) -> _Page:
        assert num_bytes <= self._page_bytes, "a row is larger than a page"
        if not pages or len(pages[-1].content) + num_bytes > self._page_bytes:
            number = len(self._blobs) + len(self._raws)
            pages.append(_Page(number, len(pages), len(self.index)))
        return pages[-1]

    def _ordered(self) -> list[_Page]:
        return sorted([*self._blobs, *self._raws], key=lambda page: page.number)

    def pages(self, shard: int) -> list[dict[str, Any]]:
        """The list of pages for the header."""
        listed = []
        for page in self._ordered():
            is_blob = page in self._blobs
            groups = [(0, 0)] if is_blob else page.groups
            listed.append(
                {
                    "end_row_id": page.first_row + page.num_rows if is_blob else 0,
                    "page_id": page.number,
                    "page_size": len(page.content),
                    "page_type": "BLOB_DATA" if is_blob else "RAW_DATA",
                    "page_type_id": page.number_of_kind,
                    "row_group_ids": [{"id": number, "offset": offset} for number, offset in groups],
                    "shard_id": shard,
                    "start_row_id": page.first_row if is_blob else 0,
                }
            )
        return listed

    def content(self) -> bytes:
        """All pages, each but the last filled up."""
        pages = [bytes(page.content) for page in self._ordered()]
        return b"".join(page.ljust(self._page_bytes, b"\0") for page in pages[:-1]) + b"".join(pages[-1:])


def _write_index(path: Path, rows: Sequence[tuple[int, ...]]) -> None:
    target = path.with_name(path.name + INDEX_SUFFIX)
    target.unlink(missing_ok=True)
    columns = ", ".join(f"{name} INT NOT NULL" for name in _INDEX_COLUMNS)
    connection = sqlite3.connect(target)
    try:
        connection.execute("CREATE TABLE SHARD_NAME(NAME TEXT NOT NULL)")
        connection.execute("INSERT INTO SHARD_NAME VALUES (?)", (path.name,))
        connection.execute(f"CREATE TABLE INDEXES({columns}, PRIMARY KEY(ROW_ID))")
        places = ",".join("?" * len(_INDEX_COLUMNS))
        connection.executemany(f"INSERT INTO INDEXES VALUES ({places})", rows)
        connection.commit()
    finally:
        connection.close()
