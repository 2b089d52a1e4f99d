/* Panels of an int4 or int8 weight times one tile of int8 activations.
 *
 * Every level adds exactly the same integers within a block of 32 inputs and then does
 * y += float(sum) * (weight scale * activation scale), block after block. A row's result thus depends neither
 * on the other rows nor, where fused multiply-add exists, on the level; the AMX form keeps to this too.
 *
 * Compiled once per instruction set level.
 */
#include "lanes.h"

#if defined(__AVX512VNNI__)

#define AHEAD 2048  /* bytes between what is used of a panel and what is fetched from memory */
#define MOST_ROWS 8 /* their sums and those of a second panel just fit the registers */

INLINE __m512i four_bytes(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
}

/* Panels `stride` bytes after one another, read side by side: memory gives one thread a quarter more for four
 * streams than for one. */
typedef struct {
    const uint8_t *p;
    int64_t stride, num_units, blocks_per_group;
} streams;

/* Activations of some rows of a tile; `height` rows lie in the tile. */
typedef struct {
    const int8_t *values;
    const float *scales;
    const int32_t *corrections;
    int64_t height;
} some_rows;

/* Quads i and i + 4 of a block as unsigned bytes. */
INLINE void unpack_two(const uint8_t *p, const int format, int i, __m512i *first, __m512i *second) {
    *first = _mm512_loadu_si512(p + i * 64);
    if (format == TC_W_INT8) {
        *second = _mm512_loadu_si512(p + (i + 4) * 64);
        return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    *second = _mm512_and_si512(_mm512_srli_epi16(*first, 4), low);
    *first = _mm512_and_si512(*first, low);
}

/* One block of each panel: sums += exact integers * scales. What comes next lies `ahead` bytes further on. */
INLINE void one_block(const int format, const int rows, const int panels, const streams *s, int64_t ahead,
                      const v16f weight_scales[4], const some_rows *a, v16f sums[4][MOST_ROWS]) {
    __m512i exact[4][MOST_ROWS];
    for (int j = 0; j < panels; j++)
        for (int r = 0; r < rows; r++) exact[j][r] = _mm512_set1_epi32(a->corrections[r]);
    for (int i = 0; i < 4; i++) {
        __m512i first[4], second[4];
        for (int j = 0; j < panels; j++) {
            const uint8_t *line = s->p + j * s->stride;
            unpack_two(line, format, i, &first[j], &second[j]);
            _mm_prefetch((const char *)line + ahead + i * 64, _MM_HINT_T0);
            if (format == TC_W_INT8) _mm_prefetch((const char *)line + ahead + (i + 4) * 64, _MM_HINT_T0);
        }
        for (int r = 0; r < rows; r++) {
            __m512i low = four_bytes(a->values + r * BLOCK + i * 4);
            __m512i high = four_bytes(a->values + r * BLOCK + i * 4 + 16);
            for (int j = 0; j < panels; j++) {
                exact[j][r] = _mm512_dpbusd_epi32(exact[j][r], first[j], low);
                exact[j][r] = _mm512_dpbusd_epi32(exact[j][r], second[j], high);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < panels; j++)
            sums[j][r] += (v16f)_mm512_cvtepi32_ps(exact[j][r]) * (weight_scales[j] * a->scales[r]);
}

/* `rows` rows times `panels` panels, both constants wherever this is inlined. */
INLINE void rows_by_panels(const int format, const int rows, const int panels, streams s, some_rows a, float *y) {
    const int64_t block_bytes = format == TC_W_INT4 ? 256 : 512;
    const int64_t scales_at = 2 * s.blocks_per_group * block_bytes, unit_bytes = scales_at + 2 * PANEL * 2;
    /* Behind the end of a panel lies the next one, which is being read as well: look behind the last instead. */
    int64_t last_units = s.num_units - AHEAD / unit_bytes;
    v16f sums[4][MOST_ROWS];
    for (int j = 0; j < panels; j++)
        for (int r = 0; r < rows; r++) sums[j][r] = splat(0);
    for (int64_t unit = 0; unit < s.num_units; unit++) {
        int64_t ahead = unit < last_units ? AHEAD : AHEAD + (panels - 1) * s.stride;
        const uint8_t *scales = s.p + scales_at;
        for (int half = 0; half < 2; half++) {
            v16f weight_scales[4];
            for (int j = 0; j < panels; j++)
                weight_scales[j] = load_f16((const uint16_t *)(scales + j * s.stride) + half * PANEL);
            for (int64_t b = 0; b < s.blocks_per_group; b++) {
                one_block(format, rows, panels, &s, ahead, weight_scales, &a, sums);
                s.p += block_bytes;
                a.values += a.height * BLOCK;
                a.scales += a.height;
                a.corrections += a.height;
            }
        }
        for (int j = 0; j < panels; j++) _mm_prefetch((const char *)scales + j * s.stride + ahead, _MM_HINT_T0);
        s.p += 2 * PANEL * 2;
    }
    for (int j = 0; j < panels; j++)
        for (int r = 0; r < rows; r++) store_f32(y + (j * TILE + r) * PANEL, sums[j][r]);
}

INLINE void rows_by_some(const int format, const int rows, int64_t panels, const streams *s, const some_rows *a,
                         float *y) {
    if (rows <= 2 && panels == 4) rows_by_panels(format, rows, 4, *s, *a, y);
    else if (panels == 2) rows_by_panels(format, rows, 2, *s, *a, y);
    else rows_by_panels(format, rows, 1, *s, *a, y);
}

INLINE int64_t all_rows(const int format, const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts,
                        int64_t tile, int64_t height, float *y) {
    int64_t most = height <= 2 ? 4 : 2, panels = count < most ? 1 : most, per_group = w->group / BLOCK;
    streams s = {w->data + panel * w->panel_bytes, w->panel_bytes, w->num_blocks / (2 * per_group), per_group};
    for (int64_t row = 0; row < height; row += MOST_ROWS) {
        int64_t index = tile * TILE * acts->num_blocks + row;
        some_rows a = {(const int8_t *)acts->values + index * BLOCK, acts->scales + index,
                       acts->corrections + index, height};
        float *to = y + row * PANEL;
        switch (height - row < MOST_ROWS ? height - row : MOST_ROWS) {
        case 1: rows_by_some(format, 1, panels, &s, &a, to); break;
        case 2: rows_by_some(format, 2, panels, &s, &a, to); break;
        case 3: rows_by_some(format, 3, panels, &s, &a, to); break;
        case 4: rows_by_some(format, 4, panels, &s, &a, to); break;
        case 5: rows_by_some(format, 5, panels, &s, &a, to); break;
        case 6: rows_by_some(format, 6, panels, &s, &a, to); break;
        case 7: rows_by_some(format, 7, panels, &s, &a, to); break;
        default: rows_by_some(format, 8, panels, &s, &a, to);
        }
    }
    return panels;
}

#else

/* Activations of some rows of a tile; `height` rows lie in the tile. */
typedef struct {
    const int8_t *values;
    const float *scales;
    const int32_t *corrections;
    int64_t height;
} some_rows;

#if defined(__AVX2__)
#define AHEAD 2048 /* bytes between what is used of a panel and what is fetched from memory */
#define MOST_ROWS 4

INLINE __m256i four_bytes(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
}

/* GCC would add in another order, which takes more registers than there are. */
#define KEEP(vector) __asm__("" : "+x"(vector))

/* Exact dot products of 32 inputs for 16 outputs and some rows. Weights 0 .. 15 leave room in 16 bits for a whole
 * block: 8 * 2 * 15 * 127 = 30480. */
INLINE void dot_int4(const int rows, const uint8_t *p, const some_rows *a, __m256i exact[MOST_ROWS][2]) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int r = 0; r < rows; r++) exact[r][0] = exact[r][1] = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        __m256i first[2], second[2];
        for (int h = 0; h < 2; h++) {
            __m256i both = _mm256_loadu_si256((const __m256i *)(p + i * 64 + h * 32));
            first[h] = _mm256_and_si256(both, low);
            second[h] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        }
        for (int r = 0; r < rows; r++) {
            const int8_t *quad = a->values + r * BLOCK + i * 4;
            __m256i inputs = four_bytes(quad);
            for (int h = 0; h < 2; h++) {
                exact[r][h] = _mm256_add_epi16(exact[r][h], _mm256_maddubs_epi16(first[h], inputs));
                KEEP(exact[r][h]);
            }
            inputs = four_bytes(quad + 16);
            for (int h = 0; h < 2; h++) {
                exact[r][h] = _mm256_add_epi16(exact[r][h], _mm256_maddubs_epi16(second[h], inputs));
                KEEP(exact[r][h]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            exact[r][h] = _mm256_add_epi32(_mm256_madd_epi16(exact[r][h], _mm256_set1_epi16(1)),
                                           _mm256_set1_epi32(a->corrections[r]));
}

/* The same for weights of 8 bits. Sums of two products saturate at 16 bits: 2 * 128 * 127 still fits, so the sign
 * goes from the weight to the activation. */
INLINE void dot_int8(const int rows, const uint8_t *p, const some_rows *a, __m256i exact[MOST_ROWS][2]) {
    const __m256i offset = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
    for (int r = 0; r < rows; r++) exact[r][0] = exact[r][1] = _mm256_setzero_si256();
    for (int i = 0; i < 8; i++) {
        for (int h = 0; h < 2; h++) {
            __m256i w = _mm256_loadu_si256((const __m256i *)(p + i * 64 + h * 32));
            w = _mm256_xor_si256(w, offset);
            __m256i size = _mm256_abs_epi8(w);
            for (int r = 0; r < rows; r++) {
                __m256i inputs = _mm256_sign_epi8(four_bytes(a->values + r * BLOCK + i * 4), w);
                __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(size, inputs), ones);
                exact[r][h] = _mm256_add_epi32(exact[r][h], sums);
                KEEP(exact[r][h]);
            }
        }
    }
}

/* One block: sums += exact integers * scales. */
INLINE void one_block(const int format, const int rows, const uint8_t *p, const uint16_t *weight_scales,
                      const some_rows *a, float sums[MOST_ROWS][PANEL]) {
    __m256i exact[MOST_ROWS][2];
    for (int i = 0; i < (format == TC_W_INT4 ? 256 : 512); i += 64) __builtin_prefetch(p + AHEAD + i);
    if (format == TC_W_INT4) dot_int4(rows, p, a, exact);
    else dot_int8(rows, p, a, exact);
    for (int h = 0; h < 2; h++) {
        __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(weight_scales + h * 8)));
        for (int r = 0; r < rows; r++) {
            float *to = sums[r] + h * 8;
            __m256 both_scales = _mm256_mul_ps(scale, _mm256_set1_ps(a->scales[r]));
            _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact[r][h]), both_scales, _mm256_loadu_ps(to)));
        }
    }
}
#else
#define MOST_ROWS 4

INLINE void one_block(const int format, const int rows, const uint8_t *p, const uint16_t *weight_scales,
                      const some_rows *a, float sums[MOST_ROWS][PANEL]) {
    v16f scale = load_f16(weight_scales);
    for (int r = 0; r < rows; r++) {
        const int8_t *values = a->values + r * BLOCK;
        int32_t exact[PANEL] = {0};
        for (int i = 0; i < 8; i++) {
            const uint8_t *quad = p + (format == TC_W_INT4 ? i % 4 : i) * 64;
            for (int lane = 0; lane < PANEL; lane++) {
                for (int j = 0; j < 4; j++) {
                    int byte = quad[lane * 4 + j];
                    int w = format == TC_W_INT8 ? byte - 128 : (i < 4 ? byte & 15 : byte >> 4) - 8;
                    exact[lane] += w * values[i * 4 + j];
                }
            }
        }
        v16f products = __builtin_convertvector(load_i32(exact), v16f) * (scale * a->scales[r]);
        store_f32(sums[r], load_f32(sums[r]) + products);
    }
}
#endif

INLINE void rows_of_panel(const int format, const int rows, const uint8_t *p, int64_t num_units,
                          int64_t blocks_per_group, some_rows a, float *y) {
    const int64_t block_bytes = format == TC_W_INT4 ? 256 : 512;
    float sums[MOST_ROWS][PANEL] = {{0}};
    for (int64_t unit = 0; unit < num_units; unit++) {
        const uint16_t *weight_scales = (const uint16_t *)(p + 2 * blocks_per_group * block_bytes);
        for (int half = 0; half < 2; half++) {
            for (int64_t b = 0; b < blocks_per_group; b++) {
                one_block(format, rows, p, weight_scales + half * PANEL, &a, sums);
                p += block_bytes;
                a.values += a.height * BLOCK;
                a.scales += a.height;
                a.corrections += a.height;
            }
        }
        p += 2 * PANEL * 2;
    }
    memcpy(y, sums, (size_t)rows * sizeof sums[0]);
}

INLINE void next_rows(const int format, const int rows, const tc_weight *w, int64_t panel, const tc_acts *acts,
                      int64_t tile, int64_t height, int64_t row, float *y) {
    int64_t blocks_per_group = w->group / BLOCK, index = tile * TILE * acts->num_blocks + row;
    some_rows a = {(const int8_t *)acts->values + index * BLOCK, acts->scales + index, acts->corrections + index,
                   height};
    rows_of_panel(format, rows, w->data + panel * w->panel_bytes, w->num_blocks / (2 * blocks_per_group),
                  blocks_per_group, a, y + row * PANEL);
}

INLINE int64_t all_rows(const int format, const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts,
                        int64_t tile, int64_t height, float *y) {
    int64_t row = 0;
    (void)count;
    for (; height - row >= 4; row += 4) next_rows(format, 4, w, panel, acts, tile, height, row, y);
    if (height - row == 3) next_rows(format, 3, w, panel, acts, tile, height, row, y);
    else if (height - row == 2) next_rows(format, 2, w, panel, acts, tile, height, row, y);
    else if (height > row) next_rows(format, 1, w, panel, acts, tile, height, row, y);
    return 1;
}

#endif

/* y [panel][16][16] = activations x panels, transposed, for as many of the `count` panels from `panel` on as go
 * well together: at most INT_PANELS. Returns their number. */
int64_t NAME(int_panels)(const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts, int64_t tile,
                         float *y) {
    int64_t height = acts->rows - tile * TILE < TILE ? acts->rows - tile * TILE : TILE;
    if (w->format == TC_W_INT4) return all_rows(TC_W_INT4, w, panel, count, acts, tile, height, y);
    return all_rows(TC_W_INT8, w, panel, count, acts, tile, height, y);
}
