"""LoRA checkpoints of MindFormers: merged as its tool merges, taken out as an adapter, sliced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.golden.mindspore_cases import mindspore_path

from telechat.checkpoint.formats.opening import open_checkpoint
from telechat.checkpoint.mindspore.container import read_values
from telechat.cli.main import main


def checkpoint(verb: str, *words: object) -> int:
    return main(["checkpoint", verb, *map(str, words)])


def scaling() -> str:
    return str(json.loads(mindspore_path("lora/meta.json").read_text())["lora_scaling"])


@pytest.mark.parametrize("source", ["lora/lora_full.ckpt", "lora/mp2/ckpt"])
def test_merge(source: str, tmp_path: Path) -> None:
    words = (mindspore_path(source), tmp_path / "out", "--scaling", scaling(), "--prefix", "merged_")
    assert checkpoint("merge-lora", *words) == 0
    found = read_values(tmp_path / "out/rank_0/merged_0.ckpt")
    expected = read_values(mindspore_path("lora/merged/merged_lora.ckpt"))
    if source.endswith("full.ckpt"):
        assert list(found) == list(expected)  # counters are kept, the optimiser's part of LoRA is not
    for name, value in found.items():
        torch.testing.assert_close(value.tensor.read(), expected[name].tensor.read(), atol=1e-6, rtol=1e-6)
    changed = "model.layers.0.attention.wq.weight"
    plain = read_values(mindspore_path("dense/kv_concat_fp32.ckpt"))
    assert not torch.equal(found[changed].tensor.read(), plain[changed].tensor.read())


def test_extract_and_merge_as_an_adapter(tmp_path: Path) -> None:
    """Two ways to the same weights."""
    config = mindspore_path("dense/torch/config.json")
    alpha = json.loads(mindspore_path("lora/meta.json").read_text())["lora_alpha"]
    words = ("--alpha", alpha, "--model-config", config)
    full = mindspore_path("lora/lora_full.ckpt")
    assert checkpoint("extract-lora", full, tmp_path / "adapter", *words) == 0
    base = mindspore_path("dense/torch")
    assert checkpoint("merge-lora", base, tmp_path / "hf", "--adapter", tmp_path / "adapter") == 0
    merged = mindspore_path("lora/merged/merged_lora.ckpt")
    expected, found = open_checkpoint(merged, config=config), open_checkpoint(tmp_path / "hf")
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name].read(), tensor.read(), atol=1e-6, rtol=1e-6)
    sliced = mindspore_path("lora/mp2/ckpt")
    strategy = ("--strategy", mindspore_path("lora/mp2/strategy"))
    assert checkpoint("extract-lora", sliced, tmp_path / "again", *words, *strategy) == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()
    assert checkpoint("extract-lora", full, tmp_path / "llama", *words, "--spelling", "llama") == 0
    assert "q_proj" in (tmp_path / "llama/adapter_config.json").read_text()


def test_scaling_of_an_adapter(tmp_path: Path) -> None:
    """`--scaling 0` leaves the weights as they are."""
    words = ("--alpha", 8, "--model-config", mindspore_path("dense/torch/config.json"))
    assert (
        checkpoint("extract-lora", mindspore_path("lora/lora_full.ckpt"), tmp_path / "adapter", *words) == 0
    )
    words = ("--adapter", tmp_path / "adapter", "--scaling", 0)
    assert checkpoint("merge-lora", mindspore_path("dense/torch"), tmp_path / "hf", *words) == 0
    expected, found = open_checkpoint(mindspore_path("dense/torch")), open_checkpoint(tmp_path / "hf")
    assert all(torch.equal(found.tensors[name].read(), t.read()) for name, t in expected.tensors.items())


def test_sources_that_need_more(tmp_path: Path) -> None:
    """Slices with their strategy elsewhere; weights with their config elsewhere."""
    config = mindspore_path("dense/torch/config.json")
    strategy = ("--strategy", mindspore_path("lora/mp2/strategy/ckpt_strategy_rank_0.ckpt"))
    shutil.copytree(mindspore_path("lora/mp2/ckpt"), tmp_path / "a/ckpt")
    words = ("merge-lora", tmp_path / "a/ckpt", tmp_path / "out", "--scaling", scaling())
    assert checkpoint(*words) == 1
    assert checkpoint(*words, *strategy) == 0
    words = ("--alpha", 8, "--model-config", config)
    full = mindspore_path("lora/lora_full.ckpt")
    assert checkpoint("extract-lora", full, tmp_path / "adapter", *words) == 0
    plain = mindspore_path("dense/kv_concat_fp32.ckpt")
    words = ("merge-lora", plain, tmp_path / "hf", "--adapter", tmp_path / "adapter")
    assert checkpoint(*words) == 1
    assert checkpoint(*words, "--model-config", config) == 0


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ("--model-config", mindspore_path("dense/torch/config.json"))
    lora, plain = mindspore_path("lora/lora_full.ckpt"), mindspore_path("dense/kv_concat_fp32.ckpt")
    cases = [
        (("merge-lora", lora, tmp_path / "o"), "does not say how its LoRA matrices are scaled"),
        (("merge-lora", plain, tmp_path / "o", "--scaling", "2"), "holds no LoRA matrices"),
        (("extract-lora", plain, tmp_path / "o", "--alpha", "8", *config), "holds no LoRA matrices"),
        (("convert", lora, tmp_path / "o", "--to", "hf", *config), "Merge LoRA first"),
    ]
    for words, message in cases:
        assert checkpoint(*words) in (1, 2)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
