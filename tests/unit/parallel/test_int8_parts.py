"""Weights with int8 activations, cut by rank: their exact sums put together again are those of the whole."""

from __future__ import annotations

import pytest
import torch
from tests.distributed.models import make_config

from telechat.models import parameter_table
from telechat.ops.int8 import ActivationRange, DynamicWeight, StaticWeight, accumulate, quantise_rows
from telechat.parallel.sharding import Layout, Shard, adds_bias, cut_int8, shard_table

INPUTS = ActivationRange.spanning(-3.0, 5.0)


def parts_of(weight: StaticWeight, name: str, tp: int) -> list[tuple[Shard, StaticWeight]]:
    layout, config = Layout(tp=tp), make_config(heads=8, kv_heads=8)
    found = []
    for rank in range(tp):
        shard = shard_table(config, layout, rank)[name]
        part = cut_int8(weight, shard, adds_bias=adds_bias(name, layout, rank))
        assert isinstance(part, StaticWeight) and part.inputs == weight.inputs
        found.append((shard, part))
    return found


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_sums_are_those_of_the_whole_to_the_bit(tp: int) -> None:
    generator = torch.Generator().manual_seed(0)
    linears = [p for p in parameter_table(make_config(heads=8, kv_heads=8)) if p.kind == "linear"]
    for parameter in linears[:6]:
        N, K = parameter.shape
        plain, bias = torch.randn(N, K, generator=generator), torch.randn(N, generator=generator)
        whole = StaticWeight.from_float(plain, bias, INPUTS)
        q = INPUTS.quantise(torch.randn(5, K, generator=generator) * 2)
        expected = accumulate(q, whole.weight) + whole.quant_bias
        sums = []
        for shard, part in parts_of(whole, parameter.name, tp):
            own = q if shard.dim != 1 else q[:, shard.start : shard.stop]
            sums.append(accumulate(own, part.weight.contiguous()) + part.quant_bias)
            same_scales = whole.deq_scale if shard.dim != 0 else whole.deq_scale[shard.start : shard.stop]
            assert torch.equal(part.deq_scale, same_scales)
        is_row_parallel = parameter.axes[0] == "hidden"
        together = sum(sums) if is_row_parallel else torch.cat(sums, 1)
        assert isinstance(together, torch.Tensor) and together.dtype == torch.int32
        assert torch.equal(together, expected)
        if is_row_parallel:
            assert not any(bool(part.quant_bias.any()) for _, part in parts_of(whole, parameter.name, tp)[1:])


def test_dynamic_weights() -> None:
    layout, config = Layout(tp=2), make_config(heads=8, kv_heads=2)
    shards = shard_table(config, layout, 1)
    for layer, dim in (("self_attention.query", 0), ("self_attention.dense", 1)):
        shard = shards[f"transformer.h.0.{layer}.weight"]
        whole = DynamicWeight(*quantise_rows(torch.randn(shard.parameter.shape)))
        part = cut_int8(whole, shard, adds_bias=False)
        assert isinstance(part, DynamicWeight) and shard.dim == dim
        assert torch.equal(part.weight, whole.weight.chunk(2, dim)[1])
        assert torch.equal(part.scales, whole.scales.chunk(2)[1] if dim == 0 else whole.scales)
