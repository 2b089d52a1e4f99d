"""Files that are no JSON: arrays, MindRecord, folders of encoded samples, and what is not opened."""

from __future__ import annotations

import json
import lzma
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.shared_data import needs_shared, shared_path

from telechat.data.dataset import load_samples
from telechat.data.files import read_file
from telechat.data.mindrecord import read_mindrecord
from telechat.data.recognise import recognise_rows
from telechat.data.rows import Row
from telechat.errors import ConfigError
from telechat.tokenizer import Tokenizer

WriteRows = Callable[..., Path]
GOLDEN = (
    *("telechat2_len1024_seed2024", "telechat2_len512_seed7", "telechat1_len768_nostart"),
    *("multipage", "sharded", "default_pages"),
)


def chat(question: str, answer: str, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **changes}]
    return {"messages": messages}


def test_arrays_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, input_ids=np.array([[1, 2], [3, 4]]), labels=np.array([[-100, 2], [-100, 4]]))
    rows = [row for row in read_file(path) if isinstance(row, Row)]
    assert [row.value["input_ids"].tolist() for row in rows] == [[1, 2], [3, 4]]
    assert [row.line for row in rows] == [1, 2]
    np.savez(path, input_ids=np.array([[1, 2], [3, 4]]), labels=np.array([[1, 2]]))
    with pytest.raises(ConfigError, match="not the same number of rows"):
        list(read_file(path))
    path.write_bytes(b"PK no")
    with pytest.raises(ConfigError, match="Cannot read"):
        list(read_file(path))


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "train_data_0.pt"
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ConfigError, match="is a pickle"):
        list(read_file(path))


def test_folders_of_encoded_samples_are_rows(
    write_rows: WriteRows, tmp_path: Path, demo_tokenizer: Tokenizer
) -> None:
    path = write_rows(chat("a", "b", weight=2), chat("c", "dd"), chat("e", "f"))
    first = load_samples({str(path): 2.0}, demo_tokenizer, max_length=99, cache=tmp_path / "kept")
    [folder] = (path for path in (tmp_path / "kept").iterdir() if path.is_dir())
    again = load_samples(folder, demo_tokenizer, max_length=99)
    assert "packed rows" in str(again.accounting)
    assert again.accounting.tokens_trained == first.accounting.tokens_trained
    assert again.accounting.rows_used == 6
    ours, theirs = (samples.batch([0], pad_id=3) for samples in (again, first))
    assert ours.weights is not None and ours.weights.sum() == theirs.weights.sum()
    assert sorted(ours.ids[0].tolist()) == sorted(theirs.ids[0].tolist())


def test_other_folders_are_refused(tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="without encoded samples"):
        load_samples(tmp_path, demo_tokenizer, max_length=99)


def write_mindrecord(path: Path, rows: list[list[int]]) -> None:
    """One page of one-byte integers in the columns input_ids and labels."""

    def column(values: list[int]) -> bytes:
        codes = bytes((len(values) * 2 + 7) // 8)
        return struct.pack(">I", len(values)) + codes + struct.pack(f"{len(values)}b", *values)

    page = b""
    for row in rows:
        fields = [column(row), column([-100, *row[1:]])]
        payload = b"".join(struct.pack(">Q", len(field)) + field for field in fields)
        page += struct.pack("<Q", len(payload)) + payload
    integers = {"type": "int32", "shape": [-1]}
    blob = {"page_id": 0, "page_type": "BLOB_DATA", "page_type_id": 0, "page_size": len(page)}
    header = {
        "header_size": 1024,
        "page_size": 4096,
        "page": [{**blob, "start_row_id": 0, "end_row_id": len(rows)}],
        "schema": [
            {"blob_fields": ["input_ids", "labels"], "schema": {"input_ids": integers, "labels": integers}}
        ],
        "shard_id": 0,
        "shard_addresses": ["another-name.mindrecord"],
    }
    content = json.dumps(header).encode()
    path.write_bytes((struct.pack("<Q", len(content)) + content).ljust(1024, b"\0") + page)


def test_mindrecord_rows_are_trained_on_without_their_padding(
    tmp_path: Path, demo_tokenizer: Tokenizer
) -> None:
    path = tmp_path / "rows.mindrecord"
    pad = demo_tokenizer.special.pad
    write_mindrecord(path, [[50, 51, 52], [53, 54, 55, 56]])
    assert recognise_rows(read_file(path), path).family.name == "packed"
    samples = load_samples(path, demo_tokenizer, max_length=8)
    assert samples.sequences.ids.tolist() == [50, 51, 52, 53, 54, 55, 56]
    assert samples.accounting.tokens_trained == 5
    padded = {"input_ids": [pad, pad, 50, 51], "labels": [-100, -100, -100, 51]}
    assert load_samples(_json(tmp_path, padded), demo_tokenizer, max_length=8).lengths == [2]


def _json(folder: Path, row: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row))
    return path


def test_damaged_mindrecord_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.mindrecord"
    write_mindrecord(path, [[50, 51, 52]])
    whole = path.read_bytes()
    for content, problem in ((whole[:-2], "damaged"), (whole[:30], "no MindRecord"), (b"", "no MindRecord")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=problem):
            list(read_mindrecord(path))
    path.write_bytes(whole.replace(b'"shard_id": 0', b'"shard_id": 1'))
    with pytest.raises(ConfigError, match="shard 1 of several"):
        list(read_mindrecord(path))
    with pytest.raises(ConfigError, match="Cannot read"):
        list(read_mindrecord(tmp_path / "missing.mindrecord"))


@needs_shared
@pytest.mark.parametrize("name", GOLDEN)
def test_mindrecord_files_of_the_original(name: str, tmp_path: Path) -> None:
    folder = shared_path("golden/mindspore/mindrecord")
    path = folder / (f"{name}.mindrecord0" if name == "sharded" else f"{name}.mindrecord")
    if name == "default_pages":
        path = tmp_path / path.name
        path.write_bytes(lzma.decompress((folder / f"{name}.mindrecord.xz").read_bytes()))
    recorded = np.load(folder / f"{name}.npz")
    rows = [row.value for row in read_file(path) if isinstance(row, Row)]
    for column in ("input_ids", "labels"):
        found = np.stack([row[column] for row in rows])
        assert found.dtype == recorded[column].dtype
        assert np.array_equal(found, recorded[column])


@needs_shared
def test_mindrecord_columns_of_other_types() -> None:
    folder = shared_path("golden/mindspore/mindrecord")
    recorded = json.loads((folder / "mixed_types.json").read_text(encoding="utf-8"))
    rows = list(read_mindrecord(folder / "mixed_types.mindrecord"))
    for row, expected in zip(rows, recorded, strict=True):
        assert row["i64"].tolist() == expected["i64"]
        assert np.allclose(row["f"], expected["f"])
        assert (row["n"], row["s"], row["b"].hex()) == (expected["n"], expected["s"], expected["b"])
