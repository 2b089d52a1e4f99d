/* One panel of a bf16, compact or fp32 weight times one tile of fp32 activations.
 *
 * Even and odd inputs are summed apart and added at the end, for every row alike: a row's result does not
 * depend on the other rows.
 *
 * Compiled once per instruction set level.
 */
#include "compact.h"

#if defined(__AVX512F__)
#define MOST_ROWS 8
#define MOST_SUMS 16 /* of one or more rows, in registers at the same time */
#else
#define MOST_ROWS 4
#define MOST_SUMS 8
#endif

/* The even (0) or odd (1) one of a pair of inputs, for a part of the outputs. */
INLINE vf take_weights(const int format, const uint8_t *p, const int odd, int part) {
    if (format == TC_W_F32) return load_part((const float *)p + odd * PANEL + part * LANES);
    vu both;
    memcpy(&both, p + part * sizeof both, sizeof both);
    return (vf)(odd ? both & 0xffff0000 : both << 16);
}

/* sums += the even, the odd or all inputs of a block. */
INLINE void add_block(const int format, const int rows, const int first, const int last, const uint8_t *p,
                      const float *a, vf sums[2][MOST_ROWS][PARTS]) {
    for (int pair = 0; pair < BLOCK / 2; pair++) {
        if (format != TC_W_COMPACT) __builtin_prefetch(p + 4096);
#pragma GCC unroll 2
        for (int odd = first; odd <= last; odd++) {
            vf w[PARTS];
            for (int i = 0; i < PARTS; i++) w[i] = take_weights(format, p, odd, i);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < PARTS; i++) sums[odd][r][i] += w[i] * a[r * BLOCK + pair * 2 + odd];
        }
        p += format == TC_W_F32 ? 128 : 64;
    }
}

INLINE void rows_of_panel(const int format, const int rows, const tc_weight *w, int64_t panel, const float *a,
                          int64_t height, float *y) {
    const uint8_t *block = w->data + panel * w->panel_bytes;
    const tc_patch *patch = format == TC_W_COMPACT ? tc_patches(w, panel, 0) : NULL;
    compact_codes codes = begin_compact(w);
    vf sums[2][MOST_ROWS][PARTS];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < PARTS; i++) sums[0][r][i] = sums[1][r][i] = (vf){0};
    for (int64_t b = 0; b < w->num_blocks; b++) {
        _Alignas(64) uint16_t expanded[BLOCK_VALUES];
        const uint8_t *p = block;
        if (format == TC_W_COMPACT) {
            for (int i = 0; i < COMPACT_BYTES; i += 64) __builtin_prefetch(block + 4096 + i);
            expand_block(&codes, block, expanded);
            patch = mend_block(patch, b, expanded);
            p = (const uint8_t *)expanded;
        }
        if (2 * rows * PARTS <= MOST_SUMS) {
            add_block(format, rows, 0, 1, p, a, sums);
        } else {
            add_block(format, rows, 0, 0, p, a, sums);
            add_block(format, rows, 1, 1, p, a, sums);
        }
        a += height * BLOCK;
        block += format == TC_W_COMPACT ? COMPACT_BYTES : format == TC_W_BF16 ? BLOCK_VALUES * 2 : BLOCK_VALUES * 4;
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < PARTS; i++) store_part(y + r * PANEL + i * LANES, sums[0][r][i] + sums[1][r][i]);
}

INLINE int64_t some_rows(const int format, const int rows, const tc_weight *w, int64_t panel,
                         const tc_acts *acts, int64_t tile, int64_t height, int64_t row, float *y) {
    int64_t index = tile * TILE * acts->num_blocks + row;
    const float *a = (const float *)acts->values + index * BLOCK;
    rows_of_panel(format, rows, w, panel, a, height, y + row * PANEL);
    return row + rows;
}

INLINE void all_rows(const int format, const tc_weight *w, int64_t panel, const tc_acts *acts, int64_t tile,
                     float *y) {
    int64_t height = acts->rows - tile * TILE < TILE ? acts->rows - tile * TILE : TILE;
    int64_t row = 0;
#if MOST_ROWS >= 8
    while (height - row >= 8) row = some_rows(format, 8, w, panel, acts, tile, height, row, y);
#endif
    while (height - row >= 4) row = some_rows(format, 4, w, panel, acts, tile, height, row, y);
    while (height - row >= 2) row = some_rows(format, 2, w, panel, acts, tile, height, row, y);
    if (height > row) some_rows(format, 1, w, panel, acts, tile, height, row, y);
}

/* y [rows of the tile][16] = activations x panel, transposed. */
void NAME(float_panel)(const tc_weight *w, int64_t panel, const tc_acts *acts, int64_t tile, float *y) {
    if (w->format == TC_W_BF16) all_rows(TC_W_BF16, w, panel, acts, tile, y);
    else if (w->format == TC_W_COMPACT) all_rows(TC_W_COMPACT, w, panel, acts, tile, y);
    else all_rows(TC_W_F32, w, panel, acts, tile, y);
}
