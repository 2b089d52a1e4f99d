"""Attention over a paged cache: one kernel for decoding, for chunks of prompts and for checking drafts.

A program has one key/value head and BLOCK_M rows: BLOCK_M // GROUPS tokens of one sequence, each with the
GROUPS query heads that share the key/value head. With SPLIT, a program sees one stretch of the keys only and
`merge` puts the stretches together.
"""

import triton
import triton.language as tl


@triton.jit
def _from_codes(
    codes_at, scales_at, exists, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr
):
    """fp32 vectors [N, BLOCK_D] of an int4 cache; both addresses are [N]."""
    pairs = tl.arange(0, BLOCK_D // 2)
    reads = exists[:, None] & (pairs < HEAD_DIM // 2)[None, :]
    both = tl.load(codes_at[:, None] + pairs[None, :], mask=reads, other=0)
    at = scales_at[:, None] + (2 * pairs // GROUP * 2)[None, :]
    minimum = tl.load(at, mask=reads, other=0.0).to(tl.float32)
    scale = tl.load(at + 1, mask=reads, other=0.0).to(tl.float32)
    early = (both & 15).to(tl.float32) * scale + minimum
    late = (both >> 4).to(tl.float32) * scale + minimum
    return tl.interleave(early, late)


@triton.jit
def attend(
    queries, out, part_out, part_lse, keys, values, key_scales, value_scales,
    query_starts, kv_lengths, block_tables,
    query_token_stride, query_head_stride, out_token_stride, out_head_stride,
    block_stride, head_stride, token_stride, scale_block_stride, scale_head_stride, scale_token_stride,
    table_stride, num_heads, num_splits, tiles, split_keys, scale_log2,
    GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    SPLIT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (sequences * tiles, K, splits). part_out fp32 [T, H, splits, BLOCK_D], part_lse [T, H, splits].

    BITS is 8 or 4 of integers and 0 of floats.
    """
    TOKENS: tl.constexpr = BLOCK_M // GROUPS
    sequence = tl.program_id(0) // tiles
    first = (tl.program_id(0) % tiles) * TOKENS
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    start = tl.load(query_starts + sequence)
    num_new = tl.load(query_starts + sequence + 1) - start
    if first >= num_new:
        return
    length = tl.load(kv_lengths + sequence)
    rows = tl.arange(0, BLOCK_M)
    token = first + rows // GROUPS
    head = kv_head * GROUPS + rows % GROUPS
    live = (rows < TOKENS * GROUPS) & (token < num_new)
    position = length - num_new + token
    places = tl.arange(0, BLOCK_D)
    inside = places < HEAD_DIM
    row_token = (start + token).to(tl.int64)
    q_at = queries + row_token[:, None] * query_token_stride + head[:, None] * query_head_stride
    q = tl.load(q_at + places[None, :], mask=live[:, None] & inside[None, :], other=0.0).to(OPERAND)

    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    found = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    begin = split * split_keys
    # Past the last row's position no row of this tile sees anything.
    end = tl.minimum(length, length - num_new + first + TOKENS)
    if SPLIT:
        end = tl.minimum(end, begin + split_keys)
    for n in range(begin, end, BLOCK_N):
        key = n + tl.arange(0, BLOCK_N)
        exists = key < end
        block = tl.load(block_tables + sequence * table_stride + key // BLOCK_SIZE, mask=exists, other=0)
        block = block.to(tl.int64)
        offset = key % BLOCK_SIZE
        at = block * block_stride + kv_head * head_stride + offset * token_stride
        scale_at = block * scale_block_stride + kv_head * scale_head_stride + offset * scale_token_stride
        if BITS == 4:
            k = _from_codes(keys + at, key_scales + scale_at, exists, HEAD_DIM, BLOCK_D, GROUP)
            v = _from_codes(values + at, value_scales + scale_at, exists, HEAD_DIM, BLOCK_D, GROUP)
            k, v = k.to(OPERAND), v.to(OPERAND)
        else:
            reads = exists[:, None] & inside[None, :]
            k = tl.load(keys + at[:, None] + places[None, :], mask=reads, other=0.0).to(OPERAND)
            v = tl.load(values + at[:, None] + places[None, :], mask=reads, other=0.0).to(OPERAND)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        if BITS == 8:
            scores *= tl.load(key_scales + scale_at, mask=exists, other=0.0)[None, :]
        seen = (key[None, :] <= position[:, None]) & exists[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        new_most = tl.maximum(most, tl.max(scores, 1))
        # A row may see nothing of a stretch; then its maximum stays -inf, and -inf - -inf is no number.
        base = tl.where(new_most == float("-inf"), 0.0, new_most)
        fade = tl.exp2(most - base)
        weights = tl.exp2(scores - base[:, None])
        total = total * fade + tl.sum(weights, 1)
        if BITS == 8:
            weights *= tl.load(value_scales + scale_at, mask=exists, other=0.0)[None, :]
        found = found * fade[:, None] + tl.dot(weights.to(OPERAND), v, input_precision=PRECISION)
        most = new_most

    divisor = tl.where(total > 0.0, total, 1.0)
    found = found / divisor[:, None]
    if SPLIT:
        row = (row_token * num_heads + head) * num_splits + split
        lse = tl.where(total > 0.0, most + tl.log2(divisor), float("-inf"))
        tl.store(part_lse + row, lse, mask=live)
        # Stretches past a sequence's end are not read by `merge`.
        kept = live & (total > 0.0)
        tl.store(part_out + row[:, None] * BLOCK_D + places[None, :], found, mask=kept[:, None])
    else:
        out_at = out + row_token[:, None] * out_token_stride + head[:, None] * out_head_stride
        result = found.to(out.dtype.element_ty)
        tl.store(out_at + places[None, :], result, mask=live[:, None] & inside[None, :])


@triton.jit
def merge(
    part_out, part_lse, out, out_token_stride, out_head_stride, num_heads, num_splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """Program (token, head): the stretches' outputs, weighted by their share of the sum of exponentials."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = (token * num_heads + head) * num_splits
    splits = tl.arange(0, BLOCK_SPLITS)
    places = tl.arange(0, BLOCK_D)
    lse = tl.load(part_lse + row + splits, mask=splits < num_splits, other=float("-inf"))
    most = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(most == float("-inf"), 0.0, most))
    total = tl.sum(weights, 0)
    at = part_out + (row + splits)[:, None] * BLOCK_D + places[None, :]
    parts = tl.load(at, mask=(weights > 0.0)[:, None], other=0.0)
    found = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    out_at = out + token * out_token_stride + head * out_head_stride + places
    tl.store(out_at, found.to(out.dtype.element_ty), mask=places < HEAD_DIM)
