"""Every form of paged attention equals attention over the plain keys; storing and gathering are inverses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from telechat.ops import paged
from telechat.ops.attention import reference_attention
from telechat.ops.paged import (
    INT4,
    PagedCache,
    Sequences,
    dequantise_vectors,
    gather,
    groups_of_like_length,
    quantise_vectors,
)
from telechat.ops.paged_choice import choose_paged_kernels

# (new tokens, tokens with them): decoding, a prompt, a later chunk, an exact block, nothing new.
MIXED = [(1, 1), (1, 50), (37, 37), (20, 61), (1, 128), (16, 16), (0, 5), (1, 61)]
FORMS = [paged.paged_attention_reference, paged.paged_attention_sdpa]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(
    lengths: list[int],
    *,
    block_size: int,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
) -> tuple[PagedCache, list[list[int]], list[Tensor], list[Tensor]]:
    """A cache filled by `store_reference`, with the keys and values [length, K, d] that went into it."""
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(1)).tolist()
    cache = PagedCache.allocate(len(order), num_kv_heads, block_size, head_dim, dtype=dtype)
    if dtype.is_floating_point:
        cache.keys.fill_(math.nan)
        cache.values.fill_(math.nan)
    tables, all_keys, all_values = [], [], []
    for number, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table, order = order[:count], order[count:]
        keys, values = (random(length, num_kv_heads, head_dim, seed=2 * number + part) for part in (0, 1))
        slots = [table[place // block_size] * block_size + place % block_size for place in range(length)]
        paged.store_reference(keys, values, torch.tensor(slots), cache)
        tables.append(table)
        all_keys.append(keys)
        all_values.append(values)
    return cache, tables, all_keys, all_values


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("block_size", [1, 16, 96])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 32), (6, 2, 160), (3, 1, 20)])
def test_equals_attention_over_plain_keys(
    attention: paged.PagedAttentionFunction, block_size: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    lengths = [length for _, length in MIXED]
    cache, tables, keys, values = stored(
        lengths, block_size=block_size, num_kv_heads=num_kv_heads, head_dim=head_dim
    )
    q = random(sum(new for new, _ in MIXED), num_heads, head_dim, seed=99)
    out = attention(q, cache, Sequences.of([new for new, _ in MIXED], lengths, tables))
    start = 0
    for (new, length), k, v in zip(MIXED, keys, values, strict=True):
        whole = torch.cat([torch.zeros(length - new, num_heads, head_dim), q[start : start + new]])
        expected = reference_attention(whole[None], k[None], v[None], is_causal=True)[0, length - new :]
        torch.testing.assert_close(out[start : start + new], expected, rtol=1e-5, atol=1e-5)
        start += new


@pytest.mark.parametrize("head_dim", [32, 80])
@pytest.mark.parametrize("dtype", [torch.int8, INT4], ids=str)
@pytest.mark.parametrize("attention", FORMS)
def test_integers_are_attention_over_the_rounded_keys(
    attention: paged.PagedAttentionFunction, dtype: torch.dtype, head_dim: int
) -> None:
    lengths = [40, 33]
    cache, tables, keys, values = stored(lengths, block_size=16, head_dim=head_dim, dtype=dtype)
    assert (cache.dtype, cache.head_dim) == (dtype, head_dim)
    rounded = [[dequantise_vectors(*quantise_vectors(x, dtype)) for x in part] for part in (keys, values)]
    q = random(41, 4, head_dim, seed=9)
    out = attention(q, cache, Sequences.of([40, 1], lengths, tables))
    expected = reference_attention(q[None, :40], rounded[0][0][None], rounded[1][0][None], is_causal=True)
    torch.testing.assert_close(out[:40], expected[0], rtol=1e-5, atol=1e-5)
    expected = reference_attention(q[None, 40:], rounded[0][1][None], rounded[1][1][None])
    torch.testing.assert_close(out[40:], expected[0], rtol=1e-5, atol=1e-5)


def test_quantised_vectors() -> None:
    x = random(5, 3, 16) * torch.tensor([1e-3, 1.0, 1e3])[:, None]
    x[0, 0] = 0
    integers, scales = quantise_vectors(x)
    assert integers.dtype == torch.int8
    assert scales.shape == (5, 3)
    assert integers[0, 0].eq(0).all()
    assert scales[0, 0] == 0
    nonzero = integers[1:].abs().amax(-1)
    assert nonzero.eq(127).all()
    error = (integers.float() * scales[..., None] - x).abs()
    assert bool((error <= 0.5001 * scales[..., None]).all())


def test_int4_vectors_in_bytes() -> None:
    """Neighbours share a byte, the earlier one low; 32 elements share a minimum and a scale."""
    codes = [0, 15, *range(3, 15), *[7] * 18, 15, *range(7), 0, 4]
    x = torch.tensor([float(code) for code in codes])
    x[:32] = x[:32] * 0.25 - 2.5
    x[32:] = x[32:] * 2 + 96
    stored, scales = quantise_vectors(x, INT4)
    assert stored.tolist() == [early + 16 * late for early, late in zip(codes[::2], codes[1::2], strict=True)]
    assert scales.tolist() == [[-2.5, 0.25], [96, 2]]
    assert torch.equal(dequantise_vectors(stored, scales), x)


def test_int4_vectors_are_near() -> None:
    x = random(50, 3, 80) * torch.tensor([1e-3, 1.0, 1e3])[:, None] + 0.5
    x[0, 0] = 0
    x[1, 0] = 3
    stored, scales = quantise_vectors(x, INT4)
    assert stored.shape == (50, 3, 40) and stored.dtype == torch.uint8
    assert scales.shape == (50, 3, 3, 2) and scales.dtype == torch.bfloat16
    found = dequantise_vectors(stored, scales)
    assert torch.equal(found[:2, 0], x[:2, 0])
    for index, group in enumerate(x.split(32, -1)):
        minimum, step = scales[:, :, index].float().split(1, -1)
        # Half a step, and what the rounding of minimum and scale to 8 bits moves.
        limit = 0.501 * step + 2**-8 * (minimum.abs() + 15 * step)
        assert bool(((found.split(32, -1)[index] - group).abs() <= limit).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gather_gives_back_what_was_stored(dtype: torch.dtype) -> None:
    cache, tables, keys, values = stored([30, 17], block_size=16, dtype=dtype)
    for table, k, v in zip(tables, keys, values, strict=True):
        found_keys, found_values = gather(cache, torch.tensor(table), len(k), torch.float32)
        assert torch.equal(found_keys, k.to(dtype).float())
        assert torch.equal(found_values, v.to(dtype).float())


@pytest.mark.parametrize(
    ("dtype", "vector"), [(torch.float32, 128), (torch.bfloat16, 64), (torch.int8, 36), (INT4, 20)]
)
def test_bytes_per_block(dtype: torch.dtype, vector: int) -> None:
    assert PagedCache.bytes_per_block(3, 16, 32, dtype) == 2 * 3 * 16 * vector


def test_groups_of_like_length() -> None:
    lengths = [100, 10, 21, 55, 20, 49]
    assert groups_of_like_length(range(6), lengths) == [[1, 4], [2], [5, 3], [0]]
    groups = groups_of_like_length(range(6), lengths)
    assert sorted(index for group in groups for index in group) == list(range(6))
    for group in groups:
        assert 2 * min(lengths[i] for i in group) >= max(lengths[i] for i in group)
    assert groups_of_like_length([], lengths) == []


def test_choice_and_its_reason() -> None:
    cpu = torch.device("cpu")
    form = {"dtype": torch.float32, "cache_dtype": torch.float32, "head_dim": 64, "block_size": 16}
    odd = choose_paged_kernels(cpu, **{**form, "head_dim": 20})
    assert odd.name == "torch"
    assert "20 is not a multiple" in odd.reason
    assert "float64" in choose_paged_kernels(cpu, **{**form, "dtype": torch.float64}).reason
    assert choose_paged_kernels(torch.device("meta"), **form).name == "torch"
