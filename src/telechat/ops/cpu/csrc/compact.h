/* bf16 in 12 bits without loss: the layout of TC_W_COMPACT, and the way back.
 *
 * A weight's exponents are few. The sixteen most frequent ones of a weight get codes of 4 bits, to which each value
 * adds one byte, its sign and its mantissa. Values with another exponent (one in ten thousand of a normal
 * distribution) are written out as patches. The idea is that of DFloat11 (arXiv 2504.11651), with codes of one
 * length, so that a vector of them is undone in a few instructions.
 *
 * A block of 16 rows of 32 values, as they stand in a bf16 block, is 4 quarters of 192 bytes, each 64 bytes of codes
 * and twice 64 of signs and mantissas, which are two rows each. Codes of the first two rows are in low nibbles. In 64
 * bytes come 8 values of the one row and 8 of the other in turns, as the processor's interleaving leaves them.
 */
#ifndef COMPACT_H
#define COMPACT_H

#include "lanes.h"

#define COMPACT_BYTES 768
#define QUARTER_BYTES 192
#define BLOCK_VALUES (BLOCK * PANEL)
#define BLOCK_ROWS (BLOCK / 2) /* of a bf16 block: pairs of inputs */

/* A value of a panel that has no code: its place, counted as in bf16, and its bits. Every panel's patches are in order
 * and end with one of place UINT32_MAX. */
typedef struct {
    uint32_t place, value;
} tc_patch;

/* Where the value of a block's row and column has its byte within the codes, and among the signs and mantissas. */
INLINE int64_t compact_byte(int row, int column) { return column / 8 * 16 + row % 2 * 8 + column % 8; }
INLINE int64_t compact_code_at(int row, int column) { return row / 4 * QUARTER_BYTES + compact_byte(row, column); }
INLINE int64_t compact_rest_at(int row, int column) {
    return row / 4 * QUARTER_BYTES + 64 + row % 4 / 2 * 64 + compact_byte(row, column);
}

/* One value of a block, but for patches. */
INLINE uint16_t compact_value(const uint8_t *exponents, const uint8_t *p, int row, int column) {
    uint8_t both = p[compact_code_at(row, column)], rest = p[compact_rest_at(row, column)];
    int code = row % 4 < 2 ? both & 15 : both >> 4;
    return (uint16_t)((rest & 0x80) << 8 | exponents[code] << 7 | (rest & 0x7f));
}

/* What codes stand for. In vectors it is by bytes: an exponent has 7 bits in a value's high one and 1 in the low one. */
typedef struct {
#if defined(__AVX512BW__)
    __m512i high, low;
#else
    const uint8_t *exponents;
#endif
} compact_codes;

INLINE compact_codes begin_compact(const tc_weight *w) {
    compact_codes codes;
#if defined(__AVX512BW__)
    __m512i exponents = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)w->exponents));
    codes.high = _mm512_and_si512(_mm512_srli_epi16(exponents, 1), _mm512_set1_epi8(0x7f));
    codes.low = _mm512_and_si512(_mm512_slli_epi16(exponents, 7), _mm512_set1_epi8((char)0x80));
#else
    codes.exponents = w->exponents;
#endif
    return codes;
}

/* Two rows of a block, from their codes and the other bits. */
#if defined(__AVX512BW__)
INLINE void expand_rows(const compact_codes *codes, __m512i code, const uint8_t *rest, uint16_t *out) {
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    __m512i bits = _mm512_loadu_si512(rest);
    /* high = sign | exponent / 2; low = exponent % 2 * 128 | mantissa */
    __m512i high = _mm512_ternarylogic_epi32(bits, sign, _mm512_shuffle_epi8(codes->high, code), 0xea);
    __m512i low = _mm512_ternarylogic_epi32(sign, bits, _mm512_shuffle_epi8(codes->low, code), 0xae);
    _mm512_store_si512(out, _mm512_unpacklo_epi8(low, high));
    _mm512_store_si512(out + BLOCK, _mm512_unpackhi_epi8(low, high));
}
#endif

/* A block as it was in bf16, but for its patches. `out` is aligned to 64 bytes. */
INLINE void expand_block(const compact_codes *codes, const uint8_t *p, uint16_t *out) {
#if defined(__AVX512BW__)
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    for (int quarter = 0; quarter < 4; quarter++, p += QUARTER_BYTES, out += 4 * BLOCK) {
        __m512i both = _mm512_loadu_si512(p);
        expand_rows(codes, _mm512_and_si512(both, nibble), p + 64, out);
        expand_rows(codes, _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble), p + 128, out + 2 * BLOCK);
    }
#else
    for (int row = 0; row < BLOCK_ROWS; row++)
        for (int column = 0; column < BLOCK; column++)
            out[row * BLOCK + column] = compact_value(codes->exponents, p, row, column);
#endif
}

/* Put the patches of block `block` in their places; returns those of later blocks. */
INLINE const tc_patch *mend_block(const tc_patch *patch, int64_t block, uint16_t *out) {
    for (; patch->place < (block + 1) * BLOCK_VALUES; patch++)
        out[patch->place - block * BLOCK_VALUES] = (uint16_t)patch->value;
    return patch;
}

/* compact.c: patches of a panel from a block on. */
const tc_patch *tc_patches(const tc_weight *w, int64_t panel, int64_t block);

#endif
