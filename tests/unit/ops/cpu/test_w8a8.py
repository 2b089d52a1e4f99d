"""Products of int8 activations and int8 weights: the very bits of the definition, at every level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from telechat.ops.cpu.context import Context
from telechat.ops.cpu.matmul import matmul
from telechat.ops.cpu.weights import PackedWeight
from telechat.ops.int8 import (
    ActivationRange,
    DynamicWeight,
    StaticReference,
    StaticWeight,
    accumulate,
    dynamic_product,
    quantise_rows,
)

# Below, at and past the heights of tiles, and the form of many rows.
ROWS = (1, 2, 7, 8, 9, 16, 17, 32, 50, 81)
SHAPES = [(16, 64), (40, 100), (96, 640), (1096, 192)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def static(rows: int, columns: int) -> StaticWeight:
    inputs = ActivationRange.spanning(-2.5, 4.0)
    return StaticWeight.from_float(random(rows, columns), random(rows, seed=1), inputs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_static_is_the_definition_to_the_bit(context: Context, shape: tuple[int, int]) -> None:
    weight = static(*shape)
    packed, reference = PackedWeight.pack_w8a8(context, weight), StaticReference(weight)
    for M in ROWS:
        x = random(M, shape[1], seed=M) * 2
        assert torch.equal(matmul(context, x, packed), reference(x))
        half = x.bfloat16()
        assert torch.equal(matmul(context, half, packed, out_dtype=torch.float32), reference(half.float()))


@pytest.mark.parametrize(("rows", "columns"), [(300, 4460), (125, 8800)])
def test_many_rows_of_many_inputs(any_context: Context, rows: int, columns: int) -> None:
    """AMX takes the inputs in parts: with odd numbers of tiles and panels, and a short last part."""
    weight = static(40, columns)
    x = random(rows, columns, seed=8) * 2
    assert torch.equal(
        matmul(any_context, x, PackedWeight.pack_w8a8(any_context, weight)), StaticReference(weight)(x)
    )
    dynamic = DynamicWeight(*quantise_rows(random(40, columns)))
    packed = PackedWeight.pack_w8a8(any_context, dynamic)
    assert torch.equal(matmul(any_context, x, packed), dynamic_product(x, dynamic))


def test_sums_are_integers(context: Context) -> None:
    """With all scales 1 and nothing added, the result is the sum of products, exact where fp32 is."""
    generator = torch.Generator().manual_seed(3)
    q = torch.randint(-128, 128, (33, 320), generator=generator, dtype=torch.int8)
    integers = torch.randint(-128, 128, (48, 320), generator=generator, dtype=torch.int8)
    zeros = torch.zeros(48, dtype=torch.int32)
    packed = PackedWeight.pack_w8a8(
        context, StaticWeight(integers, torch.ones(48), zeros, ActivationRange(1.0, 0))
    )
    expected = accumulate(q, integers)
    assert int(expected.abs().max()) < 2**24
    for M in (1, 9, 33):
        assert torch.equal(matmul(context, q[:M].float(), packed).int(), expected[:M])


def test_extreme_integers_do_not_overflow(context: Context) -> None:
    for weight_value, input_value in ((-128, -128), (-128, 127), (127, -128), (127, 127)):
        integers = torch.full((16, 12288), weight_value, dtype=torch.int8)
        bias = torch.full((16,), 5, dtype=torch.int32)
        weight = StaticWeight(integers, torch.ones(16), bias, ActivationRange(1.0, 0))
        packed = PackedWeight.pack_w8a8(context, weight)
        for M in (1, 20):
            out = matmul(context, torch.full((M, 12288), float(input_value)), packed)
            expected = torch.tensor(12288 * weight_value * input_value + 5).float()
            assert torch.equal(out, expected.expand(M, 16))


def test_inputs_are_held_within_their_range(context: Context) -> None:
    """Far outside, at ties, and at the ends."""
    weight = StaticWeight(
        torch.eye(64, dtype=torch.int8),
        torch.ones(64),
        torch.zeros(64, dtype=torch.int32),
        ActivationRange(0.5, 3),
    )
    x = torch.tensor([1e30, -1e30, 0.25, 0.75, -0.25, 62.0, 62.5, -65.5, -66.0, 1e-30]).repeat(1, 7)[:, :64]
    packed = PackedWeight.pack_w8a8(context, weight)
    assert torch.equal(matmul(context, x, packed), weight.inputs.quantise(x).float())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dynamic_is_the_definition_to_the_bit(context: Context, shape: tuple[int, int]) -> None:
    weight = DynamicWeight(*quantise_rows(random(*shape)))
    packed, bias = PackedWeight.pack_w8a8(context, weight), random(shape[0], seed=1)
    for M in ROWS:
        x = random(M, shape[1], seed=M) * torch.arange(1, M + 1)[:, None]
        x[M // 2] = 0
        assert torch.equal(matmul(context, x, packed), dynamic_product(x, weight))
        assert torch.equal(matmul(context, x, packed, bias), dynamic_product(x, weight) + bias)


def test_adds_to_what_is_there(context: Context) -> None:
    weight = static(40, 96)
    packed = PackedWeight.pack_w8a8(context, weight)
    for M in (1, 20, 81):
        x, before = random(M, 96, seed=4), random(M, 40, seed=5)
        out = before.clone()
        assert matmul(context, x, packed, add_to=out) is out
        assert torch.equal(out, before + StaticReference(weight)(x))


def test_no_rows_and_no_unpacking(any_context: Context) -> None:
    packed = PackedWeight.pack_w8a8(any_context, static(24, 64))
    assert matmul(any_context, torch.zeros(0, 64), packed).shape == (0, 24)
    with pytest.raises(AssertionError):
        packed.unpack()
    with pytest.raises(AssertionError):
        packed.take_rows(torch.tensor([0]))
