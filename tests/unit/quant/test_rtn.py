"""Models quantised in memory and while they are loaded: which layers, how well, and with how much memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.unit.checkpoint.folders import random_model, tensors_of, write_bin, write_config, write_safetensors
from tests.unit.checkpoint.test_streaming import LiveBytes
from tests.unit.quant.quant_models import EXPERTS, PLAIN, TIED, assert_same, quantised_layers

from telechat import load_model
from telechat.errors import ConfigError
from telechat.models import TeleChatConfig, parameter_table
from telechat.models.executors import choose_executor
from telechat.models.quantized import untied
from telechat.ops.cpu import library
from telechat.quant import quantize_model


@pytest.mark.parametrize("config", [PLAIN, TIED, EXPERTS], ids=["plain", "tied", "experts"])
def test_linear_layers_and_head_are_quantised_and_nothing_else(config: TeleChatConfig) -> None:
    model = random_model(config)
    before = tensors_of(model)
    quantize_model(model, 4, 32)
    layers = quantised_layers(model)
    table = parameter_table(untied(config))
    assert set(layers) == {p.name.removesuffix(".weight") for p in table if p.kind in ("linear", "head")}
    assert not model.config.tie_word_embeddings
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])
    head = before["transformer.word_embeddings.weight" if config.tie_word_embeddings else "lm_head.weight"]
    assert (layers["lm_head"].dequantise() - head).abs().max() < 0.13 * head.abs().max()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("config", [PLAIN, TIED, EXPERTS], ids=["plain", "tied", "experts"])
def test_logits_stay_near(config: TeleChatConfig, bits: int) -> None:
    """Against the model with the very weights that are meant the difference is rounding of fp32 sums; against
    the plain model it is that of the weights."""
    plain = random_model(config)
    quantised = quantize_model(random_model(config), bits, 32)
    meant = random_model(untied(config))
    with torch.no_grad():
        meant.transformer.word_embeddings.weight.copy_(plain.transformer.word_embeddings.weight)
        for name, layer in quantised_layers(quantised).items():
            meant.get_submodule(name).weight.copy_(layer.dequantise())  # type: ignore[union-attr,operator]
        # Fixed: an expert chosen by a hair's breadth would make another one of them.
        ids = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))
        out = quantised(ids)
        assert torch.allclose(out, meant(ids), atol=1e-4)
        relative = (out - plain(ids)).std() / plain(ids).std()
    assert relative < (0.02 if bits == 8 else 0.3)


def test_bad_models_are_refused_by_name() -> None:
    odd = PLAIN.replace(ffn_hidden_size=192)
    with pytest.raises(ConfigError, match=r"h\.0\.mlp\.down_proj\.weight .* 192 inputs .* groups of 128"):
        quantize_model(random_model(odd), 4, 128)
    with pytest.raises(ConfigError, match="Choose a group size of 32 or 64"):
        quantize_model(random_model(odd), 4, 128)
    with pytest.raises(ConfigError, match="No group size"):
        quantize_model(random_model(PLAIN.replace(ffn_hidden_size=200)), 4, 32)
    broken = random_model(PLAIN)
    broken.transformer.h[1].mlp.up_proj.weight.data[3, 5] = float("nan")  # type: ignore[union-attr,index]
    with pytest.raises(ConfigError, match=r"h\.1\.mlp\.up_proj\.weight cannot .* not finite"):
        quantize_model(broken, 8, 64)
    with pytest.raises(ConfigError, match="quantised already"):
        quantize_model(quantize_model(random_model(PLAIN), 8, 64), 8, 64)
    with pytest.raises(ConfigError, match="bits is 5"):
        quantize_model(random_model(PLAIN), 5)


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("config", [PLAIN, TIED, EXPERTS], ids=["plain", "tied", "experts"])
def test_quantised_while_loading_is_quantised_after_loading(
    tmp_path: Path, layout: str, config: TeleChatConfig
) -> None:
    write_config(tmp_path, config)
    write = write_safetensors if layout == "safetensors" else write_bin
    write(tmp_path, tensors_of(random_model(config)))
    for name, bits in (("int8", 8), ("int4", 4)):
        loaded = load_model(tmp_path, device="cpu", quantize=name, group_size=64)
        assert_same(loaded, quantize_model(load_model(tmp_path, device="cpu"), bits, 64))
        assert not loaded.training


def test_the_stored_precision_is_what_is_rounded(tmp_path: Path) -> None:
    """Not the weights rounded to bf16 first."""
    write_config(tmp_path, PLAIN)
    write_safetensors(tmp_path, tensors_of(random_model(PLAIN)))
    loaded = load_model(tmp_path, device="cpu", dtype="bfloat16", quantize="int8")
    assert loaded.dtype == torch.bfloat16
    expected = quantised_layers(quantize_model(random_model(PLAIN), 8, 32))
    for name, layer in quantised_layers(loaded).items():
        assert torch.equal(layer.dequantise(), expected[name].dequantise())


def test_peak_is_the_quantised_model_and_one_tensor(tmp_path: Path) -> None:
    config = PLAIN.replace(num_layers=6, ffn_hidden_size=1024)
    tensors = tensors_of(random_model(config))
    write_config(tmp_path, config)
    write_safetensors(tmp_path, tensors)
    with LiveBytes() as live:
        loaded = load_model(tmp_path, device="cpu", dtype="bfloat16", quantize="int4")
    size = sum(value.nbytes for value in loaded.state_dict().values())
    largest = max(value.nbytes for value in tensors.values())
    plain = sum(value.nbytes for value in tensors.values())
    # Rounding holds a copy of the tensor in fp32 and some more of a piece of it; these tensors are one piece.
    assert size <= live.peak <= size + 7 * largest < plain


def test_wrong_wishes(tmp_path: Path) -> None:
    write_config(tmp_path, PLAIN)
    write_safetensors(tmp_path, tensors_of(random_model(PLAIN)))
    with pytest.raises(ConfigError, match="int3"):
        load_model(tmp_path, quantize="int3")
    with pytest.raises(ConfigError, match="group_size is 48"):
        load_model(tmp_path, quantize="int4", group_size=48)
    with pytest.raises(ConfigError, match="group_size is 32, but the weights are not to be quantised"):
        load_model(tmp_path, group_size=32)


@pytest.mark.parametrize("bits", [8, 4])
def test_executors_with_and_without_kernels(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler torch's own products take over, and the choice is in the log line."""
    if library.obstacle() is None:
        executor = choose_executor(quantize_model(random_model(TIED).eval(), bits, 64))
        assert f"int{bits} in groups of 64" in executor.describe()
    monkeypatch.setattr(library, "obstacle", lambda: "there is no compiler")
    model = quantize_model(random_model(TIED).eval(), bits, 64)
    executor = choose_executor(model)
    assert "there is no compiler" in executor.describe()
    assert all(layer.is_bound for layer in quantised_layers(model).values())
    names = {layer.product_name for layer in quantised_layers(model).values()}
    assert names <= {f"torch int{bits}", "torch int8 with one scale per output", "dequantise"}
