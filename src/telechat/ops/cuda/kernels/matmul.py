"""Matrix products with weights [N, K] that are bf16, fp16, fp32, int8, or int4 two to a byte, low one first.

One row times a matrix is bound by memory, and at 4 bits nearly by arithmetic as well: those kernels sum
products elementwise, and turn integers into fp32 by setting bits. 0x41800000 is 16.0, and its four highest
mantissa bits count in steps of 1.0; 0x43800000 is 256.0 with eight such bits. What is so added to every weight
is taken off the sum again.
"""

import triton
import triton.language as tl


@triton.jit
def _finish(result, bias, residual, out, row, live, BIAS: tl.constexpr, RESIDUAL: tl.constexpr):
    """Write result fp32 [rows], rounded once after the bias and once after the residual, as torch does."""
    dtype = out.dtype.element_ty
    if BIAS:
        result += tl.load(bias + row, mask=live, other=0.0).to(tl.float32)
    result = result.to(dtype)
    if RESIDUAL:
        other = tl.load(residual + row, mask=live, other=0.0).to(tl.float32)
        result = (result.to(tl.float32) + other).to(dtype)
    tl.store(out + row, result, mask=live)


@triton.jit
def row_float(
    x, weight, bias, residual, out, n, k, weight_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """out [n] = weight [n, k] x [k] (+ bias) (+ residual)."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    live = row < n
    row_at = weight + row.to(tl.int64)[:, None] * weight_stride
    sums = tl.zeros([BLOCK_ROWS, BLOCK_K], tl.float32)
    for start in range(0, k, BLOCK_K):
        place = start + tl.arange(0, BLOCK_K)
        inside = place < k
        weights = tl.load(row_at + place[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        inputs = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        sums += weights.to(tl.float32) * inputs[None, :]
    _finish(tl.sum(sums, 1), bias, residual, out, row, live, BIAS, RESIDUAL)


@triton.jit
def row_int4(
    x, words, scales, bias, residual, out, n, num_words, num_groups,
    WORDS_PER_GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """As `row_float`; words int32 [n, num_words] hold eight weights each, stored as weight + 8."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    live = row < n
    row_at = words + row.to(tl.int64)[:, None] * num_words
    scale_at = scales + row.to(tl.int64)[:, None] * num_groups
    sums = tl.zeros([BLOCK_ROWS, BLOCK_K], tl.float32)
    for start in range(0, num_words, BLOCK_K):
        place = start + tl.arange(0, BLOCK_K)
        inside = place < num_words
        reads = live[:, None] & inside[None, :]
        word = tl.load(row_at + place[None, :], mask=reads, other=0).to(tl.uint32, bitcast=True)
        scale = tl.load(scale_at + (place // WORDS_PER_GROUP)[None, :], mask=reads, other=0.0).to(tl.float32)
        products = tl.zeros([BLOCK_ROWS, BLOCK_K], tl.float32)
        total = tl.zeros([BLOCK_K], tl.float32)
        for i in tl.static_range(8):
            inputs = tl.load(x + place * 8 + i, mask=inside, other=0.0).to(tl.float32)
            if i < 5:
                bits = word << (19 - 4 * i)
            else:
                bits = word >> (4 * i - 19)
            shifted = ((bits & 0x00780000) | 0x41800000).to(tl.float32, bitcast=True)
            products += shifted * inputs[None, :]
            total += inputs
        sums += scale * (products - 24.0 * total[None, :])
    _finish(tl.sum(sums, 1), bias, residual, out, row, live, BIAS, RESIDUAL)


@triton.jit
def row_int8(
    x, words, scales, bias, residual, out, n, num_words, num_groups,
    WORDS_PER_GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """As `row_float`; words int32 [n, num_words] hold four signed bytes each."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    live = row < n
    row_at = words + row.to(tl.int64)[:, None] * num_words
    scale_at = scales + row.to(tl.int64)[:, None] * num_groups
    sums = tl.zeros([BLOCK_ROWS, BLOCK_K], tl.float32)
    for start in range(0, num_words, BLOCK_K):
        place = start + tl.arange(0, BLOCK_K)
        inside = place < num_words
        reads = live[:, None] & inside[None, :]
        word = tl.load(row_at + place[None, :], mask=reads, other=0).to(tl.uint32, bitcast=True)
        word = word ^ 0x80808080  # each byte plus 128, without a sign
        scale = tl.load(scale_at + (place // WORDS_PER_GROUP)[None, :], mask=reads, other=0.0).to(tl.float32)
        products = tl.zeros([BLOCK_ROWS, BLOCK_K], tl.float32)
        total = tl.zeros([BLOCK_K], tl.float32)
        for i in tl.static_range(4):
            inputs = tl.load(x + place * 4 + i, mask=inside, other=0.0).to(tl.float32)
            if i < 2:
                bits = word << (15 - 8 * i)
            else:
                bits = word >> (8 * i - 15)
            shifted = ((bits & 0x007F8000) | 0x43800000).to(tl.float32, bitcast=True)
            products += shifted * inputs[None, :]
            total += inputs
        sums += scale * (products - 384.0 * total[None, :])
    _finish(tl.sum(sums, 1), bias, residual, out, row, live, BIAS, RESIDUAL)


@triton.jit
def _nibble(packed, SHIFT: tl.constexpr):
    """The weights in one half of each byte, fp32."""
    bits = packed.to(tl.uint32) << (19 - SHIFT)
    return ((bits & 0x00780000) | 0x41800000).to(tl.float32, bitcast=True) - 24.0


@triton.jit
def many_rows(
    x, packed, scales, bias, out, m, n, k, x_stride,
    BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [m, n] = x [m, k] weight^T (+ bias); a step of the loop is one group of weights."""
    # Blocks that share weights follow one another, so that the second reads them from the cache.
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    live_row = (row < m)[:, None]
    live_column = column < n
    x_at = x + row.to(tl.int64)[:, None] * x_stride
    num_groups = k // GROUP
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for group in range(0, num_groups):
        scale_at = scales + column.to(tl.int64) * num_groups + group
        scale = tl.load(scale_at, mask=live_column, other=0.0).to(tl.float32)
        if BITS == 4:
            half = tl.arange(0, GROUP // 2)
            even_at = x_at + (group * GROUP + 2 * half)[None, :]
            even = tl.load(even_at, mask=live_row, other=0.0).to(OPERAND)
            odd = tl.load(even_at + 1, mask=live_row, other=0.0).to(OPERAND)
            at = packed + column.to(tl.int64)[None, :] * (k // 2) + (group * (GROUP // 2) + half)[:, None]
            weights = tl.load(at, mask=live_column[None, :], other=0)
            product = tl.dot(even, _nibble(weights, 0).to(OPERAND), input_precision=PRECISION)
            product += tl.dot(odd, _nibble(weights, 4).to(OPERAND), input_precision=PRECISION)
        else:
            place = group * GROUP + tl.arange(0, GROUP)
            inputs = tl.load(x_at + place[None, :], mask=live_row, other=0.0).to(OPERAND)
            at = packed + column.to(tl.int64)[None, :] * k + place[:, None]
            weights = tl.load(at, mask=live_column[None, :], other=0).to(tl.float32).to(OPERAND)
            product = tl.dot(inputs, weights, input_precision=PRECISION)
        sums += product * scale[None, :]
    if BIAS:
        sums += tl.load(bias + column, mask=live_column, other=0.0).to(tl.float32)[None, :]
    out_at = out + row.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(out_at, sums.to(out.dtype.element_ty), mask=live_row & live_column[None, :])


@triton.jit
def unpack(packed, scales, out, k, BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """out [n, k] = integer * scale, rounded to out's dtype. Program (row, block of packed elements)."""
    row = tl.program_id(0).to(tl.int64)
    PER: tl.constexpr = 8 // BITS
    byte = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = byte < k // PER
    group = byte * PER // GROUP
    scale = tl.load(scales + row * (k // GROUP) + group, mask=inside, other=0.0).to(tl.float32)
    stored = tl.load(packed + row * (k // PER) + byte, mask=inside, other=0)
    at = out + row * k + byte * PER
    dtype = out.dtype.element_ty
    if BITS == 4:
        # Two strided stores to the same sectors; the cache joins them.
        tl.store(at, (_nibble(stored, 0) * scale).to(dtype), mask=inside)
        tl.store(at + 1, (_nibble(stored, 4) * scale).to(dtype), mask=inside)
    else:
        tl.store(at, (stored.to(tl.float32) * scale).to(dtype), mask=inside)
