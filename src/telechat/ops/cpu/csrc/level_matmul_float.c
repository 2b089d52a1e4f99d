/* One panel of a bf16, compact or fp32 weight times one tile of fp32 activations.
 *
 * Even and odd inputs are summed apart and added at the end, for every row alike: a row's result does not
 * depend on the other rows.
 *
 * Compiled once per instruction set level.
 */
#include "compact.h"

INLINE void rows_of_panel(const int format, const int rows, const tc_weight *w, int64_t panel, const float *a,
                          int64_t height, float *y) {
    const uint8_t *block = w->data + panel * w->panel_bytes;
    const tc_patch *patch = format == TC_W_COMPACT ? tc_patches(w, panel, 0) : NULL;
    compact_codes codes = begin_compact(w);
    v16f even[rows], odd[rows];
    for (int r = 0; r < rows; r++) even[r] = odd[r] = splat(0);
    for (int64_t b = 0; b < w->num_blocks; b++) {
        _Alignas(64) uint16_t expanded[BLOCK_VALUES];
        const uint8_t *p = block;
        if (format == TC_W_COMPACT) {
            for (int i = 0; i < COMPACT_BYTES; i += 64) __builtin_prefetch(block + 4096 + i);
            expand_block(&codes, block, expanded);
            patch = mend_block(patch, b, expanded);
            p = (const uint8_t *)expanded;
        }
        for (int pair = 0; pair < BLOCK / 2; pair++) {
            v16f w_even, w_odd;
            if (format != TC_W_COMPACT) __builtin_prefetch(p + 4096);
            if (format != TC_W_F32) {
                v16u both;
                memcpy(&both, p, sizeof both);
                w_even = (v16f)(both << 16);
                w_odd = (v16f)(both & 0xffff0000);
                p += 64;
            } else {
                w_even = load_f32((const float *)p);
                w_odd = load_f32((const float *)p + PANEL);
                p += 128;
            }
            for (int r = 0; r < rows; r++) {
                even[r] += w_even * a[r * BLOCK + pair * 2];
                odd[r] += w_odd * a[r * BLOCK + pair * 2 + 1];
            }
        }
        a += height * BLOCK;
        block += format == TC_W_COMPACT ? COMPACT_BYTES : format == TC_W_BF16 ? BLOCK_VALUES * 2 : BLOCK_VALUES * 4;
    }
    for (int r = 0; r < rows; r++) store_f32(y + r * PANEL, even[r] + odd[r]);
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
#if defined(__AVX512F__)
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
