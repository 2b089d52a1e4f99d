"""Int8 products: the worked example of the format, exact sums, and every form against the definition."""

from __future__ import annotations

import pytest
import torch

from telechat.checkpoint.ascend import read_deq_scale, stored_static
from telechat.layers.int8 import DynamicInt8Linear, StaticInt8Linear
from telechat.ops.int8 import (
    ActivationRange,
    DynamicWeight,
    OneDnnProduct,
    StaticReference,
    StaticWeight,
    accumulate,
    quantise_rows,
)


def test_worked_example() -> None:
    inputs = ActivationRange.spanning(-1.0, 2.0)
    assert inputs.scale == pytest.approx(3 / 255) and inputs.offset == -43
    weight = StaticWeight.from_float(torch.tensor([[0.5, -0.25]]), torch.tensor([0.1]), inputs)
    assert weight.weight.tolist() == [[127, -64]] and weight.quant_bias.tolist() == [4868]
    assert float(weight.deq_scale) == pytest.approx(4.63177e-05, rel=1e-4)
    x = torch.tensor([[2.0, -1.0]])
    assert inputs.quantise(x).tolist() == [[127, -128]]
    assert accumulate(inputs.quantise(x), weight.weight).tolist() == [[24321]]
    assert float(StaticReference(weight)(x)) == pytest.approx(1.35197, rel=1e-5)
    stored = stored_static("p.weight", weight, torch.float16)["p.deq_scale"]
    assert stored.dtype == torch.int64 and torch.equal(read_deq_scale(stored), weight.deq_scale)
    assert float(read_deq_scale(torch.tensor([943867211]))) == pytest.approx(4.63177e-05, rel=1e-5)


def layer(n: int = 48, k: int = 96) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(n, k, generator=generator), torch.randn(n, generator=generator)
    return weight, bias, torch.randn(40, k, generator=generator) * 2 + 0.5


def test_sums_are_exact() -> None:
    q = torch.randint(-128, 128, (17, 4096), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    weight = torch.randint(
        -128, 128, (33, 4096), generator=torch.Generator().manual_seed(2), dtype=torch.int8
    )
    expected = q.long() @ weight.long().t()
    assert torch.equal(accumulate(q, weight).long(), expected)
    assert (
        int(accumulate(torch.full((1, 4096), -128, dtype=torch.int8), weight[:1] * 0 - 128)) == 4096 * 2**14
    )


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onednn_is_the_reference(rows: int, dtype: torch.dtype) -> None:
    obstacle = OneDnnProduct.obstacle(torch.device("cpu"))
    if obstacle:
        pytest.skip(obstacle)
    weight, bias, x = layer()
    static = StaticWeight.from_float(weight, bias, ActivationRange.spanning(float(x.min()), float(x.max())))
    x = x[:rows].to(dtype)
    reference, fast = StaticReference(static)(x), OneDnnProduct(static)(x)
    assert fast.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert torch.allclose(fast.float(), reference.float(), rtol=tolerance, atol=tolerance)
    exact = x.float() @ weight.t() + bias
    assert float((reference.float() - exact).square().mean() / exact.square().mean()) < 2e-3


def test_layers() -> None:
    weight, bias, x = layer()
    static = StaticWeight.from_float(weight, bias, ActivationRange.spanning(float(x.min()), float(x.max())))
    dynamic = DynamicWeight(*quantise_rows(weight))
    exact = x @ weight.t() + bias
    for module in (StaticInt8Linear(static), DynamicInt8Linear(dynamic, bias)):
        out = module(x.view(4, 10, -1))
        assert out.shape == (4, 10, 48) and (out.view(40, 48) - exact).abs().max() < 1.0
    assert torch.allclose(static.dequantise(), weight, atol=0.03)
    assert torch.allclose(static.plain_bias(), bias, atol=1e-3)


def test_channels_of_zeros_and_ranges_of_nothing() -> None:
    weight, bias, _ = layer()
    weight[3] = 0
    static = StaticWeight.from_float(weight, bias, ActivationRange.spanning(0.0, 0.0))
    assert int(static.weight[3].abs().max()) == 0 and bool(static.deq_scale.isfinite().all())
    assert StaticReference(static)(torch.zeros(1, 96))[0, 3] == pytest.approx(float(bias[3]), abs=1.0)
    narrow = ActivationRange.spanning(3.0, 5.0)  # widened to contain 0
    assert narrow.quantise(torch.tensor([0.0, 5.0])).tolist() == [-128, 127]


def test_signed_and_unsigned_integers() -> None:
    """By the definition, in pieces of rows too, and without touching what is quantised."""
    x = torch.randn(70, 4096, generator=torch.Generator().manual_seed(3)) * 3
    before, inputs = x.clone(), ActivationRange.spanning(-4.0, 7.0)
    q = inputs.quantise(x)
    expected = (x / inputs.scale + inputs.offset).round().clamp(-128, 127)
    assert torch.equal(q.float(), expected) and torch.equal(x, before)
    assert torch.equal(inputs.quantise(x, is_unsigned=True).int(), q.int() + 128)
