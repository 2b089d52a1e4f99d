"""Matrix products with weights [N, K] that are bf16, fp16, fp32, int8, or int4 two to a byte, low one first.

One row times a matrix is bound by memory, and at 4 bits nearly by arithmetic as well: those kernels sum
products elementwise, and turn integers into fp32 by setting bits. 0x41800000 is 16.0, and its four highest
mantissa bits count in steps of 1.0; 0x43800000 is 256.0 with eight such bits. What is so added to every
weight is taken off the sum again.
"""

import triton
import triton.language as tl


@triton.jit
def _rounded(sums, bias, out, row, live, BIAS: tl.constexpr):
    """Sums fp32 [rows] plus bias, rounded to out's dtype, fp32."""
    if BIAS:
        sums += tl.load(bias + row, mask=live, other=0.0).to(tl.float32)
    return sums.to(out.dtype.element_ty).to(tl.float32)


@triton.jit
def _opened(gate, up, out):
    """silu(gate), rounded to out's dtype, times up."""
    return (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32) * up


@triton.jit
def _float_sums(
    x, weight, row, live, k, weight_stride, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Products of rows of the weight with x [k], fp32 [BLOCK_ROWS]."""
    row_at = weight + row.to(tl.int64)[:, None] * weight_stride
    sums = tl.zeros([BLOCK_ROWS, BLOCK_K], tl.float32)
    for start in range(0, k, BLOCK_K):
        place = start + tl.arange(0, BLOCK_K)
        inside = place < k
        weights = tl.load(row_at + place[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        inputs = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        sums += weights.to(tl.float32) * inputs[None, :]
    return tl.sum(sums, 1)


@triton.jit
def row_float(
    x, weight, bias, out, n, k, weight_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """out [n] = weight [n, k] x [k] (+ bias). With GATED weight is [2n, k]: silu(first half) * second."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    live = row < n
    sums = _float_sums(x, weight, row, live, k, weight_stride, BLOCK_ROWS, BLOCK_K)
    result = _rounded(sums, bias, out, row, live, BIAS)
    if GATED:
        sums = _float_sums(x, weight, row + n, live, k, weight_stride, BLOCK_ROWS, BLOCK_K)
        result = _opened(result, _rounded(sums, bias, out, row + n, live, BIAS), out)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=live)


@triton.jit
def _sixteen_and(bits):
    """16 + the integer in bits 19 to 22."""
    return ((bits & 0x00780000) | 0x41800000).to(tl.float32, bitcast=True)


@triton.jit
def _256_and(bits):
    """256 + the integer in bits 15 to 22."""
    return ((bits & 0x007F8000) | 0x43800000).to(tl.float32, bitcast=True)


@triton.jit
def _inputs_of_four(x, start, k, BLOCK: tl.constexpr):
    """Inputs 0, 1, 2 and 3 of each of the BLOCK words from `start` on, fp32 [BLOCK] each."""
    place = start * 4 + tl.arange(0, BLOCK * 4)
    inputs = tl.load(x + place, mask=place < k, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(inputs, [BLOCK, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _inputs_of_eight(x, start, k, BLOCK: tl.constexpr):
    """Inputs 0 to 7 of each of the BLOCK words from `start` on, fp32 [BLOCK] each."""
    place = start * 8 + tl.arange(0, BLOCK * 8)
    inputs = tl.load(x + place, mask=place < k, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(inputs, [BLOCK, 2, 2, 2]))
    by_four_0, by_four_2 = tl.split(even)
    by_four_1, by_four_3 = tl.split(odd)
    x0, x4 = tl.split(by_four_0)
    x1, x5 = tl.split(by_four_1)
    x2, x6 = tl.split(by_four_2)
    x3, x7 = tl.split(by_four_3)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _int4_sums(
    x, words, scales, row, live, num_words, num_groups,
    WORDS_PER_GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As `_float_sums`; words int32 [rows, num_words] hold eight weights each, stored as weight + 8."""
    row_at = words + row.to(tl.int64)[:, None] * num_words
    scale_at = scales + row.to(tl.int64)[:, None] * num_groups
    sums = tl.zeros([BLOCK_ROWS, BLOCK_K], tl.float32)
    for start in range(0, num_words, BLOCK_K):
        place = start + tl.arange(0, BLOCK_K)
        inside = place < num_words
        reads = live[:, None] & inside[None, :]
        word = tl.load(row_at + place[None, :], mask=reads, other=0).to(tl.uint32, bitcast=True)
        scale = tl.load(scale_at + (place // WORDS_PER_GROUP)[None, :], mask=reads, other=0.0).to(tl.float32)
        x0, x1, x2, x3, x4, x5, x6, x7 = _inputs_of_eight(x, start, num_words * 8, BLOCK_K)
        products = _sixteen_and(word << 19) * x0[None, :]
        products += _sixteen_and(word << 15) * x1[None, :]
        products += _sixteen_and(word << 11) * x2[None, :]
        products += _sixteen_and(word << 7) * x3[None, :]
        products += _sixteen_and(word << 3) * x4[None, :]
        products += _sixteen_and(word >> 1) * x5[None, :]
        products += _sixteen_and(word >> 5) * x6[None, :]
        products += _sixteen_and(word >> 9) * x7[None, :]
        total = ((x0 + x1) + (x2 + x3)) + ((x4 + x5) + (x6 + x7))
        sums += scale * (products - 24.0 * total[None, :])
    return tl.sum(sums, 1)


@triton.jit
def _int8_sums(
    x, words, scales, row, live, num_words, num_groups,
    WORDS_PER_GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As `_float_sums`; words int32 [rows, num_words] hold four signed bytes each."""
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
        x0, x1, x2, x3 = _inputs_of_four(x, start, num_words * 4, BLOCK_K)
        products = _256_and(word << 15) * x0[None, :]
        products += _256_and(word << 7) * x1[None, :]
        products += _256_and(word >> 1) * x2[None, :]
        products += _256_and(word >> 9) * x3[None, :]
        total = (x0 + x1) + (x2 + x3)
        sums += scale * (products - 384.0 * total[None, :])
    return tl.sum(sums, 1)


@triton.jit
def _integer_sums(
    x, words, scales, row, live, num_words, num_groups,
    BITS: tl.constexpr, WORDS_PER_GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    if BITS == 4:
        sums = _int4_sums(
            x, words, scales, row, live, num_words, num_groups, WORDS_PER_GROUP, BLOCK_ROWS, BLOCK_K
        )
    else:
        sums = _int8_sums(
            x, words, scales, row, live, num_words, num_groups, WORDS_PER_GROUP, BLOCK_ROWS, BLOCK_K
        )
    return sums


@triton.jit
def row_integers(
    x, words, scales, bias, out, n, num_words, num_groups,
    BITS: tl.constexpr, WORDS_PER_GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
    BIAS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """As `row_float` with weights of 4 or 8 bits; BLOCK_K counts words."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    live = row < n
    sums = _integer_sums(
        x, words, scales, row, live, num_words, num_groups, BITS, WORDS_PER_GROUP, BLOCK_ROWS, BLOCK_K
    )
    result = _rounded(sums, bias, out, row, live, BIAS)
    if GATED:
        sums = _integer_sums(
            x, words, scales, row + n, live, num_words, num_groups, BITS, WORDS_PER_GROUP, BLOCK_ROWS, BLOCK_K
        )
        result = _opened(result, _rounded(sums, bias, out, row + n, live, BIAS), out)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=live)


@triton.jit
def _nibble(packed, SHIFT: tl.constexpr):
    """The weights in one half of each byte, fp32."""
    return _sixteen_and(packed.to(tl.uint32) << (19 - SHIFT)) - 24.0


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
    for group in range(num_groups):
        scale_at = scales + column.to(tl.int64) * num_groups + group
        scale = tl.load(scale_at, mask=live_column, other=0.0).to(tl.float32)
        if BITS == 4:
            place = group * GROUP + tl.arange(0, GROUP)
            inputs = tl.load(x_at + place[None, :], mask=live_row, other=0.0)
            even, odd = tl.split(tl.reshape(inputs, [BLOCK_M, GROUP // 2, 2]))
            half = tl.arange(0, GROUP // 2)
            at = packed + column.to(tl.int64)[None, :] * (k // 2) + (group * (GROUP // 2) + half)[:, None]
            weights = tl.load(at, mask=live_column[None, :], other=0)
            product = tl.dot(even.to(OPERAND), _nibble(weights, 0).to(OPERAND), input_precision=PRECISION)
            product += tl.dot(odd.to(OPERAND), _nibble(weights, 4).to(OPERAND), input_precision=PRECISION)
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
