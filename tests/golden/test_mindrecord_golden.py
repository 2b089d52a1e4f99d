"""`telechat data preprocess` and the MindRecord writer, against files of MindSpore and MindFormers."""

from __future__ import annotations

import json
import lzma
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from tests.golden.mindspore_cases import mindspore_path
from tests.shared_data import needs_shared, shared_path

from telechat.cli.main import main
from telechat.data.mindrecord import read_mindrecord
from telechat.data.mindrecord_writing import write_mindrecord
from telechat.data.reading import read_file

pytestmark = needs_shared

CASES = {
    "telechat2_len1024_seed2024": ("--max-length", "1024"),
    "telechat2_len512_seed7": ("--max-length", "512", "--seed", "7"),
    "telechat1_len768_nostart": ("--max-length", "768", "--start-token", "none"),
}
GEOMETRY = {"header_bytes": 16384, "page_bytes": 32768}


def recorded_rows(name: str) -> list[dict[str, np.ndarray]]:
    with np.load(mindspore_path(f"mindrecord/{name}.npz")) as arrays:
        return [dict(zip(arrays.files, row, strict=True)) for row in zip(*arrays.values(), strict=True)]


def index_of(path: Path, folder: Path) -> list[tuple]:
    copy = shutil.copy(path, folder / "copy.db")  # SQLite writes beside what it reads
    connection = sqlite3.connect(copy)
    rows = connection.execute("SELECT * FROM INDEXES ORDER BY ROW_ID").fetchall()
    rows += connection.execute("SELECT * FROM SHARD_NAME").fetchall()
    connection.close()
    return rows


@pytest.mark.parametrize("name", [*CASES, "multipage", "sharded"])
def test_bytes_of_the_file(name: str, tmp_path: Path) -> None:
    shards = 2 if name == "sharded" else 1
    path = tmp_path / f"{name}.mindrecord"
    for written in write_mindrecord(path, recorded_rows(name), num_shards=shards, **GEOMETRY):
        recorded = mindspore_path(f"mindrecord/{written.name}")
        assert written.read_bytes() == recorded.read_bytes()
        index = recorded.with_name(recorded.name + ".db")
        assert index_of(written.with_name(written.name + ".db"), tmp_path) == index_of(index, tmp_path)


def test_default_geometry(tmp_path: Path) -> None:
    path = tmp_path / "dataset.mindrecord"
    write_mindrecord(path, recorded_rows("default_pages"))
    with lzma.open(mindspore_path("mindrecord/default_pages.mindrecord.xz")) as recorded:
        content, found = recorded.read(), path.read_bytes()
    assert len(found) == len(content)
    assert found[16 << 20 :] == content[16 << 20 :]  # the headers differ in the name of the file


@pytest.mark.parametrize("name", CASES)
def test_preprocess(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = shared_path("golden/tokenizer/telechat-12b/tokenizer.model")
    rows = mindspore_path("mindrecord/rows.jsonl")
    target = tmp_path / f"{name}.mindrecord"
    words = ["data", "preprocess", str(rows), str(target), "--tokenizer", str(tokenizer), *CASES[name]]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{target}\n"
    expected, found = recorded_rows(name), list(read_mindrecord(target))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours["input_ids"], theirs["input_ids"])
        assert np.array_equal(ours["labels"], theirs["labels"])
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err


def test_preprocess_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "telechat2_len512_seed7"
    tokenizer = shared_path("golden/tokenizer/telechat-12b/tokenizer.model")
    rows = mindspore_path("mindrecord/rows.jsonl")
    start = ["data", "preprocess", str(rows)]
    common = ["--tokenizer", str(tokenizer.parent), *CASES[name]]
    assert main([*start, str(tmp_path / "a"), *common, "--pad-token-id", "-1", "--shards", "3"]) == 0
    shards = [f"dataset.mindrecord{number}" for number in range(3)]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        [*shards, *(f"{shard}.db" for shard in shards)]
    )
    expected = recorded_rows(name)
    found = list(read_mindrecord(tmp_path / "a" / shards[0]))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(np.where(ours["input_ids"] == -1, 3, ours["input_ids"]), theirs["input_ids"])
    assert any((row["input_ids"] == -1).any() for row in found)

    assert main([*start, str(tmp_path / "b"), *common, "--format", "mmap"]) == 0
    for row, theirs in zip(read_file(tmp_path / "b"), expected, strict=True):
        ids = row.value["input_ids"]
        assert np.array_equal(ids, theirs["input_ids"][-len(ids) :])
        assert np.array_equal(row.value["loss_mask"], theirs["labels"][-len(ids) :] != -100)

    capsys.readouterr()
    (tmp_path / "bad.jsonl").write_text(json.dumps({"system": "", "dialog": []}) + "\n")
    assert main(["data", "preprocess", str(tmp_path / "bad.jsonl"), str(tmp_path / "c"), *common]) == 1
    assert "line 1 is no row" in capsys.readouterr().err
    assert main([*start, str(tmp_path / "d"), "--tokenizer", str(tokenizer), "--max-length", "99999"]) == 1
    assert "too few tokens" in capsys.readouterr().err
