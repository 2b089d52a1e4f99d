"""The quantised linear layer: equal to a plain one with the weights it means, whatever form computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from telechat.layers.quantized import QuantizedLinear, bind_products, set_module
from telechat.ops.quantized import WeightScheme


def make_linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 64, bias=bias)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_a_plain_layer_of_its_weights(bits: int, bias: bool) -> None:
    linear = make_linear(bias)
    layer = QuantizedLinear.from_linear(linear, WeightScheme(bits, 32))
    plain = copy.deepcopy(linear)
    plain.weight.data = layer.dequantise()
    x = torch.randn(2, 3, 128)
    assert torch.allclose(layer(x), plain(x), atol=1e-5)
    assert (layer.dequantise() - linear.weight).abs().max() < 0.13 * linear.weight.abs().max()


def test_gradients_reach_the_activations() -> None:
    layer = QuantizedLinear.from_linear(make_linear(), WeightScheme(4, 32))
    x = torch.randn(3, 128, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, layer.dequantise().sum(0).expand(3, -1), atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_bound_layer_holds_one_form_only(bits: int) -> None:
    layer = QuantizedLinear.from_linear(make_linear(), WeightScheme(bits, 32))
    x = torch.randn(2, 3, 128)
    before, memory = layer(x), layer.weight_bytes
    model = nn.Sequential(layer)
    chosen = bind_products(model)
    [(how, count)] = chosen.items()
    assert count == 1 and how.startswith(layer.product_name) and layer.is_bound
    if layer.product_name == "dequantise":
        pytest.skip(f"torch has no faster product here: {how}")
    assert layer.qweight is None and layer.scales is None
    tensors = [value for value in vars(layer._product).values() if isinstance(value, torch.Tensor)]
    if tensors:
        # bf16 pairs instead of fp16 scales: at most half a bit per weight more.
        assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= memory + 128 * 64 // 16
    assert (layer(x) - before).abs().max() < 0.05 * before.std()
    assert bind_products(model) == {}
    with pytest.raises(AssertionError, match="cannot be moved"):
        model.to(torch.bfloat16)


def test_a_change_of_dtype_leaves_the_weights_exact() -> None:
    layer = QuantizedLinear.from_linear(make_linear(), WeightScheme(4, 32))
    before = layer.dequantise()
    nn.Sequential(layer).to(torch.bfloat16)
    assert layer.scales is not None and layer.scales.dtype == torch.float16
    assert torch.equal(layer.dequantise(), before)
    assert layer.bias is not None and layer.bias.dtype == torch.bfloat16
    assert layer(torch.randn(1, 128, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_state_dict_round_trip() -> None:
    scheme = WeightScheme(4, 64)
    first, second = (QuantizedLinear.from_linear(make_linear(), scheme) for _ in range(2))
    second.qweight.zero_()  # type: ignore[union-attr]
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.dequantise(), second.dequantise())


def test_takes_the_place_of_a_module() -> None:
    model = nn.ModuleDict({"inner": nn.ModuleDict({"linear": make_linear()})})
    layer = QuantizedLinear.from_linear(make_linear(), WeightScheme(8, 32))
    set_module(model, "inner.linear", layer)
    set_module(model, "head", layer)
    assert model.get_submodule("inner.linear") is layer and model.get_submodule("head") is layer
