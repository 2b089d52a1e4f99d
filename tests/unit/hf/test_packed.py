"""Quantised folders through the Auto classes: the same logits as our own loader, chat, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.unit.checkpoint.folders import random_model, tensors_of, write_bin, write_config, write_safetensors
from tests.unit.quant.quant_models import PLAIN, TIED, quantised_layers
from transformers import AutoModelForCausalLM, AutoTokenizer

import telechat
import telechat.hf
from telechat import QuantizeConfig, load_model
from telechat.errors import CheckpointError, ConfigError
from telechat.models import TeleChatConfig
from telechat.ops.attention import reference_attention
from telechat.quant import Int8Config

IDS = torch.arange(2, 30).view(2, 14)
ROWS = [list(range(1, 60)), list(range(30, 90))]


def gptq_folder(folder: Path, config: TeleChatConfig = PLAIN, **settings: object) -> Path:
    write_config(folder / "plain", config)
    write_safetensors(folder / "plain", tensors_of(random_model(config)))
    options = {"bits": 8, "group_size": 128, **settings}
    return telechat.quantize(
        folder / "plain",
        folder / "out",
        QuantizeConfig(method="gptq", **options),  # type: ignore[arg-type]
        examples=ROWS,
    )


@pytest.mark.parametrize("config", [PLAIN, TIED], ids=["plain", "tied"])
def test_the_same_as_load_model(tmp_path: Path, config: TeleChatConfig) -> None:
    out = gptq_folder(tmp_path, config, desc_act=True, static_groups=False)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    expected = load_model(out, device="cpu")(IDS)
    assert quantised_layers(model)
    assert torch.equal(model(IDS).logits, expected)
    ours = model.generate(IDS[:1], max_new_tokens=4, do_sample=False)
    assert ours.shape[1] > IDS.shape[1]
    with pytest.raises(CheckpointError, match="quantised model is not saved from here"):
        model.save_pretrained(tmp_path / "saved")


def test_the_official_layout(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = gptq_folder(tmp_path)
    official = tmp_path / "official"
    write_config(official, PLAIN)
    (official / "quantize_config.json").write_text(
        json.dumps({"bits": 8, "group_size": 128, "desc_act": False, "sym": True})
    )
    write_bin(official, load_file(out / "model.safetensors"), "gptq_model-8bit-128g.bin")
    model = AutoModelForCausalLM.from_pretrained(official, device_map={"": "cpu"}, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(model(IDS).logits, load_model(out, device="cpu", dtype="bfloat16")(IDS))


def test_refusals(tmp_path: Path) -> None:
    out = gptq_folder(tmp_path)
    with pytest.raises(ConfigError, match="ignore_mismatched_sizes has no effect"):
        AutoModelForCausalLM.from_pretrained(out, ignore_mismatched_sizes=True)
    with pytest.raises(ConfigError, match="onto one device"):
        AutoModelForCausalLM.from_pretrained(out, device_map={"transformer": 0, "lm_head": 1})


def test_chat(tmp_path: Path) -> None:
    out = telechat.quantize(
        "demo",
        tmp_path / "demo-int8",
        QuantizeConfig(method="gptq", bits=8, group_size=128),
        texts=["<_user>你是谁？<_bot>"],
    )
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    answer, _ = model.chat(
        tokenizer=tokenizer, question="你是谁？", history=[], generation_config=model.generation_config
    )
    assert "TeleChat" in answer


def test_the_attention_form_is_obeyed(tmp_path: Path) -> None:
    out = gptq_folder(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    block = model.transformer.blocks[0].self_attention
    assert block.attention is reference_attention
    with pytest.raises(ConfigError, match="attn_implementation is 'flex_attention'; TeleChat has eager"):
        AutoModelForCausalLM.from_pretrained(out, attn_implementation="flex_attention")


def test_int8_is_not_saved_either(tmp_path: Path) -> None:
    write_config(tmp_path / "plain", PLAIN)
    write_safetensors(tmp_path / "plain", tensors_of(random_model(PLAIN)))
    for name, is_dynamic in (("static", False), ("dynamic", True)):
        config = Int8Config(is_dynamic=is_dynamic)
        out = telechat.quantize(tmp_path / "plain", tmp_path / name, config, examples=ROWS)
        model = AutoModelForCausalLM.from_pretrained(out)
        with pytest.raises(CheckpointError, match="quantised model is not saved from here"):
            model.save_pretrained(tmp_path / "saved")
