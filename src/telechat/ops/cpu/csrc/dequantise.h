/* Blocks of int4 and int8 weights as tiles of bf16, with AVX-512 VBMI. */
#ifndef DEQUANTISE_H
#define DEQUANTISE_H

#include "lanes.h"

/* Constants that spread the bytes of 16 outputs x 4 inputs to 16 lanes of 8 outputs x 2 inputs. A byte lands in
 * the mantissa of 32768, where one unit is 1. */
typedef struct {
    __m512i bytes[2][2]; /* [inputs 0-1 or 2-3][outputs 0-7 or 8-15] */
    __m512i mask, magic;
    v16f scale[2], shift[2]; /* by outputs */
} spreading;

INLINE void begin_spreading(spreading *s, const int format) {
    const __m512i first = _mm512_set_epi32(29, 28, 25, 24, 21, 20, 17, 16, 13, 12, 9, 8, 5, 4, 1, 0);
    for (int inputs = 0; inputs < 2; inputs++)
        for (int outputs = 0; outputs < 2; outputs++) {
            __m512i from = _mm512_add_epi32(first, _mm512_set1_epi32(outputs * 32 + inputs * 2));
            s->bytes[inputs][outputs] = _mm512_slli_epi32(from, 8);
        }
    s->mask = _mm512_set1_epi32(format == TC_W_INT4 ? 0x0f00 : 0xff00);
    s->magic = _mm512_set1_epi32(0x47000000);
}

INLINE void scale_spreading(spreading *s, const uint16_t *scales, const int format) {
    const __m512i low = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    __m512 scale = (__m512)load_f16(scales);
    s->scale[0] = (v16f)_mm512_permutexvar_ps(low, scale);
    s->scale[1] = (v16f)_mm512_permutexvar_ps(_mm512_or_si512(low, _mm512_set1_epi32(8)), scale);
    for (int i = 0; i < 2; i++) s->shift[i] = s->scale[i] * (format == TC_W_INT4 ? -32776.0f : -32896.0f);
}

/* Two rows of a bf16 tile from one quad. */
INLINE void spread_quad(const spreading *s, __m512i quad, uint8_t *out) {
    for (int row = 0; row < 2; row++) {
        v16f half[2];
        for (int i = 0; i < 2; i++) {
            __m512i placed = _mm512_permutexvar_epi8(s->bytes[row][i], quad);
            v16f value = (v16f)_mm512_ternarylogic_epi32(placed, s->mask, s->magic, 0xea); /* (a & b) | c */
            half[i] = value * s->scale[i] + s->shift[i];
        }
        _mm512_store_si512(out + row * 64, (__m512i)_mm512_cvtne2ps_pbh((__m512)half[1], (__m512)half[0]));
    }
}

INLINE void dequantise_block(const uint8_t *p, const uint16_t *scales, const int format, uint8_t *out) {
    spreading s;
    begin_spreading(&s, format);
    scale_spreading(&s, scales, format);
    for (int i = 0; i < (format == TC_W_INT4 ? 4 : 8); i++) {
        __m512i quad = _mm512_loadu_si512(p + i * 64);
        spread_quad(&s, quad, out + i * 128);
        if (format == TC_W_INT4) spread_quad(&s, _mm512_srli_epi16(quad, 4), out + (i + 4) * 128);
    }
}

#endif
