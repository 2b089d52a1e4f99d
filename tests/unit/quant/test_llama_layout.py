"""GPTQ written as a quantised Llama: the same numbers in stock transformers and in compressed-tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.quant.quant_models import EXPERTS, PLAIN, TIED
from tests.unit.quant.test_gptq_folder import gptq, plain_folder
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from telechat import QuantizeConfig, load_model
from telechat.checkpoint.hub import demo_folder
from telechat.errors import CheckpointError, ConfigError
from telechat.models import TeleChatConfig
from telechat.tokenizer import load_tokenizer
from telechat.tokenizer.jinja_template import jinja_of

IDS = torch.arange(2, 30).view(2, 14)


def dequantised(folder: Path, bits: int, group_size: int) -> dict[str, Tensor]:
    """Llama's plain tensors, by the format's description."""
    stored = load_file(folder / "model.safetensors")
    plain = {name: value for name, value in stored.items() if ".weight_" not in name}
    for name in [name for name in stored if name.endswith(".weight_packed")]:
        base = name.removesuffix("_packed")
        rows, columns = stored[f"{base}_shape"].tolist()
        words, shifts = stored[name].long() & 0xFFFFFFFF, torch.arange(0, 32, bits)
        codes = (words[..., None] >> shifts & (2**bits - 1)).view(rows, columns) - 2 ** (bits - 1)
        grouped = codes.view(rows, -1, group_size) * stored[f"{base}_scale"].float()[..., None]
        plain[base] = grouped.view(rows, columns)
    return plain


def stock_model(folder: Path, tensors: dict[str, Tensor]) -> LlamaForCausalLM:
    raw = json.loads((folder / "config.json").read_text())
    section = raw.pop("quantization_config")
    assert section["ignore"] == ["lm_head"] and section["format"] == "pack-quantized"
    model = LlamaForCausalLM(LlamaConfig(**raw)).eval()
    missing, extra = model.load_state_dict(tensors, strict=False)
    assert not extra and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (PLAIN, {}),
        (TIED, {"bits": 8, "group_size": 64}),
        (PLAIN.replace(embed_layernorm=True), {"desc_act": True}),
    ],
    ids=["int4", "int8", "act-order"],
)
def test_a_stock_llama_computes_the_same(
    tmp_path: Path, config: TeleChatConfig, settings: dict[str, Any]
) -> None:
    source = plain_folder(tmp_path / "plain", config)
    ours = load_model(gptq(source, tmp_path / "ours", **settings), device="cpu")
    out = gptq(source, tmp_path / "llama", layout="llama", **settings)
    group_size = settings.get("group_size", 32)
    model = stock_model(out, dequantised(out, settings.get("bits", 4), group_size))
    with torch.inference_mode():
        assert torch.allclose(model(IDS).logits, ours(IDS), atol=1e-4)
    assert not (out / "quantize_config.json").exists() and (out / "tokenizer.json").exists()


def test_a_chat_format_told_by_the_generation_settings(tmp_path: Path) -> None:
    """As the 115B's is."""
    source = plain_folder(tmp_path / "plain")
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copy(demo_folder() / name, source / name)
    (source / "tokenizer_config.json").write_text("{}")
    out = gptq(source, tmp_path / "llama", layout="llama")
    given, made = load_tokenizer(source), load_tokenizer(out)
    assert made.chat_format.name == given.chat_format.name == "telechat2-115b"
    template = json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    assert template == jinja_of("telechat2-115b")


@pytest.mark.oracle
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_reads_it(tmp_path: Path, bits: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    source = plain_folder(tmp_path / "plain")
    out = gptq(source, tmp_path / "llama", layout="llama", bits=bits)
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    scheme = quantization.QuantizationConfig.model_validate(section).config_groups["group_0"]
    assert (scheme.weights.num_bits, scheme.weights.group_size) == (bits, 32)
    stored, meant = load_file(out / "model.safetensors"), dequantised(out, bits, 32)
    for name in [name for name in stored if name.endswith(".weight_packed")]:
        base = name.removesuffix("_packed")
        integers = helpers.unpack_from_int32(stored[name], bits, torch.Size(stored[f"{base}_shape"].tolist()))
        weight = integers.view(len(integers), -1, 32) * stored[f"{base}_scale"].float()[..., None]
        assert torch.equal(weight.view_as(meant[base]), meant[base]), base


@pytest.mark.oracle
@pytest.mark.parametrize("bits", [4, 8])
def test_transformers_loads_it_by_compressed_tensors(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("compressed_tensors")
    source = plain_folder(tmp_path / "plain")
    ours = load_model(gptq(source, tmp_path / "ours", bits=bits), device="cpu")
    out = gptq(source, tmp_path / "llama", layout="llama", bits=bits)
    stock = AutoModelForCausalLM.from_pretrained(out).eval()
    assert "weight_packed" in dict(stock.model.layers[0].mlp.up_proj.named_parameters())
    prompt = IDS[:1] + 8  # no padding among it
    with torch.inference_mode():
        assert torch.allclose(stock(prompt).logits, ours(prompt), atol=1e-4)
        made = stock.generate(prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False)
        ids = prompt
        for _ in range(64):
            logits = ours(ids)[:, -1:].clone()
            logits[..., ours.config.eos_token_id] = -torch.inf  # as min_new_tokens does
            ids = torch.cat([ids, logits.argmax(-1)], 1)
    assert torch.equal(made, ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "gguf"}, "layout is 'gguf'"),
        ({"bits": 2}, "all layers have 4 or 8 bits"),
        ({"bits_for": (("*", 8),)}, "all layers have 4 or 8 bits"),
        ({"sym": False}, "weights are symmetric"),
        ({"desc_act": True, "static_groups": False}, "groups are static"),
        ({"group_size": -1}, "the group size is 32, 64, 128"),
    ],
)
def test_what_it_cannot_hold(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantizeConfig(**{"method": "gptq", "layout": "llama", **settings})


def test_no_mixture(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "plain", EXPERTS)
    with pytest.raises(CheckpointError, match="mixture of experts is no Llama"):
        gptq(source, tmp_path / "out", layout="llama")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]
