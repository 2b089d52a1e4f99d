"""Paged attention equals its reference for mixed batches, and a row depends on nothing but its sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from telechat.ops.cpu.attention import obstacle, paged_attention
from telechat.ops.cpu.context import Context
from telechat.ops.paged import INT4, PagedCache, Sequences, paged_attention_reference, quantise_vectors

INTEGERS = [torch.int8, INT4]
# (new tokens, tokens in the cache with them): decoding, a whole prompt, a later chunk, an exact block.
MIXED = [(1, 1), (1, 50), (37, 37), (20, 61), (1, 128), (16, 16), (3, 130)]


def filled(
    lengths: list[int],
    *,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[PagedCache, list[list[int]]]:
    """A cache whose blocks are handed out in random order; NaN wherever no token is."""
    generator = torch.Generator().manual_seed(1)
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts) + 2, generator=generator).tolist()
    shape = (len(order), num_kv_heads, block_size, head_dim)
    floats = dtype if dtype.is_floating_point else torch.float32
    stored = [torch.full(shape, torch.nan, dtype=floats) for _ in range(2)]
    tables = []
    for length, count in zip(lengths, counts, strict=True):
        table, order = order[:count], order[count:]
        tables.append(table)
        for tensor in stored:
            for number, block in enumerate(table):
                used = min(block_size, length - number * block_size)
                values = torch.randn(num_kv_heads, used, head_dim, generator=generator)
                tensor[block, :, :used] = values.to(floats)
    if dtype == floats:
        return PagedCache(*stored), tables
    # NaN becomes whatever; its scale stays NaN.
    (keys, key_scales), (values, value_scales) = (quantise_vectors(tensor, dtype) for tensor in stored)
    return PagedCache(keys, values, key_scales, value_scales), tables


def queries(count: int, num_heads: int, head_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, num_heads, head_dim, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("block_size", [16, 32, 96, 128])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(4, 4, 64), (8, 2, 128), (2, 2, 160), (6, 2, 16), (40, 2, 48)],
    ids=str,
)
def test_equals_the_reference(
    context: Context, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int
) -> None:
    cache, tables = filled(
        [length for _, length in MIXED], block_size=block_size, num_kv_heads=num_kv_heads, head_dim=head_dim
    )
    sequences = Sequences.of([new for new, _ in MIXED], [length for _, length in MIXED], tables)
    q = queries(sum(new for new, _ in MIXED), num_heads, head_dim)
    expected = paged_attention_reference(q, cache, sequences)
    torch.testing.assert_close(paged_attention(context, q, cache, sequences), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16])
def test_types(context: Context, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    cache, tables = filled([40, 33], block_size=16, num_kv_heads=2, head_dim=64, dtype=cache_dtype)
    sequences = Sequences.of([9, 1], [40, 33], tables)
    q = queries(10, 4, 64, dtype)
    expected = paged_attention_reference(q, cache, sequences)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    out = paged_attention(context, q, cache, sequences)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(4, 4, 64), (8, 2, 128), (3, 3, 160), (2, 1, 32), (4, 2, 80), (6, 2, 16)],
)
def test_integer_caches(
    context: Context, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    lengths = [length for _, length in MIXED]
    cache, tables = filled(lengths, block_size=32, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)
    sequences = Sequences.of([new for new, _ in MIXED], lengths, tables)
    q = queries(sum(new for new, _ in MIXED), num_heads, head_dim)
    expected = paged_attention_reference(q, cache, sequences)
    torch.testing.assert_close(paged_attention(context, q, cache, sequences), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, *INTEGERS], ids=str)
def test_rows_do_not_depend_on_chunks_or_neighbours(context: Context, dtype: torch.dtype) -> None:
    cache, tables = filled([45, 70], block_size=32, num_kv_heads=2, head_dim=64, dtype=dtype)
    q = queries(45, 4, 64)
    whole = paged_attention(context, q, cache, Sequences.of([45], [45], tables[:1]))
    for cut in (1, 16, 30, 44):
        first = paged_attention(context, q[:cut], cache, Sequences.of([cut], [cut], tables[:1]))
        second = paged_attention(context, q[cut:], cache, Sequences.of([45 - cut], [45], tables[:1]))
        assert torch.equal(torch.cat([first, second]), whole)
    with_other = torch.cat([queries(1, 4, 64), q[44:]])
    both = paged_attention(context, with_other, cache, Sequences.of([1, 1], [70, 45], tables[::-1]))
    assert torch.equal(both[1], whole[44])


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, *INTEGERS], ids=str)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(2, 2, 128), (8, 2, 64), (3, 3, 160), (4, 1, 48), (20, 1, 16)]
)
def test_fast_prompts(
    context: Context, num_heads: int, num_kv_heads: int, head_dim: int, cache_dtype: torch.dtype
) -> None:
    """Prompts in chunks short and long beside decoding; the fast way rounds queries and weights to bf16."""
    work = [(40, 40), (1, 77), (300, 300), (33, 700), (31, 50), (600, 1100)]
    lengths = [length for _, length in work]
    cache, tables = filled(
        lengths,
        block_size=32,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=cache_dtype,
    )
    sequences = Sequences.of([new for new, _ in work], lengths, tables, num_decoding=2)
    q = queries(sum(new for new, _ in work), num_heads, head_dim) * 2
    expected = paged_attention_reference(q, cache, sequences)
    out = paged_attention(context, q, cache, sequences, deterministic=False)
    exact = paged_attention(context, q, cache, sequences)
    assert torch.equal(out[:41], exact[:41])
    assert torch.equal(out, exact) == (context.isa != "amx")
    assert float((out - expected).square().mean().sqrt() / expected.square().mean().sqrt()) < 0.005
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.03)


def test_block_size_does_not_change_bits(context: Context) -> None:
    generator = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(128, 2, 64, generator=generator) for _ in range(2))
    q = queries(5, 4, 64)
    results = []
    for block_size in (16, 32, 64, 128):
        blocks = 128 // block_size
        cache = PagedCache(
            *(x.view(blocks, block_size, 2, 64).transpose(1, 2).contiguous() for x in (keys, values))
        )
        results.append(paged_attention(context, q, cache, Sequences.of([5], [101], [list(range(blocks))])))
    assert all(torch.equal(result, results[0]) for result in results)


def test_large_scores(context: Context) -> None:
    cache, tables = filled([64], block_size=64, num_kv_heads=1, head_dim=64)
    q = queries(1, 1, 64) * 200
    expected = paged_attention_reference(q, cache, Sequences.of([1], [64], tables))
    out = paged_attention(context, q, cache, Sequences.of([1], [64], tables))
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)


def test_obstacles() -> None:
    cache, tables = filled([16], block_size=16, num_kv_heads=2, head_dim=64)
    sequences = Sequences.of([1], [16], tables)
    assert obstacle(queries(1, 4, 64), cache, sequences) is None
    assert "do not fit the cache" in str(obstacle(queries(1, 3, 64), cache, sequences))
    wide = PagedCache(*(torch.zeros(1, 2, 16, 72) for _ in range(2)))
    assert "72 is not a multiple" in str(obstacle(queries(1, 4, 72), wide, sequences))
    long = Sequences(sequences.query_starts.long(), sequences.kv_lengths, sequences.block_tables)
    assert "int32" in str(obstacle(queries(1, 4, 64), cache, long))
    for dtype in INTEGERS:
        whole, _ = filled([16], block_size=16, num_kv_heads=2, head_dim=64, dtype=dtype)
        assert obstacle(queries(1, 4, 64), whole, sequences) is None
        bare = PagedCache(whole.keys, whole.values)
        assert "scales" in str(obstacle(queries(1, 4, 64), bare, sequences))
        assert whole.key_scales is not None and whole.value_scales is not None
        half = PagedCache(whole.keys, whole.values, whole.key_scales.half(), whole.value_scales.half())
        assert "scales" in str(obstacle(queries(1, 4, 64), half, sequences))
