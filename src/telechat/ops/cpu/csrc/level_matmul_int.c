/* One panel of an int4 or int8 weight times one tile of int8 activations.
 *
 * Every level adds exactly the same integers within a block of 32 inputs and then does
 * y += float(sum) * (weight scale * activation scale), block after block. A row's result thus depends neither
 * on the other rows nor, where fused multiply-add exists, on the level; the AMX form keeps to this too.
 *
 * Compiled once per instruction set level.
 */
#include "lanes.h"

#if defined(__AVX512VNNI__)

#define AHEAD 4096 /* bytes between what is used and what is fetched from memory */

/* The 8 quads of a block as unsigned bytes. */
INLINE void unpack_block(const uint8_t *p, const int format, __m512i quads[8]) {
    if (format == TC_W_INT8) {
        for (int i = 0; i < 8; i++) quads[i] = _mm512_loadu_si512(p + i * 64);
        return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    for (int i = 0; i < 4; i++) {
        __m512i both = _mm512_loadu_si512(p + i * 64);
        quads[i] = _mm512_and_si512(both, low);
        quads[i + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
}

INLINE __m512i four_bytes(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
}

/* `rows` activation rows at once, a constant wherever this is inlined; `height` rows lie in the tile. */
INLINE void rows_of_panel(const int format, const int rows, const uint8_t *p, int64_t num_units,
                          int64_t blocks_per_group, const int8_t *a, const float *scales,
                          const int32_t *corrections, int64_t height, float *y) {
    const int64_t block_bytes = format == TC_W_INT4 ? 256 : 512;
    v16f sums[rows];
    for (int r = 0; r < rows; r++) sums[r] = splat(0);
    for (int64_t unit = 0; unit < num_units; unit++) {
        const uint16_t *weight_scales = (const uint16_t *)(p + 2 * blocks_per_group * block_bytes);
        for (int half = 0; half < 2; half++) {
            v16f weight_scale = load_f16(weight_scales + half * PANEL);
            /* The weights stream from memory once; a few KB ahead hides the latency. */
            _mm_prefetch((const char *)weight_scales + AHEAD, _MM_HINT_T0);
            for (int64_t b = 0; b < blocks_per_group; b++) {
                __m512i quads[8];
                unpack_block(p, format, quads);
                for (int64_t line = 0; line < block_bytes; line += 64)
                    _mm_prefetch((const char *)p + AHEAD + line, _MM_HINT_T0);
                for (int r = 0; r < rows; r++) {
                    __m512i even = _mm512_set1_epi32(corrections[r]), odd = _mm512_setzero_si512();
                    for (int i = 0; i < 4; i++) {
                        even = _mm512_dpbusd_epi32(even, quads[i], four_bytes(a + r * BLOCK + i * 4));
                        odd = _mm512_dpbusd_epi32(odd, quads[i + 4], four_bytes(a + r * BLOCK + i * 4 + 16));
                    }
                    v16f exact = (v16f)_mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
                    sums[r] += exact * (weight_scale * scales[r]);
                }
                p += block_bytes;
                a += height * BLOCK;
                scales += height;
                corrections += height;
            }
        }
        p += 2 * PANEL * 2;
    }
    for (int r = 0; r < rows; r++) store_f32(y + r * PANEL, sums[r]);
}

#else

/* Exact dot products of 32 inputs for 16 outputs. */
#if defined(__AVX2__)
INLINE v16i dot_block(const uint8_t *p, const int format, const int8_t *a) {
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);
    __m256i halves[2];
    for (int h = 0; h < 2; h++) {
        __m256i sum = _mm256_setzero_si256();
        for (int i = 0; i < 8; i++) {
            __m256i w;
            if (format == TC_W_INT8) {
                w = _mm256_loadu_si256((const __m256i *)(p + i * 64 + h * 32));
                w = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80)); /* unsigned with offset -> signed */
            } else {
                w = _mm256_loadu_si256((const __m256i *)(p + i % 4 * 64 + h * 32));
                w = _mm256_and_si256(i < 4 ? w : _mm256_srli_epi16(w, 4), low);
                w = _mm256_sub_epi8(w, eight);
            }
            int32_t word;
            memcpy(&word, a + i * 4, 4);
            /* maddubs wants unsigned times signed and saturates at 16 bits: 2 * 127 * 127 still fits. */
            __m256i signed_a = _mm256_sign_epi8(_mm256_set1_epi32(word), w);
            __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), signed_a);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
        halves[h] = sum;
    }
    v16i out;
    memcpy(&out, halves, sizeof out);
    return out;
}
#else
INLINE v16i dot_block(const uint8_t *p, const int format, const int8_t *a) {
    int32_t sums[PANEL] = {0};
    for (int i = 0; i < 8; i++) {
        const uint8_t *quad = p + (format == TC_W_INT4 ? i % 4 : i) * 64;
        for (int lane = 0; lane < PANEL; lane++) {
            for (int j = 0; j < 4; j++) {
                int byte = quad[lane * 4 + j];
                int w = format == TC_W_INT8 ? byte - 128 : (i < 4 ? byte & 15 : byte >> 4) - 8;
                sums[lane] += w * a[i * 4 + j];
            }
        }
    }
    return load_i32(sums);
}
#endif

INLINE void rows_of_panel(const int format, const int rows, const uint8_t *p, int64_t num_units,
                          int64_t blocks_per_group, const int8_t *a, const float *scales,
                          const int32_t *corrections, int64_t height, float *y) {
    (void)corrections; /* these levels multiply signed weights */
    const int64_t block_bytes = format == TC_W_INT4 ? 256 : 512;
    v16f sums[rows];
    for (int r = 0; r < rows; r++) sums[r] = splat(0);
    for (int64_t unit = 0; unit < num_units; unit++) {
        const uint16_t *weight_scales = (const uint16_t *)(p + 2 * blocks_per_group * block_bytes);
        for (int half = 0; half < 2; half++) {
            v16f weight_scale = load_f16(weight_scales + half * PANEL);
            for (int64_t b = 0; b < blocks_per_group; b++) {
                for (int r = 0; r < rows; r++) {
                    v16f exact = __builtin_convertvector(dot_block(p, format, a + r * BLOCK), v16f);
                    sums[r] += exact * (weight_scale * scales[r]);
                }
                p += block_bytes;
                a += height * BLOCK;
                scales += height;
            }
        }
        p += 2 * PANEL * 2;
    }
    for (int r = 0; r < rows; r++) store_f32(y + r * PANEL, sums[r]);
}

#endif

INLINE int64_t some_rows(const int format, const int rows, const tc_weight *w, int64_t panel,
                         const tc_acts *acts, int64_t tile, int64_t height, int64_t row, float *y) {
    int64_t blocks_per_group = w->group / BLOCK;
    int64_t index = tile * TILE * acts->num_blocks + row;
    rows_of_panel(format, rows, w->data + panel * w->panel_bytes, w->num_blocks / (2 * blocks_per_group),
                  blocks_per_group, (const int8_t *)acts->values + index * BLOCK, acts->scales + index,
                  acts->corrections + index, height, y + row * PANEL);
    return row + rows;
}

INLINE void all_rows(const int format, const tc_weight *w, int64_t panel, const tc_acts *acts, int64_t tile,
                     float *y) {
    int64_t height = acts->rows - tile * TILE < TILE ? acts->rows - tile * TILE : TILE;
    int64_t row = 0;
#if defined(__AVX512VNNI__)
    while (height - row >= 8) row = some_rows(format, 8, w, panel, acts, tile, height, row, y);
    if (height - row == 3) row = some_rows(format, 3, w, panel, acts, tile, height, row, y);
#endif
    while (height - row >= 4) row = some_rows(format, 4, w, panel, acts, tile, height, row, y);
    while (height - row >= 2) row = some_rows(format, 2, w, panel, acts, tile, height, row, y);
    if (height > row) some_rows(format, 1, w, panel, acts, tile, height, row, y);
}

/* y [rows of the tile][16] = activations x panel, transposed. */
void NAME(int_panel)(const tc_weight *w, int64_t panel, const tc_acts *acts, int64_t tile, float *y) {
    if (w->format == TC_W_INT4) all_rows(TC_W_INT4, w, panel, acts, tile, y);
    else all_rows(TC_W_INT8, w, panel, acts, tile, y);
}
