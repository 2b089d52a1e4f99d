"""Rows, masks, packs and batches equal what the original training scripts recorded, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.shared_data import needs_shared, shared_path
from tests.tokenizer_samples import official_folder

from telechat.data.encoding import conversation_ids
from telechat.data.families import telechat2 as telechat2_rows
from telechat.data.loss_mask import turn_mask
from telechat.data.official import telechat1, telechat2
from telechat.data.records import Conversation
from telechat.tokenizer import Tokenizer, load_tokenizer

pytestmark = needs_shared


@cache
def golden(name: str) -> dict[str, Any]:
    return json.loads(shared_path(f"golden/sft/{name}.json").read_text(encoding="utf-8"))


@cache
def row_of(reference: str) -> dict[str, Any]:
    """The row `file#zero-based line`."""
    name, number = reference.split("#")
    lines = shared_path(f"data/{name}").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[int(number)])


def spans(mask: Sequence[bool]) -> list[list[int]]:
    """Half-open ranges where the mask is true."""
    found: list[list[int]] = []
    for place in (place for place, mark in enumerate(mask) if mark):
        if found and found[-1][1] == place:
            found[-1][1] = place + 1
        else:
            found.append([place, place + 1])
    return found


@pytest.fixture(scope="module")
def telechat1_12b(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(official_folder(tmp_path_factory.mktemp("t1"), "telechat-12b"))


@pytest.fixture(scope="module")
def telechat2_115b(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(official_folder(tmp_path_factory.mktemp("t2"), "telechat2"))


def telechat1_lines() -> list[str]:
    rows = golden("telechat1_sft")["rows"]
    return [telechat1.concat_line(row.get("row") or row_of(row["ref"])) for row in rows]


def test_telechat1_rows(telechat1_12b: Tokenizer) -> None:
    rows = golden("telechat1_sft")["rows"]
    for row, line in zip(rows, telechat1_lines(), strict=True):
        assert row["concat_line"] in (None, line)
        ids = telechat1.line_ids(line, telechat1_12b)
        assert ids == row["input_ids"]
        assert telechat1.packing_length(line, telechat1_12b) == row["len_for_packing"]
        assert spans(turn_mask(ids, telechat1_12b.special)) == row["loss_spans"]


def test_telechat1_packs(telechat1_12b: Tokenizer) -> None:
    lines = telechat1_lines()
    lengths = [row["len_for_packing"] for row in golden("telechat1_sft")["rows"]]
    for case in golden("telechat1_sft")["packed"]:
        length = case["max_seq_len"]
        packs = telechat1.pack_lines(lengths, length, num_samples=case["num_samples"])
        assert len(packs) == len(case["samples"])
        for pack, recorded in zip(packs, case["samples"], strict=True):
            sample = telechat1.sample_of("".join(lines[line] for line in pack), telechat1_12b, length)
            assert list(sample.ids) == [3] * recorded["pad"] + recorded["input_ids"]
            assert spans(sample.learnt) == recorded["loss_spans"]


def test_telechat2_rows(telechat2_115b: Tokenizer) -> None:
    for row in golden("telechat2_sft")["rows"]:
        value = row_of(row["ref"])
        dialog = telechat2_rows.read_dialog(value)
        ids = telechat2.manual_ids(value["system"], dialog, telechat2_115b)
        assert ids == row["input_ids"]
        assert spans(turn_mask(ids, telechat2_115b.special)) == row["loss_spans"]
        system = {"role": "system", "content": value["system"]}
        assert conversation_ids(Conversation((system, *dialog)), telechat2_115b) == row["template_input_ids"]


def test_telechat2_packs(telechat2_115b: Tokenizer) -> None:
    for case in golden("telechat2_sft")["packed"]:
        values = [row_of(reference) for reference in case["rows"]]
        rows = [telechat2.dialog_ids(telechat2_rows.read_dialog(value), telechat2_115b) for value in values]
        prefix = telechat2.system_prefix(values[0]["system"], telechat2_115b)
        packed = telechat2.pack_rows(prefix, rows, telechat2_115b.encode("\n"), case["max_seq_length"])
        assert packed.packs == case["outputs"]


def test_telechat2_collation(telechat2_115b: Tokenizer) -> None:
    case = golden("telechat2_sft")["collated"]
    length = case["max_seq_length"]
    assert case["labels_equal_input_ids"]
    for number, reference in enumerate(case["rows"]):
        value = row_of(reference)
        ids = telechat2.manual_ids(value["system"], telechat2_rows.read_dialog(value), telechat2_115b)
        mask = turn_mask(ids, telechat2_115b.special)[:length]
        ids = ids[:length]
        assert ids + [3] * (length - len(ids)) == case["input_ids"][number]
        assert len(ids) == case["attention_mask_sums"][number]
        assert spans(mask) == case["loss_spans"][number]


def test_tool_rows_render_back_to_the_same_text(telechat2_115b: Tokenizer) -> None:
    """Taking tools, calls and results apart changes no token of the model that has no tags as tokens."""
    path: Path = shared_path("data/telechat2/demo_tool.jsonl")
    taken_apart = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        value = json.loads(line)
        conversation = telechat2_rows.read(value)
        taken_apart += bool(conversation.tools)
        marks = {"user": ("<_user>", ""), "bot": ("<_bot>", "<_end>\n")}
        turns = [
            marks[turn["role"]][0] + turn["content"] + marks[turn["role"]][1] for turn in value["dialog"]
        ]
        text = "<_system>" + value["system"] + "".join(turns)
        assert conversation_ids(conversation, telechat2_115b) == telechat2_115b.encode(
            text, parse_special=True
        )
    assert taken_apart == 60
