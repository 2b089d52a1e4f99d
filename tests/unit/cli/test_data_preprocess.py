"""`telechat data preprocess`: what it refuses, and rows as people write them.

That it packs as MindFormers does is tested in tests/golden/test_mindrecord_golden.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from telechat.cli.main import main

OPTIONS = ["--tokenizer", "demo", "--max-length", "16", "--start-token", "none"]


def preprocess(folder: Path, content: bytes, *options: str) -> int:
    (folder / "rows.jsonl").write_bytes(content)
    return main(["data", "preprocess", str(folder / "rows.jsonl"), str(folder / "out"), *OPTIONS, *options])


def test_line_ends_of_unicode_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row may hold U+2028 as it is, and the file may begin with a byte order mark."""
    row = json.dumps({"input": "<_user>一\u2028二\u0085三", "output": "四"}, ensure_ascii=False)
    assert preprocess(tmp_path, ("\ufeff" + f"{row}\n" * 8).encode()) == 0
    assert "8 rows packed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "code", "message"),
    [
        (b'{"input": "a", "output": "\xff"}\n', (), 1, "is not UTF-8 text (byte 26)"),
        (b'{"input": "a", "output": "b"}\n{"input": 1, "output": "b"}\n', (), 1, "line 2 is no row"),
        (b'{"input": "a", "output": "b"\n', (), 1, "line 1 is no row"),
        (b'["input", "output"]\n', (), 1, "line 1 is no row"),
        (b'{"input": "a", "output": "b"}\n', ("--format", "mmap", "--shards", "2"), 2, "--shards 2"),
    ],
)
def test_refusals(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert preprocess(tmp_path, content, *options) == code
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
