/* Panels of a bf16, compact or fp32 weight times fp32 activations: one panel times a tile, and some times many rows.
 *
 * Even and odd inputs are summed apart and added at the end, for every row and in both forms alike: a row's result
 * does not depend on the other rows.
 *
 * Compiled once per instruction set level.
 */
#include "compact.h"

#if defined(__AVX512F__)
#define MOST_ROWS 8
#define MOST_SUMS 16 /* of one or more rows, in registers at the same time */
#define STEP_ROWS 16 /* of a band at a time: their sums of even inputs, or of odd ones, stay in registers */
#elif defined(__AVX2__)
#define MOST_ROWS 4
#define MOST_SUMS 8
#define STEP_ROWS 6
#else
#define MOST_ROWS 4
#define MOST_SUMS 8
#define STEP_ROWS 4
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

/* ---- many rows --------------------------------------------------------------------------------------- */

/* A part of a panel, a few blocks, and what it is multiplied with and added to. */
typedef struct {
    const uint8_t *weights;
    int64_t num_blocks;
    const float *a; /* [block][height][32] */
    int64_t height;
    float *sums; /* [height][16], those of odd inputs `odd_sums` further on */
    int64_t odd_sums;
} part;

/* Even or odd inputs of some rows, whose sums stay in registers. */
INLINE void add_inputs(const int format, const int rows, const int odd, const part *t, int64_t row) {
    const uint8_t *p = t->weights;
    const float *a = t->a + row * BLOCK + odd;
    float *to = t->sums + row * PANEL + odd * t->odd_sums;
    vf sums[STEP_ROWS][PARTS];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < PARTS; i++) sums[r][i] = load_part(to + r * PANEL + i * LANES);
    for (int64_t b = 0; b < t->num_blocks; b++) {
        for (int pair = 0; pair < BLOCK / 2; pair++) {
            vf w[PARTS];
            for (int i = 0; i < PARTS; i++) w[i] = take_weights(format, p, odd, i);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < PARTS; i++) sums[r][i] += w[i] * a[r * BLOCK + pair * 2];
            p += format == TC_W_F32 ? 128 : 64;
        }
        a += t->height * BLOCK;
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < PARTS; i++) store_part(to + r * PANEL + i * LANES, sums[r][i]);
}

INLINE int64_t add_rows(const int format, const int rows, const part *t, int64_t row) {
    add_inputs(format, rows, 0, t, row);
    add_inputs(format, rows, 1, t, row);
    return row + rows;
}

INLINE void add_part(const int format, const part *t) {
    int64_t row = 0;
    while (t->height - row >= STEP_ROWS) row = add_rows(format, STEP_ROWS, t, row);
#if STEP_ROWS > 8
    while (t->height - row >= 8) row = add_rows(format, 8, t, row);
#endif
#if STEP_ROWS > 4
    while (t->height - row >= 4) row = add_rows(format, 4, t, row);
#endif
    while (t->height - row >= 2) row = add_rows(format, 2, t, row);
    if (t->height > row) add_rows(format, 1, t, row);
}

static void expand_part(const tc_weight *w, int64_t panel, int64_t first, int64_t last, uint16_t *out) {
    const uint8_t *p = w->data + panel * w->panel_bytes + first * COMPACT_BYTES;
    const tc_patch *patch = tc_patches(w, panel, first);
    compact_codes codes = begin_compact(w);
    for (int64_t b = first; b < last; b++, p += COMPACT_BYTES, out += BLOCK_VALUES) {
        expand_block(&codes, p, out);
        patch = mend_block(patch, b, out);
    }
}

/* Ask for share i of n of what lies at p. */
INLINE void fetch(const uint8_t *p, int64_t bytes, int64_t i, int64_t n) {
    for (int64_t at = bytes * i / n; at < bytes * (i + 1) / n; at += 64) __builtin_prefetch(p + at, 0, 2);
}

/* What float_panel does, for `count` panels and the `rows` rows from a tile on, cut for the caches: a part of the
 * inputs at a time, of which a tile and then a panel pass through the first level, while the next ones are fetched.
 * sums [2][panel][rows][16]: the first half is the result. `expanded` has room for a part of the panels in bf16. */
void NAME(float_band)(const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts, int64_t tile, int64_t rows,
                      uint16_t *expanded, float *sums) {
    const int64_t row_bytes = BLOCK * sizeof(float), block_bytes = tc_block_bytes(w->format);
    const int64_t num_sums = count * rows * PANEL, num_tiles = (rows + TILE - 1) / TILE;
    const uint8_t *values = (const uint8_t *)acts->values + tile * TILE * acts->num_blocks * row_bytes;
    memset(sums, 0, (size_t)(2 * num_sums) * sizeof *sums);
    for (int64_t first = 0; first < w->num_blocks; first += PART) {
        int64_t last = first + PART < w->num_blocks ? first + PART : w->num_blocks, num_blocks = last - first;
        for (int64_t i = 0; i < count && w->format == TC_W_COMPACT; i++)
            expand_part(w, panel + i, first, last, expanded + i * PART * BLOCK_VALUES);
        for (int64_t n = 0; n < num_tiles; n++) {
            int64_t height = rows - n * TILE < TILE ? rows - n * TILE : TILE;
            const uint8_t *a = values + (n * TILE * acts->num_blocks + first * height) * row_bytes;
            const uint8_t *next = n + 1 < num_tiles ? a + TILE * acts->num_blocks * row_bytes
                                                    : values + last * TILE * row_bytes;
            for (int64_t i = 0; i < count; i++) {
                const uint8_t *p = w->data + (panel + i) * w->panel_bytes + first * block_bytes;
                fetch(next, num_blocks * height * row_bytes, i, count);
                fetch(p + num_blocks * block_bytes, num_blocks * block_bytes, n, num_tiles);
                if (w->format == TC_W_COMPACT) p = (const uint8_t *)(expanded + i * PART * BLOCK_VALUES);
                part t = {p, num_blocks, (const float *)a, height, sums + (i * rows + n * TILE) * PANEL, num_sums};
                if (w->format == TC_W_F32) add_part(TC_W_F32, &t);
                else add_part(TC_W_BF16, &t);
            }
        }
    }
    for (int64_t i = 0; i < num_sums; i += LANES)
        store_part(sums + i, load_part(sums + i) + load_part(sums + num_sums + i));
}
