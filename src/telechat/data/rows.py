"""Reads rows, JSON objects, from files: JSON lines or a JSON array, either of them gzipped.

A row that cannot be read does not end the file: it is given to the caller with file, line and problem, who
decides. Knows nothing of what the fields mean.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from telechat.errors import ConfigError

_BOM = b"\xef\xbb\xbf"


class RowProblem(ValueError):
    """A row that is malformed; the message says what is wrong with it, in a sentence without the place."""


@dataclass(frozen=True)
class Row:
    """A JSON object with its place; lines count from 1."""

    path: Path
    line: int
    value: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    path: Path
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path} line {self.line}: {self.problem}"


def read_rows(path: Path) -> Iterator[Row | BadRow]:
    """The rows of a file in order; blank lines are passed over.

    Raises:
        ConfigError: the file is missing or unreadable, or a JSON array is broken (what follows a break cannot
            be found again).
    """
    try:
        with _open(path) as file:
            start = file.read(256).removeprefix(_BOM).lstrip()
        with _open(path) as file:
            yield from _array_rows(path, file) if start.startswith(b"[") else _line_rows(path, file)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"Cannot read the training file {path}: {reason}.") from error


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _line_rows(path: Path, file: IO[bytes]) -> Iterator[Row | BadRow]:
    for number, line in enumerate(file, 1):
        content = line.removeprefix(_BOM) if number == 1 else line
        if not content.strip():
            continue
        try:
            value = json.loads(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield BadRow(path, number, f"it is not UTF-8 text (byte {error.start}).")
        except json.JSONDecodeError as error:
            yield BadRow(path, number, f"it is not JSON: {error.msg} at character {error.pos + 1}.")
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists 10,000 deep
            yield BadRow(path, number, f"it is not JSON that can be read: {error}.")
        else:
            yield _row(path, number, value)


def _array_rows(path: Path, file: IO[bytes]) -> Iterator[Row | BadRow]:
    """Elements one by one, so that each has its line. The text itself is held in memory."""
    try:
        text = file.read().removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    decoder = json.JSONDecoder()
    position, line, counted = text.index("[") + 1, 1, 0
    position = _skip_blanks(text, position)
    while text[position : position + 1] != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} line {line}: the JSON array is broken: {error}.") from error
        yield _row(path, line, value)
        position = _skip_blanks(text, position)
        if text[position : position + 1] == ",":
            position = _skip_blanks(text, position + 1)
        elif text[position : position + 1] != "]":
            raise ConfigError(f"{path} line {line}: the JSON array does not end after this element.")


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _row(path: Path, line: int, value: Any) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(path, line, value)
    return BadRow(path, line, f"it is a JSON {type(value).__name__}; a row is an object.")
