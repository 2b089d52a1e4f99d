/* Panels of a w8a8 weight times one tile of 8-bit activations.
 *
 * All products are added exactly, in int32; only at the end is a sum scaled. Every level and number of rows gives
 * the same bits, and so does the AMX form.
 *
 * Compiled once per instruction set level.
 */
#include "lanes.h"

#define QUADS (BYTE_BLOCK / 4)

#if defined(__AVX512VNNI__)
#define MOST_ROWS 8
#define AHEAD 4096 /* bytes between what is used of a panel and what is fetched from memory */
typedef __m512i sums_of_row;

INLINE void clear(sums_of_row *sums) { *sums = _mm512_setzero_si512(); }

/* sums += 4 inputs of 16 outputs times those of one row, for several rows. */
INLINE void add_quad(const int rows, const int8_t *w, const uint8_t *a, sums_of_row *sums) {
    __m512i weights = _mm512_loadu_si512(w);
    for (int r = 0; r < rows; r++) {
        int32_t word;
        memcpy(&word, a + r * BYTE_BLOCK, 4);
        sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_set1_epi32(word), weights);
    }
    _mm_prefetch((const char *)w + AHEAD, _MM_HINT_T0);
}

INLINE v16i whole(const sums_of_row *sums) { return (v16i)*sums; }

#elif defined(__AVX2__)
#define MOST_ROWS 2 /* for each of which there are four sums */
/* For each output the sums of even and of odd pairs of inputs, 4 outputs to a register. */
typedef struct {
    __m256i quarter[4];
} sums_of_row;

INLINE void clear(sums_of_row *sums) {
    for (int i = 0; i < 4; i++) sums->quarter[i] = _mm256_setzero_si256();
}

INLINE void add_quad(const int rows, const int8_t *w, const uint8_t *a, sums_of_row *sums) {
    __m256i inputs[rows];
    for (int r = 0; r < rows; r++) {
        int32_t word;
        memcpy(&word, a + r * BYTE_BLOCK, 4);
        inputs[r] = _mm256_cvtepu8_epi16(_mm_set1_epi32(word));
    }
    for (int i = 0; i < 4; i++) {
        __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + i * 16)));
        for (int r = 0; r < rows; r++)
            sums[r].quarter[i] = _mm256_add_epi32(sums[r].quarter[i], _mm256_madd_epi16(weights, inputs[r]));
    }
}

INLINE v16i whole(const sums_of_row *sums) {
    int32_t pairs[2 * PANEL], out[PANEL];
    memcpy(pairs, sums, sizeof pairs);
    for (int i = 0; i < PANEL; i++) out[i] = pairs[2 * i] + pairs[2 * i + 1];
    return load_i32(out);
}

#else
#define MOST_ROWS 2
typedef v16i sums_of_row;

INLINE void clear(sums_of_row *sums) { *sums = splat_int(0); }

INLINE void add_quad(const int rows, const int8_t *w, const uint8_t *a, sums_of_row *sums) {
    for (int r = 0; r < rows; r++)
        for (int lane = 0; lane < PANEL; lane++)
            for (int j = 0; j < 4; j++) sums[r][lane] += w[lane * 4 + j] * a[r * BYTE_BLOCK + j];
}

INLINE v16i whole(const sums_of_row *sums) { return *sums; }
#endif

/* Rows row .. row + rows - 1 of a tile with `height` rows times panels side by side; `rows` and `panels` are constants
 * wherever this is inlined. */
INLINE int64_t some_rows(const int rows, const int panels, const tc_weight *w, int64_t panel, const tc_acts *acts,
                         int64_t tile, int64_t height, int64_t row, float *y) {
    const int8_t *p = (const int8_t *)w->data + panel * w->panel_bytes;
    const uint8_t *a = (const uint8_t *)acts->values + (tile * TILE * acts->num_blocks + row) * BYTE_BLOCK;
    sums_of_row sums[panels][rows];
    for (int j = 0; j < panels; j++)
        for (int r = 0; r < rows; r++) clear(&sums[j][r]);
    for (int64_t b = 0; b < w->num_blocks; b++) {
        for (int quad = 0; quad < QUADS; quad++, p += 64)
            for (int j = 0; j < panels; j++) add_quad(rows, p + j * w->panel_bytes, a + quad * 4, sums[j]);
        a += height * BYTE_BLOCK;
    }
    for (int j = 0; j < panels; j++) {
        v16f scale = load_f32(tc_out_scales(w) + (panel + j) * PANEL);
        v16i offset = load_i32(tc_out_offsets(w) + (panel + j) * PANEL);
        for (int r = 0; r < rows; r++) {
            float row_scale = acts->scales[tile * TILE + row + r];
            v16f values = scaled_sums(whole(&sums[j][r]), offset, scale, row_scale);
            store_f32(y + (j * TILE + row + r) * PANEL, values);
        }
    }
    return row + rows;
}

/* y [panel][16][16] = activations x panels, transposed, for as many of the `count` panels from `panel` on as go well
 * together: at most INT_PANELS. Returns their number. */
int64_t NAME(w8a8_panels)(const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts, int64_t tile,
                          float *y) {
    int64_t height = acts->rows - tile * TILE < TILE ? acts->rows - tile * TILE : TILE, row = 0;
#if MOST_ROWS >= 8
    if (height <= 2 && count >= 4) {
        if (height == 1) some_rows(1, 4, w, panel, acts, tile, height, 0, y);
        else some_rows(2, 4, w, panel, acts, tile, height, 0, y);
        return 4;
    }
    while (height - row >= 8) row = some_rows(8, 1, w, panel, acts, tile, height, row, y);
    while (height - row >= 4) row = some_rows(4, 1, w, panel, acts, tile, height, row, y);
#endif
    while (height - row >= 2) row = some_rows(2, 1, w, panel, acts, tile, height, row, y);
    if (height > row) some_rows(1, 1, w, panel, acts, tile, height, row, y);
    (void)count;
    return 1;
}
