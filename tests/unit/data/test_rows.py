"""Reading rows from files: forms, places, and what cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from telechat.data.rows import BadRow, Row, read_rows
from telechat.errors import ConfigError


def places(path: Path) -> list[tuple[int, object]]:
    return [(row.line, row.value if isinstance(row, Row) else row.problem) for row in read_rows(path)]


def test_lines_keep_their_numbers_past_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": "\xe4\xbd\xa0"}')
    assert places(path) == [(1, {"a": 1}), (3, {"a": "你"})]


def test_an_array_gives_the_line_of_each_element(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n  {"a": 1},\n  {"a":\n 2}, 7\n]\n', encoding="utf-8")
    found = places(path)
    assert found[:2] == [(2, {"a": 1}), (3, {"a": 2})]
    assert found[2][0] == 4 and "int" in str(found[2][1])


def test_gzip_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [value for _, value in places(path)] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": ', "not JSON"),
        (b"[1]", "a row is an object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"a": ' + b"[" * 100_000, "not JSON"),
    ],
)
def test_bad_lines_do_not_end_the_file(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    first, bad, last = read_rows(path)
    assert isinstance(first, Row) and isinstance(last, Row) and last.line == 3
    assert isinstance(bad, BadRow) and bad.line == 2 and problem in bad.problem
    assert str(bad).startswith(f"{path} line 2: ")


@pytest.mark.parametrize("text", ["[{}, ", '[{"a": 1} {"a": 2}]', '[{"a": }]', "["])
def test_a_broken_array_is_an_error_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n" + text, encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        list(read_rows(path))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "a.jsonl.gz"
    broken.write_bytes(gzip.compress(json.dumps({"a": 1}).encode())[:-6])
    for path in (tmp_path / "missing.jsonl", broken):
        with pytest.raises(ConfigError, match=path.name):
            list(read_rows(path))
