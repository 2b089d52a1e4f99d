"""Packing loses nothing but what the format rounds away."""

from __future__ import annotations

import pytest
import torch

from telechat.errors import ConfigError
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.weights import (
    FORMATS,
    GROUPS,
    PackedWeight,
    WeightFormat,
    dequantise_reference,
    quantise_reference,
)

SHAPES = [(16, 64), (40, 100), (1, 5), (33, 257)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("weight_format", ["int4", "int8"])
def test_quantised_as_the_reference(
    any_context: Context, weight_format: WeightFormat, group: int, shape: tuple[int, int]
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[0, :3] = 0
    expected = dequantise_reference(*quantise_reference(weight, weight_format, group), group)
    assert torch.equal(PackedWeight.pack(any_context, weight, weight_format, group).unpack(), expected)
    error = (expected - weight).abs().max()
    assert error <= weight.abs().max() / (7 if weight_format == "int4" else 127)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("weight_format", ["int4", "int8"])
def test_given_integers_and_scales_come_back(
    any_context: Context, weight_format: WeightFormat, group: int
) -> None:
    low, high = (-8, 8) if weight_format == "int4" else (-127, 128)
    q = torch.randint(low, high, (50, 300), dtype=torch.int8)
    scales = torch.randn(50, -(-300 // group)).half()
    packed = PackedWeight.pack_quantised(any_context, q, scales, weight_format, group)
    assert torch.equal(packed.unpack(), dequantise_reference(q, scales, group))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_floats_come_back(any_context: Context, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape).to(dtype)
    assert torch.equal(PackedWeight.pack(any_context, weight, "float32").unpack(), weight.float())
    packed = PackedWeight.pack(any_context, weight, "bfloat16")
    assert torch.equal(packed.unpack(), weight.bfloat16().float())


@pytest.mark.parametrize("weight_format", ["int4", "int8"])
def test_half_precision_sources_quantise_alike(any_context: Context, weight_format: WeightFormat) -> None:
    weight = torch.randn(20, 96).half()
    from_half = PackedWeight.pack(any_context, weight, weight_format).unpack()
    assert torch.equal(from_half, PackedWeight.pack(any_context, weight.float(), weight_format).unpack())


@pytest.mark.parametrize("weight_format", ["int4", "int8"])
def test_tiny_and_zero_weights(any_context: Context, weight_format: WeightFormat) -> None:
    # Scales this small are subnormal in fp16, or zero.
    for size in (0.0, 1e-9, 1e-6, 1e-4):
        weight = torch.randn(16, 64) * size
        expected = dequantise_reference(*quantise_reference(weight, weight_format), 32)
        assert torch.equal(PackedWeight.pack(any_context, weight, weight_format).unpack(), expected)


def test_memory_per_weight(any_context: Context) -> None:
    zeros = torch.zeros(64, 256)
    bits = {name: PackedWeight.pack(any_context, zeros, name).num_bytes * 8 / 64 / 256 for name in FORMATS}
    assert bits.pop("compact") == pytest.approx(12, rel=0.01)
    assert bits == {"int4": 4.5, "int8": 8.5, "bfloat16": 16, "float32": 32}


def test_what_cannot_be_packed_is_refused(any_context: Context) -> None:
    with pytest.raises(ConfigError, match="group is 48"):
        PackedWeight.pack(any_context, torch.zeros(16, 96), "int4", 48)
    with pytest.raises(ConfigError, match="Unknown weight format"):
        PackedWeight.pack(any_context, torch.zeros(16, 96), "int3")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="from -8 to 7"):
        q = torch.full((16, 32), 8, dtype=torch.int8)
        PackedWeight.pack_quantised(any_context, q, torch.ones(16, 1).half(), "int4", 32)
