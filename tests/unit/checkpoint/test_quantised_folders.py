"""Folders that GPTQ and AWQ tools write, in all their spellings: loaded as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.checkpoint.folders import random_model, tensors_of, write_bin, write_config, write_safetensors
from tests.unit.quant.quant_models import PLAIN, quantised_layers
from torch import Tensor

from telechat import load_model
from telechat.checkpoint import check_folder, save_model
from telechat.checkpoint.gptq import pack_words
from telechat.checkpoint.packed import from_codes
from telechat.errors import CheckpointError
from telechat.models import parameter_table
from telechat.models.executors import choose_executor
from telechat.models.native import native_obstacle
from telechat.models.quantized import is_quantisable
from telechat.ops.cpu import library
from telechat.ops.quantized import OrderedWeight
from telechat.quant.gptq import dequantize, quantize_linear

SETTINGS = {
    "bits": 4,
    "group_size": 64,
    "damp_percent": 0.01,
    "desc_act": False,
    "sym": True,
    "true_sequential": True,
    "model_name_or_path": None,
    "model_file_base_name": None,
}
IDS = torch.arange(20)[None]


def quantised(
    bits: int = 4, group_size: int = 64, *, sym: bool = True, act_order: bool = False, format: str = "gptq"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors of a GPTQ checkpoint of PLAIN, the plain tensors they mean); the head is left as it is."""
    tensors = tensors_of(random_model(PLAIN))
    stored, meant = dict(tensors), dict(tensors)
    generator = torch.Generator().manual_seed(1)
    for parameter in parameter_table(PLAIN):
        if parameter.kind != "linear":
            continue
        base = parameter.name.removesuffix("weight")
        x = torch.randn(160, parameter.shape[1], generator=generator) * torch.rand(
            parameter.shape[1], generator=generator
        )
        packed = quantize_linear(tensors[parameter.name], x, bits, group_size, sym, act_order)
        meant[parameter.name] = dequantize(packed, bits)
        if format == "gptq_v2":
            words = packed["qzeros"].long() + sum(1 << place for place in range(0, 32, bits))
            packed["qzeros"] = torch.where(words >= 2**31, words - 2**32, words).int()
        del stored[parameter.name]
        stored.update({base + key: value for key, value in packed.items()})
    return stored, meant


def write(folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any], file: str = "") -> Path:
    """`file` is where the settings go; by default into config.json."""
    write_config(folder, PLAIN, **({} if file else {"quantization_config": settings}))
    write_safetensors(folder, {name: value.contiguous() for name, value in tensors.items()})
    if file:
        (folder / file).write_text(json.dumps(settings))
    return folder


def assert_means(folder: Path, meant: dict[str, Tensor]) -> None:
    model = load_model(folder, device="cpu", dtype="float32")
    layers = quantised_layers(model)
    for name, weight in meant.items():
        if name.removesuffix(".weight") in layers:
            loaded = layers[name.removesuffix(".weight")].dequantise()
        else:
            loaded = model.get_parameter(name).detach()
        assert torch.allclose(loaded, weight, atol=1e-6), name
    plain = random_model(PLAIN)
    plain.load_state_dict(meant)
    assert torch.allclose(model(IDS), plain(IDS), atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("format", ["gptq", "gptq_v2"])
def test_loaded_as_they_are(tmp_path: Path, bits: int, sym: bool, act_order: bool, format: str) -> None:
    stored, meant = quantised(bits, sym=sym, act_order=act_order, format=format)
    settings = {**SETTINGS, "bits": bits, "quant_method": "gptq", "checkpoint_format": format, "sym": sym}
    folder = write(tmp_path, stored, settings)
    assert_means(folder, meant)
    assert not [problem for problem in check_folder(folder).problems if "tokenizer" not in problem]


@pytest.mark.parametrize("group_size", [32, 128, -1])
def test_group_sizes(tmp_path: Path, group_size: int) -> None:
    stored, meant = quantised(4, group_size)
    assert_means(
        write(tmp_path, stored, {**SETTINGS, "group_size": group_size}, "quantize_config.json"), meant
    )
    layer = quantised_layers(load_model(tmp_path, device="cpu"))["transformer.h.0.mlp.down_proj"]
    assert (layer.scheme.bits, layer.scheme.group_size) == (4, 128 if group_size == -1 else group_size)


def test_the_official_folder(tmp_path: Path) -> None:
    """One pickle under AutoGPTQ's name, names without the prefix, zero biases, no word about the format."""
    stored, meant = quantised(8, 128)
    stored = {name.removeprefix("transformer."): value for name, value in stored.items()}
    stored["h.0.self_attention.query.bias"] = torch.zeros(PLAIN.hidden_size, dtype=torch.float16)
    write_config(tmp_path, PLAIN)
    write_bin(tmp_path, stored, "gptq_model-8bit-128g.bin")
    (tmp_path / "quantize_config.json").write_text(json.dumps({**SETTINGS, "bits": 8, "group_size": 128}))
    assert_means(tmp_path, meant)
    stored["h.0.self_attention.query.bias"][3] = 1
    write_bin(tmp_path, stored, "gptq_model-8bit-128g.bin")
    with pytest.raises(CheckpointError, match=r"bias for transformer\.h\.0\.self_attention\.query"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("name", ["gptq_model-4bit-64g.safetensors", "my-model.safetensors"])
def test_names_of_the_weight_file(tmp_path: Path, name: str) -> None:
    stored, meant = quantised()
    settings = dict(SETTINGS)
    if not name.startswith("gptq"):
        settings["model_file_base_name"] = name.removesuffix(".safetensors")
    write_config(tmp_path, PLAIN)
    write_safetensors(tmp_path, stored, name)
    (tmp_path / "quantize_config.json").write_text(json.dumps(settings))
    assert_means(tmp_path, meant)
    write_safetensors(tmp_path, stored, "gptq_model-8bit-64g.safetensors")
    if name.startswith("gptq"):
        with pytest.raises(CheckpointError, match="which of them is meant"):
            load_model(tmp_path)


def test_layers_may_differ(tmp_path: Path) -> None:
    """Some plain, some of other bits."""
    stored, meant = quantised()
    others, meant_others = quantised(8)
    for name in list(stored):
        if ".mlp.down_proj." in name and not name.endswith("bias"):
            stored[name] = others[name]
        if ".self_attention.query." in name:
            del stored[name]
    down = [name for name in meant if name.endswith("down_proj.weight")]
    meant.update({name: meant_others[name] for name in down})
    query = {name: value for name, value in tensors_of(random_model(PLAIN)).items() if "query" in name}
    stored.update(query)
    meant.update(query)
    dynamic = {"+:.*down_proj": {"bits": 8}, "-:.*query": {}}
    folder = write(tmp_path, stored, {**SETTINGS, "quant_method": "gptq", "dynamic": dynamic})
    assert_means(folder, meant)
    model = load_model(folder, device="cpu")
    assert "transformer.h.0.self_attention.query" not in quantised_layers(model)
    with pytest.raises(CheckpointError, match="cannot be saved: layers differ"):
        save_model(model, tmp_path / "saved")


def test_who_computes(tmp_path: Path) -> None:
    """Neighbouring groups run in the kernels' decoder, integers of -128 too; other orders layer by layer."""
    stored, _ = quantised(8)
    name = "transformer.h.0.mlp.up_proj.qweight"
    stored[name] = torch.zeros_like(stored[name])  # code 0, zero point 128: all integers are -128
    folder = write(tmp_path / "plain", stored, {**SETTINGS, "bits": 8, "quant_method": "gptq"})
    model = load_model(folder, device="cpu")
    layer = quantised_layers(model)["transformer.h.0.mlp.up_proj"]
    assert int(layer.stored.integers().max()) == -128
    if library.obstacle() is None:
        x, expected = torch.randn(3, 128), layer.dequantise()
        assert layer.bind("c").startswith("c ")
        assert torch.allclose(
            layer(x), x @ expected.t(), rtol=0.02, atol=0.02 * float((x @ expected.t()).abs().max())
        )
        assert native_obstacle(load_model(folder, device="cpu").eval()) is None
    stored, _ = quantised(4, act_order=True)
    folder = write(tmp_path / "ordered", stored, {**SETTINGS, "quant_method": "gptq"})
    model = load_model(folder, device="cpu").eval()
    assert "takes its inputs in another order" in str(native_obstacle(model))
    assert "takes its inputs in another order" in choose_executor(model).describe()
    with pytest.raises(CheckpointError, match="inputs in another order"):
        save_model(load_model(folder, device="cpu"), tmp_path / "saved")


def awq_words(values_RN: Tensor) -> Tensor:
    """Outputs in the order in which AWQ packs them, written down field by field from the description."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    shuffled = values_RN.view(values_RN.shape[0], -1, 8)[:, :, order].reshape(values_RN.shape)
    return pack_words(shuffled.t().contiguous(), 4).t().contiguous()


@pytest.mark.parametrize("file", ["quant_config.json", ""])
def test_awq(tmp_path: Path, file: str) -> None:
    tensors = tensors_of(random_model(PLAIN))
    stored, meant = dict(tensors), dict(tensors)
    generator = torch.Generator().manual_seed(2)
    for parameter in parameter_table(PLAIN):
        if "mlp" not in parameter.name or parameter.kind != "linear":
            continue
        (n, k), base = parameter.shape, parameter.name.removesuffix("weight")
        codes = torch.randint(16, (k, n), generator=generator)
        zeros = torch.randint(16, (k // 64, n), generator=generator)
        scales = (torch.rand(k // 64, n, generator=generator) * 0.01).half()
        per_input = torch.arange(k) // 64
        meant[parameter.name] = ((codes - zeros[per_input]) * scales.float()[per_input]).t().contiguous()
        del stored[parameter.name]
        stored |= {
            base + "qweight": awq_words(codes),
            base + "qzeros": awq_words(zeros),
            base + "scales": scales,
        }
    settings = {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}
    if not file:
        settings = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}
    folder = write(tmp_path, stored, settings, file)
    assert_means(folder, meant)
    if library.obstacle() is None:
        assert native_obstacle(load_model(folder, device="cpu").eval()) is None


def test_other_orders_of_inputs() -> None:
    from telechat.checkpoint.gptq import Codes

    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(128).view(2, 64).t().reshape(-1) // 64
    codes = Codes(
        torch.randint(16, (8, 128), generator=generator, dtype=torch.uint8),
        torch.full((2, 8), 8, dtype=torch.uint8),
        torch.rand(2, 8, generator=generator).half(),
        groups,
    )
    weight = from_codes(codes)
    assert isinstance(weight, OrderedWeight) and weight.weight.scheme.group_size == 64
    assert torch.equal(weight.dequantise(), codes.dequantise())
    # Groups that nothing makes into 32 neighbours, and integers that 8 bits do not hold, stay floats.
    odd = Codes(codes.codes_NK, codes.zeros_GN, codes.scales_GN, (torch.arange(128) >= 40).long())
    wide = Codes(codes.codes_NK + 200, codes.zeros_GN, codes.scales_GN, groups)
    for plain in (odd, wide):
        assert torch.equal(from_codes(plain), plain.dequantise())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "quantize_config.json: bits is 3; three bits"),
        ({"bits": 5}, "bits is 5"),
        ({"bits": "4"}, "bits is '4'; it must be a whole number"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": -2}, "group_size is -2"),
        ({"damp_percent": 1.5}, "damp_percent is 1.5"),
        ({"quant_method": "marlin"}, "quantised .method marlin."),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"bits": 8}, "qweight has shape"),
        ({"group_size": 128}, "qzeros has shape"),
        ({"dynamic": {"+:(": {"bits": 8}}}, "no regular expression"),
        ({"dynamic": ["down_proj"]}, r"dynamic is \['down_proj'\]; it must be an object"),
        ({"dynamic": {"+:.*": 8}}, r"dynamic has 8 for '\+:\.\*'; expected an object"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ version 'gemv'"),
        ({"quant_method": "awq", "bits": 8}, "bits is 8; AWQ weights have 4"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    stored, _ = quantised()
    folder = write(tmp_path, stored, {**SETTINGS, **change}, "quantize_config.json")
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, device="cpu")


def test_damaged_tensors(tmp_path: Path) -> None:
    stored, _ = quantised()
    name = "transformer.h.1.mlp.up_proj.g_idx"
    stored[name] = stored[name] + 1
    folder = write(tmp_path, stored, SETTINGS, "quantize_config.json")
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.up_proj\.weight: g_idx must hold 128 numbers"):
        load_model(folder, device="cpu")
    del stored[name.replace("g_idx", "scales")]
    folder = write(tmp_path, stored, SETTINGS, "quantize_config.json")
    with pytest.raises(CheckpointError, match=r"lacks transformer\.h\.1\.mlp\.up_proj\.scales"):
        load_model(folder, device="cpu")


def test_the_table_says_what_may_be_quantised() -> None:
    assert {parameter.kind for parameter in parameter_table(PLAIN) if is_quantisable(parameter)} == {
        "linear",
        "head",
    }
