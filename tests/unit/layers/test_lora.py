"""A layer with a low-rank update equals one with the changed weight, in floats and in integers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from telechat.layers.lora import LowRankUpdate, attach, frozen_weight
from telechat.layers.quantized import QuantizedLinear
from telechat.ops.quantized import WeightScheme

IN, OUT, RANK, SCALE = 64, 48, 4, 0.7


def make_layer(kind: str, *, bias: bool = True) -> nn.Linear | QuantizedLinear:
    torch.manual_seed(0)
    layer = nn.Linear(IN, OUT, bias=bias).requires_grad_(False)
    return layer if kind == "float" else QuantizedLinear.from_linear(layer, WeightScheme(int(kind[3:]), 32))


def with_update(
    layer: nn.Linear | QuantizedLinear, *, uses_dora: bool = False, dropout: float = 0.0
) -> LowRankUpdate:
    update = LowRankUpdate(layer, rank=RANK, scale=SCALE, dropout=dropout, uses_dora=uses_dora)
    attach(layer, update)
    with torch.no_grad():
        update.b.normal_(generator=torch.Generator().manual_seed(1))
        if update.magnitude is not None:
            update.magnitude.mul_(torch.linspace(0.5, 1.5, OUT))
    return update


def changed_weight(layer: nn.Linear | QuantizedLinear, update: LowRankUpdate) -> Tensor:
    """The formulas of the papers."""
    weight = frozen_weight(layer) + SCALE * update.b @ update.a
    if update.magnitude is None:
        return weight
    return update.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True).detach()


@pytest.mark.parametrize("kind", ["float", "int8", "int4"])
@pytest.mark.parametrize("uses_dora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_changed_weight_and_so_do_its_gradients(kind: str, uses_dora: bool, bias: bool) -> None:
    layer = make_layer(kind, bias=bias)
    update = with_update(layer, uses_dora=uses_dora)
    x = torch.randn(3, 5, IN, requires_grad=True)
    toward = torch.randn(3, 5, OUT)
    of = [x, update.a, update.b, *([update.magnitude] if update.magnitude is not None else [])]
    got = layer(x)
    expected = nn.functional.linear(x, changed_weight(layer, update), layer.bias)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad((got * toward).sum(), of),
        torch.autograd.grad((expected * toward).sum(), of),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("uses_dora", [False, True])
def test_a_fresh_update_changes_nothing(uses_dora: bool) -> None:
    layer = make_layer("float")
    x = torch.randn(4, IN)
    before = layer(x)
    update = LowRankUpdate(layer, rank=RANK, scale=SCALE, uses_dora=uses_dora)
    attach(layer, update)
    torch.testing.assert_close(layer(x), before)
    with torch.no_grad():
        update.b.fill_(1.0)
    assert not torch.allclose(layer(x), before)


def test_the_start_is_that_of_peft() -> None:
    """Kaiming's uniform start with a = sqrt(5) is uniform in +-1 / sqrt(in)."""
    layer = nn.Linear(4096, 16)
    update = LowRankUpdate(layer, rank=64, scale=1.0, generator=torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(4096)
    a = update.a.detach()
    assert a.abs().max() <= bound < 1.01 * a.abs().max()
    assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert not update.b.any()


def test_dropout_in_training_only() -> None:
    layer = make_layer("float")
    update = with_update(layer, dropout=0.5)
    x = torch.randn(4, IN)
    expected = nn.functional.linear(x, changed_weight(layer, update), layer.bias)
    assert not torch.allclose(layer(x), expected, atol=1e-3)
    layer.eval()
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_layer_keeps_no_float_weight_for_the_backward_pass(kind: str) -> None:
    layer = make_layer(kind)
    with_update(layer)
    x = torch.randn(2, IN, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert kept and all(tensor.numel() < IN * OUT for tensor in kept)


def test_under_autocast_products_are_bf16_and_trained_matrices_stay_fp32() -> None:
    layer = make_layer("int4")
    update = with_update(layer)
    x = torch.randn(2, IN, requires_grad=True)
    expected = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)
    got.sum().backward()
    assert update.a.grad is not None and update.a.grad.dtype == torch.float32
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert 0 < (got.float() - expected).abs().max() < 0.05 * expected.abs().max()
