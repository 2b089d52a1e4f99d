"""Rotary embedding and the write into the paged cache, in one launch."""

import triton
import triton.language as tl

# Adding and taking away 1.5 * 2**23 rounds an fp32 below 2**22 to the nearest integer, ties to even.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def _rotated(first_at, second_at, cos_at, sin_at, live, half):
    """Both halves of rotated vectors [heads, half], fp32 rounded to the vectors' dtype."""
    first = tl.load(first_at, mask=live, other=0.0).to(tl.float32)
    second = tl.load(second_at, mask=live, other=0.0).to(tl.float32)
    cos_first = tl.load(cos_at, mask=live, other=0.0)
    cos_second = tl.load(cos_at + half, mask=live, other=0.0)
    sin_first = tl.load(sin_at, mask=live, other=0.0)
    sin_second = tl.load(sin_at + half, mask=live, other=0.0)
    turned_first = first * cos_first - second * sin_first
    turned_second = second * cos_second + first * sin_second
    dtype = first_at.dtype.element_ty
    return turned_first.to(dtype).to(tl.float32), turned_second.to(dtype).to(tl.float32)


@triton.jit
def _rounded(x):
    return (x + _ROUNDER) - _ROUNDER


@triton.jit
def _to_bf16(x):
    """To nearest, ties to even; the interpreter's own conversion would cut bits off."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return bits.to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _as_integers(x, inverse):
    return _rounded(tl.minimum(tl.maximum(x * inverse[:, None], -127.0), 127.0)).to(tl.int8)


@triton.jit
def _as_pairs(codes, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Codes [HEADS, HALF] of four bits as bytes [HEADS, HALF // 2]."""
    early, late = tl.split(tl.reshape(codes.to(tl.int32), [HEADS, HALF // 2, 2]))
    return (early | (late << 4)).to(tl.uint8)


@triton.jit
def _store_int4(
    first, second, stored_at, scale_at, live_head, half,
    HEADS: tl.constexpr, HALF: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A group may have elements of both halves, so each is looked for in both."""
    place = tl.arange(0, HALF)[None, :]
    inside = place < half
    low_codes, high_codes = tl.zeros([HEADS, HALF], tl.float32), tl.zeros([HEADS, HALF], tl.float32)
    for group in tl.static_range(GROUPS):
        in_first = (place // GROUP == group) & inside
        in_second = ((place + half) // GROUP == group) & inside
        most = tl.maximum(
            tl.max(tl.where(in_first, first, float("-inf")), 1),
            tl.max(tl.where(in_second, second, float("-inf")), 1),
        )
        least = tl.minimum(
            tl.min(tl.where(in_first, first, float("inf")), 1),
            tl.min(tl.where(in_second, second, float("inf")), 1),
        )
        stored = _to_bf16(least)
        stored_scale = _to_bf16(tl.div_rn(most - least, 15.0))
        tl.store(scale_at + 2 * group, stored, mask=live_head)
        tl.store(scale_at + 2 * group + 1, stored_scale, mask=live_head)
        minimum, scale = stored.to(tl.float32), stored_scale.to(tl.float32)
        inverse = tl.where(scale > 0.0, tl.div_rn(1.0, tl.where(scale > 0.0, scale, 1.0)), 0.0)
        low_codes = tl.where(in_first, _rounded((first - minimum[:, None]) * inverse[:, None]), low_codes)
        high_codes = tl.where(in_second, _rounded((second - minimum[:, None]) * inverse[:, None]), high_codes)
    low_codes = tl.minimum(tl.maximum(low_codes, 0.0), 15.0)
    high_codes = tl.minimum(tl.maximum(high_codes, 0.0), 15.0)
    pairs = tl.arange(0, HALF // 2)[None, :]
    live = live_head[:, None] & (pairs < half // 2)
    tl.store(stored_at[:, None] + pairs, _as_pairs(low_codes, HEADS, HALF), mask=live)
    tl.store(stored_at[:, None] + half // 2 + pairs, _as_pairs(high_codes, HEADS, HALF), mask=live)


@triton.jit
def _store(
    first, second, stored_at, scale_at, live_head, half,
    HEADS: tl.constexpr, HALF: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write vectors [HEADS, 2 * half] to the cache; see `telechat.ops.paged.PagedCache` for integers."""
    place = tl.arange(0, HALF)[None, :]
    live = live_head[:, None] & (place < half)
    at = stored_at[:, None] + place
    if BITS == 4:
        _store_int4(first, second, stored_at, scale_at, live_head, half, HEADS, HALF, GROUPS, GROUP)
    elif BITS == 8:
        largest = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
        inverse = tl.where(largest > 0.0, tl.div_rn(127.0, tl.where(largest > 0.0, largest, 1.0)), 0.0)
        tl.store(at, _as_integers(first, inverse), mask=live)
        tl.store(at + half, _as_integers(second, inverse), mask=live)
        tl.store(scale_at, tl.div_rn(largest, 127.0), mask=live_head)
    else:
        dtype = stored_at.dtype.element_ty
        tl.store(at, first.to(dtype), mask=live)
        tl.store(at + half, second.to(dtype), mask=live)


@triton.jit
def rope_and_store(
    queries, kv, cos, sin, slots, keys, values, key_scales, value_scales,
    query_token_stride, query_head_stride, kv_token_stride, kv_head_stride, kv_part_stride, table_stride,
    block_stride, head_stride, token_stride, scale_block_stride, scale_head_stride, scale_token_stride,
    num_heads, num_kv_heads, half, query_programs,
    BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, BITS: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Program (token, p): rotates HEADS query heads in place, or stores HEADS key/value heads.

    Programs p < query_programs have the queries, the others the keys and values. BITS is 8 or 4 of integers
    and 0 of floats.
    """
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    place = tl.arange(0, HALF)
    heads = tl.arange(0, HEADS)
    cos_at = cos + token * table_stride + place[None, :] + heads[:, None] * 0
    sin_at = sin + token * table_stride + place[None, :] + heads[:, None] * 0
    if part < query_programs:
        heads += part * HEADS
        live = (heads < num_heads)[:, None] & (place < half)[None, :]
        at = queries + token * query_token_stride + heads[:, None] * query_head_stride + place[None, :]
        first, second = _rotated(at, at + half, cos_at, sin_at, live, half)
        dtype = queries.dtype.element_ty
        tl.store(at, first.to(dtype), mask=live)
        tl.store(at + half, second.to(dtype), mask=live)
    else:
        heads += (part - query_programs) * HEADS
        live_head = heads < num_kv_heads
        live = live_head[:, None] & (place < half)[None, :]
        at = kv + token * kv_token_stride + heads[:, None] * kv_head_stride + place[None, :]
        slot = tl.load(slots + token).to(tl.int64)
        block = slot // BLOCK_SIZE
        offset = slot % BLOCK_SIZE
        cached = block * block_stride + offset * token_stride + heads * head_stride
        scale = block * scale_block_stride + offset * scale_token_stride + heads * scale_head_stride
        k_at, v_at, k_scale, v_scale = (
            keys + cached,
            values + cached,
            key_scales + scale,
            value_scales + scale,
        )
        first, second = _rotated(at, at + half, cos_at, sin_at, live, half)
        _store(first, second, k_at, k_scale, live_head, half, HEADS, HALF, BITS, GROUPS, GROUP)
        first = tl.load(at + kv_part_stride, mask=live, other=0.0).to(tl.float32)
        second = tl.load(at + kv_part_stride + half, mask=live, other=0.0).to(tl.float32)
        _store(first, second, v_at, v_scale, live_head, half, HEADS, HALF, BITS, GROUPS, GROUP)
