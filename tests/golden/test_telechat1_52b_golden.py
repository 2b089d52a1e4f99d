"""TeleChat1-52B: GPT-2's names and transposed weights, against files of MindSpore for one and two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.golden.mindspore_cases import assert_same, mindspore_path

from telechat import load_model
from telechat.checkpoint.formats.opening import open_checkpoint
from telechat.cli.main import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "torch"
    shutil.copytree(mindspore_path("telechat1_52b/torch"), folder)
    sizes = json.loads(mindspore_path("telechat1_52b/meta.json").read_text())
    raw = {
        "model_type": "telechat", "vocab_size": sizes["vocab_size"], "hidden_size": sizes["hidden_size"],
        "n_layer": sizes["num_layers"], "n_head": sizes["num_heads"], "tie_word_embeddings": False,
        "ffn_hidden_size": sizes["intermediate_size"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def convert(*words: object) -> int:
    return main(["checkpoint", "convert", *map(str, words)])


@pytest.mark.parametrize(("order", "file"), [("heads", "w_qkv_mp1_fp32.ckpt"), ("2", "w_qkv_mp2_fp32.ckpt")])
def test_both_ways(order: str, file: str, source: Path, tmp_path: Path) -> None:
    recorded = mindspore_path(f"telechat1_52b/{file}")
    out = tmp_path / "out.ckpt"
    assert convert(source, out, "--to", "mindspore", "--row-order", order) == 0
    assert out.read_bytes() == recorded.read_bytes()
    config = ("--model-config", source / "config.json")
    assert convert(recorded, tmp_path / "hf", "--to", "hf", "--row-order", order, *config) == 0
    found = open_checkpoint(tmp_path / "hf")
    assert_same(found.tensors, open_checkpoint(source).tensors)
    raw = open_checkpoint(tmp_path / "hf").tensors
    assert not raw["transformer.h.1.mlp.down_proj.bias"].read().any()


def test_plain_rows_and_running(source: Path, tmp_path: Path) -> None:
    """Logits are divided by 32, which the table has in the head."""
    words = ("--to", "mindspore", "--row-order", "1")
    assert convert(source, tmp_path / "one.ckpt", *words) == 0
    found = open_checkpoint(tmp_path / "one.ckpt", config=source / "config.json")
    assert_same(found.tensors, open_checkpoint(source).tensors)
    assert convert(source, tmp_path / "hf", "--to", "hf") == 0
    model = load_model(tmp_path / "hf", device="cpu")
    from safetensors.torch import load_file

    stored = load_file(source / "model.safetensors")
    assert torch.equal(model.lm_head.weight, stored["lm_head.weight"] / 32)
    query = stored["transformer.h.0.attn.c_attn.weight"].T[:32]
    assert torch.equal(model.transformer.h[0].self_attention.query.weight, query)


def test_refusals(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = mindspore_path("dense/torch")
    for words, message in (
        ((plain, tmp_path / "o.ckpt", "--to", "mindspore", "--row-order", "1"), "Only a TeleChat1-52B"),
        ((source, tmp_path / "o", "--to", "mindspore", "--row-order", "1"), "Only a TeleChat1-52B"),
        ((source, tmp_path / "o.ckpt", "--to", "mindspore", "--row-order", "3"), "cannot be shared by 3"),
        ((source, tmp_path / "o.ckpt", "--to", "mindspore", "--row-order", "x"), "is no row order"),
    ):
        assert convert(*words) in (1, 2)
        assert message in capsys.readouterr().err
