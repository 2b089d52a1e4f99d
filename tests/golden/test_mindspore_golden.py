"""Files of the real MindSpore: read to the last bit, and written again to the last byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.golden.mindspore_cases import (
    DTYPES,
    assert_same,
    mindspore_path,
    read_all,
    source,
    written,
)

from telechat.checkpoint.formats.mindspore import open_mindspore, plan_mindspore
from telechat.checkpoint.formats.safetensors_file import plan_safetensors
from telechat.checkpoint.formats.table import fit_table
from telechat.checkpoint.formats.writing import write_target
from telechat.checkpoint.mindspore.container import has_crc, plan_ckpt, read_values
from telechat.checkpoint.mindspore.layouts import inferred_strategy, parse_layout, strategy_of
from telechat.checkpoint.mindspore.naming import Layout, from_mindspore, is_weight
from telechat.checkpoint.mindspore.ranks import file_of, read_ranks
from telechat.checkpoint.mindspore.slicing import merge, split
from telechat.checkpoint.mindspore.strategy import merged_file, read_strategy, strategy_files

CASES = [
    ("dense", "kv_concat_fp32"),
    ("dense", "kv_concat_fp16"),
    ("dense", "kv_concat_bf16"),
    ("dense", "qkv_concat_fp32"),
    ("dense_head128", "kv_concat_fp16"),
    ("dense_head128", "qkv_concat_fp16"),
    ("moe", "moe_fp32"),
    ("telechat1_7b", "telechat1_7b_fp32"),
]
SLICED = ["mp2", "dp2_mp2_optshard", "pp2_mp2", "moe/mp2", "lora/mp2"]


def tensors_of(path: Path) -> dict:
    return {name: value.tensor for name, value in read_values(path).items()}


def whole_of(case: str) -> dict:
    """The unsliced values that a sliced case was cut from."""
    if case.startswith("lora"):
        values = read_values(mindspore_path("lora/lora_full.ckpt"))
        return {name: value for name, value in values.items() if is_weight(name)}
    return read_values(mindspore_path("moe/moe_fp32.ckpt" if "moe" in case else "dense/kv_concat_fp32.ckpt"))


@pytest.mark.parametrize(("case", "file"), CASES, ids=lambda value: value)
def test_both_ways(case: str, file: str, tmp_path: Path) -> None:
    model, dtype = source(case), DTYPES[file.rpartition("_")[2]]
    recorded = mindspore_path(f"{case}/{file}.ckpt")
    back = fit_table(from_mindspore(tensors_of(recorded), model.config), model.config, file)
    assert_same(back, model.tensors, dtype)

    form = Layout(qkv_concat="qkv" in file)
    target = tmp_path / "new.ckpt"
    write_target(target, plan_mindspore(model, target, form=form, dtype=dtype))
    assert target.read_bytes() == recorded.read_bytes()
    again = open_mindspore(recorded, model.config)
    write_target(tmp_path / "again.ckpt", plan_mindspore(again, tmp_path / "again.ckpt", form=form))
    assert (tmp_path / "again.ckpt").read_bytes() == recorded.read_bytes()


@pytest.mark.parametrize("case", ["dense", "moe"])
def test_back_to_the_bytes_of_the_torch_file(case: str, tmp_path: Path) -> None:
    [name] = [file for part, file in CASES if part == case and file.endswith("fp32") and "qkv" not in file]
    model = source(case)
    back = from_mindspore(tensors_of(mindspore_path(f"{case}/{name}.ckpt")), model.config)
    recorded = mindspore_path(f"{case}/torch/model.safetensors").read_bytes()
    assert written(tmp_path, plan_safetensors("x", back)) == recorded


@pytest.mark.parametrize("case", SLICED)
def test_slices(case: str, tmp_path: Path) -> None:
    strategy = read_strategy(mindspore_path(f"{case}/strategy"))
    whole = whole_of(case)
    merged = merge(read_ranks(mindspore_path(f"{case}/ckpt")), strategy)
    assert_same({n: v.tensor for n, v in merged.items()}, {n: v.tensor for n, v in whole.items()})
    ranks = split(whole, strategy)
    assert len(ranks) == strategy.num_ranks
    for number, values in enumerate(ranks):
        recorded = file_of(mindspore_path(f"{case}/ckpt/rank_{number}"))
        assert written(tmp_path, plan_ckpt("x", values)) == recorded.read_bytes()


@pytest.mark.parametrize("case", SLICED)
def test_strategy_files(case: str) -> None:
    folder = mindspore_path(f"{case}/strategy")
    files = strategy_files(read_strategy(folder))
    assert files == {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_merged_strategy() -> None:
    merged = mindspore_path("pp2_mp2/merged_ckpt_strategy.ckpt")
    strategy = read_strategy(merged)
    assert strategy == read_strategy(mindspore_path("pp2_mp2/strategy"))
    assert merged_file(strategy) == merged.read_bytes()


@pytest.mark.parametrize(("case", "model"), [("mp2", "dense"), ("moe/mp2", "moe")])
def test_slices_without_a_strategy(case: str, model: str) -> None:
    ranks = read_ranks(mindspore_path(f"{case}/ckpt"))
    plain = [{name: value.tensor for name, value in values.items()} for values in ranks]
    merged = merge(ranks, inferred_strategy(plain, source(model).config))
    assert_same({n: v.tensor for n, v in merged.items()}, {n: v.tensor for n, v in whole_of(case).items()})


@pytest.mark.parametrize(
    ("case", "model", "form"),
    [
        ("mp2_qkv_concat", "dense", Layout(qkv_concat=True)),
        ("moe/mp2_gmm", "moe", Layout(gmm=True)),
        ("moe/mp2/ckpt", "moe", Layout()),
    ],
)
def test_forms_of_each_rank(case: str, model: str, form: Layout, tmp_path: Path) -> None:
    """Fusing and transposing is done on every rank's slices, by our own strategy for the same layout."""
    checkpoint = source(model)
    target = tmp_path / "out"
    layout = parse_layout("dp1,mp2")
    write_target(target, plan_mindspore(checkpoint, target, form=form, layout=layout))
    for number in range(2):
        file = f"rank_{number}/checkpoint_{number}.ckpt"
        assert (target / file).read_bytes() == mindspore_path(f"{case}/{file}").read_bytes()
    for path in (target, mindspore_path(case)):
        assert_same(open_mindspore(path, checkpoint.config).tensors, checkpoint.tensors)


def test_our_layouts_agree_with_the_recorded_slices(tmp_path: Path) -> None:
    config = source("dense").config
    for case, text in (("mp2", "mp2"), ("pp2_mp2", "pp2,mp2"), ("dp2_mp2_optshard", "dp2,mp2,opt")):
        ranks = split(whole_of(case), strategy_of(config, parse_layout(text)))
        for number, values in enumerate(ranks):
            recorded = file_of(mindspore_path(f"{case}/ckpt/rank_{number}"))
            assert written(tmp_path, plan_ckpt("x", values)) == recorded.read_bytes(), (case, number)


def test_every_dtype(tmp_path: Path) -> None:
    recorded = mindspore_path("format/dtypes.ckpt")
    values = read_values(recorded)
    with np.load(mindspore_path("format/dtypes.npz")) as arrays:
        for name in arrays.files:
            found = values[name].tensor.read()
            found = found.float() if found.dtype == torch.bfloat16 else found  # recorded so
            assert np.array_equal(found.numpy(), arrays[name]), name
    assert bytes(read_all({"note": values["note"].tensor})["note"].numpy()).decode("utf-32-le") == "你好"
    assert written(tmp_path, plan_ckpt("x", values)) == recorded.read_bytes()


def test_crc_and_chunks(tmp_path: Path) -> None:
    crc, chunked = mindspore_path("format/crc.ckpt"), mindspore_path("format/chunked.ckpt")
    assert has_crc(crc)
    assert written(tmp_path, plan_ckpt("x", read_values(crc), with_crc=True)) == crc.read_bytes()
    assert written(tmp_path, plan_ckpt("x", read_values(chunked), slice_bytes=1024)) == chunked.read_bytes()
    damaged = bytearray(crc.read_bytes())
    damaged[200] ^= 1
    (tmp_path / "damaged.ckpt").write_bytes(damaged)
    with pytest.raises(Exception, match="CRC"):
        read_values(tmp_path / "damaged.ckpt")
