"""The paged cache by Triton equals its reference: the write with the rotary embedding, and attention."""

from __future__ import annotations

import pytest
import torch
from tests.unit.ops.cuda.tolerances import assert_near
from torch import Tensor

from telechat.ops.cuda import paged as triton_paged
from telechat.ops.paged import (
    INT4,
    PagedCache,
    Sequences,
    dequantise_vectors,
    paged_attention_reference,
    quantise_vectors,
    rope_and_store_reference,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (query heads, key/value heads, head dimension): plain, grouped, 12B, one head dimension per power of two.
HEADS = [(4, 4, 32), (6, 2, 64), (2, 1, 160)]
# (new tokens, tokens in the cache with them): decoding, a whole prompt, a later chunk, an exact block.
MIXED = [(1, 1), (1, 50), (20, 20), (9, 61), (1, 64)]


def random_cache(
    lengths: list[int],
    *,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[PagedCache, list[list[int]]]:
    """A cache whose blocks are handed out in random order; not a number wherever no token is."""
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts) + 2).tolist()
    shape = (len(order), num_kv_heads, block_size, head_dim)
    filled = [torch.full(shape, torch.nan) for _ in range(2)]
    tables = []
    for length, count in zip(lengths, counts, strict=True):
        table, order = order[:count], order[count:]
        tables.append(table)
        for stored in filled:
            for number, block in enumerate(table):
                used = min(block_size, length - number * block_size)
                stored[block, :, :used] = torch.randn(num_kv_heads, used, head_dim)
    if dtype.is_floating_point:
        return PagedCache(*(stored.to(device, dtype) for stored in filled)), tables
    (keys, key_scales), (values, value_scales) = (quantise_vectors(stored, dtype) for stored in filled)
    return PagedCache(*(x.to(device) for x in (keys, values, key_scales, value_scales))), tables


def queries(num_rows: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(num_rows, num_heads, head_dim).to(device, dtype)


def check_attention(
    device: torch.device,
    steps: list[tuple[int, int]],
    heads: tuple[int, int, int],
    *,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
) -> None:
    num_heads, num_kv_heads, head_dim = heads
    cache, tables = random_cache(
        [length for _, length in steps],
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=cache_dtype or dtype,
        device=device,
    )
    sequences = Sequences.of([new for new, _ in steps], [length for _, length in steps], tables).to(device)
    q = queries(sum(new for new, _ in steps), num_heads, head_dim, dtype, device)
    assert triton_paged.form_obstacle(dtype, cache_dtype or dtype, head_dim) is None
    assert triton_paged.cache_obstacle(cache) is None
    actual = triton_paged.paged_attention(q, cache, sequences)
    assert_near(actual, paged_attention_reference(q, cache, sequences))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("block_size", [16, 96])
def test_attention_for_mixed_batches(
    device: torch.device, heads: tuple[int, int, int], block_size: int
) -> None:
    check_attention(device, MIXED, heads, block_size=block_size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention_in_half_precision(device: torch.device, dtype: torch.dtype) -> None:
    check_attention(device, MIXED, (6, 2, 64), dtype=dtype)


@pytest.mark.parametrize("steps", [[(1, 5), (1, 200), (1, 64)], [(4, 4), (3, 130)]], ids=["decode", "drafts"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_split_keys_are_merged(
    device: torch.device,
    steps: list[tuple[int, int]],
    heads: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_paged, "num_processors", lambda device: 1000)
    assert triton_paged.split_plan(max(length for _, length in steps), 100)[1] > 1
    check_attention(device, steps, heads)


@pytest.mark.parametrize("heads", [(4, 2, 64), (2, 1, 80)], ids=str)
@pytest.mark.parametrize("cache_dtype", [torch.int8, INT4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_over_a_cache_of_integers(
    device: torch.device,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    heads: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_paged, "num_processors", lambda device: 1000)
    check_attention(device, [(1, 33), (1, 100)], heads, dtype=dtype, cache_dtype=cache_dtype)
    check_attention(device, MIXED, heads, dtype=dtype, cache_dtype=cache_dtype)


def test_uncounted_sequences(device: torch.device) -> None:
    """Without the counts on the host the kernel finds them itself."""
    cache, tables = random_cache(
        [20, 40], block_size=16, num_kv_heads=2, head_dim=32, dtype=torch.float32, device=device
    )
    counted = Sequences.of([3, 1], [20, 40], tables).to(device)
    plain = Sequences(counted.query_starts, counted.kv_lengths, counted.block_tables)
    q = queries(4, 2, 32, torch.float32, device)
    assert_near(triton_paged.paged_attention(q, cache, plain), paged_attention_reference(q, cache, plain))


def test_split_plan() -> None:
    """Enough stretches to keep processors busy, none very short, none very long, not too many."""
    plan = triton_paged.split_plan
    assert plan(1, 9) == (64, 1)
    assert plan(512, 9) == (64, 8)
    assert plan(1024, 9) == (128, 8)
    assert plan(4096, 9) == (512, 8)
    assert plan(512, 1) == (512, 1)
    assert plan(513, 1) == (512, 2)
    assert plan(131072, 1) == (2048, 64)


@pytest.mark.parametrize("heads", [(5, 3, 64), (4, 2, 160)], ids=str)
@pytest.mark.parametrize("cache_dtype", [*DTYPES, torch.int8, INT4], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_and_store(
    device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, heads: tuple[int, int, int]
) -> None:
    num_heads, num_kv_heads, head_dim = heads
    num_new, block_size = 5, 16
    caches = [
        PagedCache.allocate(4, num_kv_heads, block_size, head_dim, dtype=cache_dtype, device=device)
        for _ in range(2)
    ]
    # Queries, keys and values as one wide projection leaves them: rows further apart than they are long.
    wide = torch.randn(num_new, (num_heads + 2 * num_kv_heads) * head_dim).to(device, dtype)
    wide[0, num_heads * head_dim :] = 0  # a vector of zeros has the scale 0
    cos, sin = torch.rand(2, num_new, head_dim, device=device).unbind()
    slots = torch.tensor([0, 17, 63, 40, 5], device=device)
    results = []
    for function, cache in zip((rope_and_store_reference, triton_paged.rope_and_store), caches, strict=True):
        copy = wide.clone()
        q = copy[:, : num_heads * head_dim].view(num_new, num_heads, head_dim)
        kv = copy[:, num_heads * head_dim :].view(num_new, num_kv_heads, 2, head_dim)
        function(q, kv, cos, sin, slots, cache)
        results.append(q)
    expected, actual = caches
    assert_near(results[1], results[0])
    if cache_dtype.is_floating_point:
        coarser = max((dtype, cache_dtype), key=lambda kind: torch.finfo(kind).eps)
        assert_near(actual.keys, expected.keys, dtype=coarser)
        assert_near(actual.values, expected.values, dtype=coarser)
        return
    assert expected.key_scales is not None and actual.key_scales is not None
    assert expected.value_scales is not None and actual.value_scales is not None
    if cache_dtype == INT4:
        check_int4(actual.keys, actual.key_scales, expected.keys, expected.key_scales)
    else:
        assert_near(actual.key_scales, expected.key_scales, dtype=dtype)
        most = 1 if dtype != torch.bfloat16 else 2  # bf16 is cut off, not rounded, by the interpreter
        assert int((actual.keys.int() - expected.keys.int()).abs().max()) <= most
    # Values are not rotated: nothing is rounded before they become integers.
    assert torch.equal(actual.values, expected.values)
    assert torch.equal(actual.value_scales, expected.value_scales)


def check_int4(codes: Tensor, scales: Tensor, expected_codes: Tensor, expected_scales: Tensor) -> None:
    """Scales alike but for the last bits of bf16, elements within a step, nearly all of them much nearer."""
    assert codes.shape == expected_codes.shape
    torch.testing.assert_close(scales, expected_scales, rtol=2**-6, atol=1e-6)
    step = float(expected_scales[..., 1].max())
    found, wanted = dequantise_vectors(codes, scales), dequantise_vectors(expected_codes, expected_scales)
    off = (found - wanted).abs() / step
    assert float(off.max()) < 1.2
    assert float((off > 0.3).float().mean()) < 0.02


def test_obstacles_are_named(device: torch.device) -> None:
    assert "even number" in str(triton_paged.form_obstacle(torch.float32, torch.float32, 33))
    assert "even number" in str(triton_paged.form_obstacle(torch.float32, torch.float32, 320))
    assert "not float64" in str(triton_paged.form_obstacle(torch.float64, torch.float64, 64))
    assert "multiple of 4" in str(triton_paged.form_obstacle(torch.float32, INT4, 34))
    for dtype in (INT4, torch.int8):
        good = PagedCache.allocate(2, 2, 16, 32, dtype=dtype)
        assert triton_paged.cache_obstacle(good) is None
        assert "scales" in str(triton_paged.cache_obstacle(PagedCache(good.keys, good.values)))
    assert "differ" in str(triton_paged.cache_obstacle(PagedCache(good.keys.float(), good.values)))
