/* Products of tiles with AMX: in bf16 for bf16 weights at any number of rows and for quantised weights at many, and in
 * 8 bits for w8a8, whose tiles have as many bytes and whose sums are integers.
 *
 * Every output is the sum over its inputs in order, 32 at a time, whatever the number of rows: a row's result
 * does not depend on the other rows. With few rows and bf16 weights the sums stay in tile registers from the
 * first input to the last. With more a part of the inputs is taken at a time: two panels of it (16 KB) stay in the first-level
 * cache and the activations of it in the second while all rows pass by, and the sums wait in memory. Meanwhile
 * the next two panels are brought nearer, or turned into bf16 where they are quantised or compact: vector units have
 * nothing else to do while the tiles multiply.
 */
#include "amx.h"
#include "compact.h"
#include "dequantise.h"

#define TILE_BYTES 1024 /* 16 rows of 32 bf16, or of 64 bytes */
#define TILE_SUMS (TILE * PANEL)
#define MAX_TILES 32 /* rows are taken so many tiles at a time: their sums are to stay in the second-level cache */
#define FEW_TILES 8  /* whose activations fit there as a whole */
#define AHEAD 4096   /* bytes between what is used and what is fetched where weights stream */

typedef struct {
    const tc_weight *w;
    const tc_acts *acts;
    const tc_output *output;
    const tc_kernels *kernels;
    int64_t first_panel, num_panels, first_tile, num_tiles;
    float *sums;        /* [pair of panels][pair of tiles][tile][panel][16][16] */
    uint8_t *buffers[2]; /* two panels of one part in bf16, this one and the next */
    compact_codes codes;
    uint8_t *expanded;   /* two whole panels in bf16, where there are few rows */
} job;

/* One part of a pair of panels. */
typedef struct {
    int64_t panel, block, num_blocks;
    const tc_patch *patches[2]; /* of compact weights, from what is to be made ready next on */
} span;

/* Whether the weight's own bytes are tiles; otherwise they are dequantised or expanded first. */
static int is_in_place(const job *j) { return j->w->format == TC_W_BF16 || j->w->format == TC_W_W8A8; }

/* The weight's panel that is the first or second of a pair; an odd last one is multiplied twice. */
static int64_t panel_of(const job *j, int64_t panel, int second) {
    return j->first_panel + panel + (second && panel + 1 < j->num_panels);
}

static int fits_whole(const job *j) { return j->num_tiles <= FEW_TILES; }

static int64_t pairs(int64_t count) { return (count + 1) / 2; }

/* Whether all inputs of the rows are to be taken at once. */
static int is_few(const tc_acts *acts) { return acts->part == acts->num_blocks; }

static size_t sums_bytes(const tc_acts *acts, int64_t num_panels) {
    int64_t tiles = (acts->rows + TILE - 1) / TILE;
    if (tiles > MAX_TILES) tiles = MAX_TILES;
    return (size_t)(pairs(num_panels) * pairs(tiles)) * 4 * TILE_BYTES;
}

size_t tc_amx_scratch(const tc_acts *acts, int64_t num_panels) {
    size_t expanded = is_few(acts) ? (size_t)acts->num_blocks * 2 * TILE_BYTES : 0;
    return sums_bytes(acts, num_panels) + 4 * PART * TILE_BYTES + expanded;
}

/* ---- tiles ------------------------------------------------------------------------------------------- */

static void configure(int64_t height) {
    tile_config config = {0};
    for (int i = 0; i < 6; i++) set_tile(&config, i, height, 64);
    for (int i = 6; i < 8; i++) set_tile(&config, i, BLOCK / 2, 64);
    load_config(&config);
}

#define FETCH_LINES(p, bytes, level) \
    for (int64_t line = 0; line < (bytes); line += 64) _mm_prefetch((const char *)(p) + line, level)

#define MULTIPLY(sum, rows, weights)                         \
    if (is_w8a8) { _tile_dpbusd(sum, rows, weights); } \
    else { _tile_dpbf16ps(sum, rows, weights); }

/* Two tiles of rows by two panels: four sums stay in registers over `count` blocks. The activations of a step
 * are loaded during the step before. */
INLINE void two_by_two(const int is_w8a8, const uint8_t *a, const uint8_t *b0, const uint8_t *b1, int64_t count,
                       float *sums, int is_first, const int is_streaming) {
    FENCE();
    if (is_first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + TILE_SUMS, 64);
        _tile_loadd(2, sums + 2 * TILE_SUMS, 64);
        _tile_loadd(3, sums + 3 * TILE_SUMS, 64);
    }
    _tile_loadd(4, a, 64);
    _tile_loadd(5, a + TILE_BYTES, 64);
    for (int64_t i = 0; i < count; i++) {
        if (is_streaming) FETCH_LINES(b0 + i * TILE_BYTES + AHEAD, TILE_BYTES, _MM_HINT_T0);
        if (is_streaming) FETCH_LINES(b1 + i * TILE_BYTES + AHEAD, TILE_BYTES, _MM_HINT_T0);
        a += 2 * TILE_BYTES;
        _tile_loadd(6, b0 + i * TILE_BYTES, 64);
        _tile_loadd(7, b1 + i * TILE_BYTES, 64);
        MULTIPLY(0, 4, 6);
        MULTIPLY(1, 4, 7);
        _tile_loadd(4, a, 64);
        MULTIPLY(2, 5, 6);
        MULTIPLY(3, 5, 7);
        _tile_loadd(5, a + TILE_BYTES, 64);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE_SUMS, 64);
    _tile_stored(2, sums + 2 * TILE_SUMS, 64);
    _tile_stored(3, sums + 3 * TILE_SUMS, 64);
    FENCE();
}

/* One tile of rows, each block `a_bytes` after the last, by two panels. */
INLINE void one_by_two(const int is_w8a8, const uint8_t *a, int64_t a_bytes, const uint8_t *b0, const uint8_t *b1,
                       int64_t count, float *sums, int is_first, const int is_streaming) {
    FENCE();
    if (is_first) {
        _tile_zero(0);
        _tile_zero(1);
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + TILE_SUMS, 64);
    }
    for (int64_t i = 0; i < count; i++) {
        if (is_streaming) FETCH_LINES(b0 + i * TILE_BYTES + AHEAD, TILE_BYTES, _MM_HINT_T0);
        if (is_streaming) FETCH_LINES(b1 + i * TILE_BYTES + AHEAD, TILE_BYTES, _MM_HINT_T0);
        _tile_loadd(4, a + i * a_bytes, 64);
        _tile_loadd(6, b0 + i * TILE_BYTES, 64);
        _tile_loadd(7, b1 + i * TILE_BYTES, 64);
        MULTIPLY(0, 4, 6);
        MULTIPLY(1, 4, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE_SUMS, 64);
    FENCE();
}

/* ---- compact weights with few rows --------------------------------------------------------------------- */

/* Two panels, expanded block by block a step before tiles are loaded. */
typedef struct {
    compact_codes codes;
    const uint8_t *panels[2];
    const tc_patch *patches[2];
    uint8_t *tiles[2];
    int64_t mask; /* of the blocks that are kept: all, or the last two */
} expansion;

INLINE expansion begin_expansion(const job *j, int64_t panel, int keeps_all) {
    int64_t kept = keeps_all || j->w->num_blocks == 1 ? j->w->num_blocks : 2;
    expansion e = {.codes = j->codes, .mask = keeps_all ? INT64_MAX : 1};
    const uint16_t *none;
    for (int i = 0; i < 2; i++) {
        int64_t at = panel_of(j, panel, i);
        e.panels[i] = tc_block(j->w, at, 0, &none);
        e.patches[i] = tc_patches(j->w, at, 0);
        e.tiles[i] = j->expanded + i * kept * TILE_BYTES;
    }
    return e;
}

INLINE void *expanded(const expansion *e, int panel, int64_t block) {
    return e->tiles[panel] + (block & e->mask) * TILE_BYTES;
}

INLINE void expand(expansion *e, int64_t block) {
    for (int i = 0; i < 2; i++) {
        const uint8_t *p = e->panels[i] + block * COMPACT_BYTES;
        FETCH_LINES(p + 4 * COMPACT_BYTES, COMPACT_BYTES, _MM_HINT_T0);
        expand_block(&e->codes, p, expanded(e, i, block));
        e->patches[i] = mend_block(e->patches[i], block, expanded(e, i, block));
    }
    FENCE();
}

/* One or two tiles of rows, each block `a_bytes` after the last, by two panels. */
INLINE void expand_and_multiply(const int tiles, expansion *e, const uint8_t *a, int64_t a_bytes, int64_t count,
                                float *sums) {
    expand(e, 0);
    _tile_zero(0);
    _tile_zero(1);
    if (tiles == 2) _tile_zero(2);
    if (tiles == 2) _tile_zero(3);
    for (int64_t i = 0; i < count; i++, a += a_bytes) {
        if (i + 1 < count) expand(e, i + 1);
        _tile_loadd(4, a, 64);
        _tile_loadd(6, expanded(e, 0, i), 64);
        _tile_loadd(7, expanded(e, 1, i), 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (tiles == 1) continue;
        _tile_loadd(5, a + TILE_BYTES, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE_SUMS, 64);
    if (tiles == 2) _tile_stored(2, sums + 2 * TILE_SUMS, 64);
    if (tiles == 2) _tile_stored(3, sums + 3 * TILE_SUMS, 64);
    FENCE();
}

/* ---- loops ------------------------------------------------------------------------------------------- */

/* The integer sums of one tile and one panel as the values they stand for. */
static void scale_sums(const job *j, int64_t panel, int64_t tile, int64_t rows, const float *sums, float *y) {
    v16f scale = load_f32(tc_out_scales(j->w) + panel * PANEL);
    v16i offset = load_i32(tc_out_offsets(j->w) + panel * PANEL);
    for (int64_t r = 0; r < rows; r++) {
        v16i exact = load_i32((const int32_t *)sums + r * PANEL);
        store_f32(y + r * PANEL, scaled_sums(exact, offset, scale, j->acts->scales[tile * TILE + r]));
    }
}

/* The sums of a pair of tiles and a pair of panels to where results go. */
static void put_out(const job *j, int64_t panel, int64_t tile, int64_t num_tiles, const float *sums) {
    _Alignas(64) float y[TILE_SUMS];
    for (int64_t t = tile; t < tile + num_tiles; t++) {
        int64_t rows = j->acts->rows - t * TILE < TILE ? j->acts->rows - t * TILE : TILE;
        for (int64_t p = panel; p < panel + 2 && p < j->num_panels; p++, sums += TILE_SUMS) {
            int64_t column = (j->first_panel + p) * PANEL;
            int64_t count = j->w->rows - column < PANEL ? j->w->rows - column : PANEL;
            if (j->w->format == TC_W_W8A8) scale_sums(j, j->first_panel + p, t, rows, sums, y);
            j->kernels->store(j->output, j->w->format == TC_W_W8A8 ? y : sums, t * TILE, rows, column, count);
        }
        if (panel + 1 == j->num_panels) sums += TILE_SUMS; /* an odd last panel was multiplied twice */
    }
}

/* Activations of one tile of rows from block `first` of a part of `count` blocks on. */
static const uint8_t *rows_at(const tc_acts *acts, int64_t tile, int64_t first, int64_t count) {
    return (const uint8_t *)acts->values + (acts->stored_rows * first + tile * TILE * count) * BLOCK * 2;
}

/* Weights streaming through, pair after pair of panels; further rows find them in the second-level cache. */
INLINE void few_rows_of(const int is_w8a8, const job *j) {
    const uint16_t *none;
    int64_t count = j->w->num_blocks, tiles = (j->acts->stored_rows + TILE - 1) / TILE;
    for (int64_t panel = 0; panel < j->num_panels; panel += 2) {
        const uint8_t *b0 = tc_block(j->w, j->first_panel + panel, 0, &none);
        const uint8_t *b1 = panel + 1 < j->num_panels ? b0 + j->w->panel_bytes : b0;
        for (int64_t tile = 0; tile < tiles; tile += 2) {
            const uint8_t *a = rows_at(j->acts, tile, 0, count);
            int64_t height = j->acts->stored_rows < TILE ? j->acts->stored_rows : TILE;
            if (tile + 1 == tiles) one_by_two(is_w8a8, a, height * BLOCK * 2, b0, b1, count, j->sums, 1, 1);
            else if (tile) two_by_two(is_w8a8, a, b0, b1, count, j->sums, 1, 0);
            else two_by_two(is_w8a8, a, b0, b1, count, j->sums, 1, 1);
            put_out(j, panel, tile, tile + 1 < tiles ? 2 : 1, j->sums);
        }
    }
}

/* The same of compact weights, which the first rows leave in the second-level cache in bf16. */
static void few_rows_of_compact(const job *j) {
    int64_t count = j->w->num_blocks, tiles = (j->acts->stored_rows + TILE - 1) / TILE;
    int64_t height = j->acts->stored_rows < TILE ? j->acts->stored_rows : TILE;
    for (int64_t panel = 0; panel < j->num_panels; panel += 2) {
        expansion e = begin_expansion(j, panel, tiles > 2);
        for (int64_t tile = 0; tile < tiles; tile += 2) {
            const uint8_t *a = rows_at(j->acts, tile, 0, count);
            int is_pair = tile + 1 < tiles;
            if (tile && is_pair) two_by_two(0, a, e.tiles[0], e.tiles[1], count, j->sums, 1, 0);
            else if (tile) one_by_two(0, a, TILE_BYTES, e.tiles[0], e.tiles[1], count, j->sums, 1, 0);
            else if (is_pair) expand_and_multiply(2, &e, a, 2 * TILE_BYTES, count, j->sums);
            else expand_and_multiply(1, &e, a, height * BLOCK * 2, count, j->sums);
            put_out(j, panel, tile, is_pair ? 2 : 1, j->sums);
        }
    }
}

static void few_rows(const job *j) {
    if (j->w->format == TC_W_COMPACT) few_rows_of_compact(j);
    else if (j->w->format == TC_W_W8A8) few_rows_of(1, j);
    else few_rows_of(0, j);
}

/* Where bf16 tiles of one panel of a span are: in place, or in `buffer` where they were dequantised to. */
static const uint8_t *tiles_of(const job *j, const span *s, int second, const uint8_t *buffer) {
    const uint16_t *none;
    int64_t panel = panel_of(j, s->panel, second);
    if (is_in_place(j)) return tc_block(j->w, panel, s->block, &none);
    return buffer + second * PART * TILE_BYTES;
}

/* A share of making a span ready: step `step` of `steps`. */
static void make_ready(const job *j, span *s, int64_t step, int64_t steps, uint8_t *buffer) {
    int64_t block_bytes = j->w->panel_bytes / j->w->num_blocks;
    int64_t units = 2 * s->num_blocks, first = step * units / steps, last = (step + 1) * units / steps;
    for (int64_t unit = first; unit < last; unit++) {
        int64_t second = unit >= s->num_blocks, at = unit - second * s->num_blocks;
        int64_t panel = panel_of(j, s->panel, (int)second);
        const uint16_t *scales;
        const uint8_t *p = tc_block(j->w, panel, s->block + at, &scales);
        uint8_t *out = buffer + (second * PART + at) * TILE_BYTES;
        if (is_in_place(j)) {
            FETCH_LINES(p, TILE_BYTES, _MM_HINT_T1);
            continue;
        }
        FETCH_LINES(p + s->num_blocks * block_bytes, block_bytes, _MM_HINT_T1);
        if (j->w->format == TC_W_COMPACT) {
            expand_block(&j->codes, p, (uint16_t *)out);
            s->patches[second] = mend_block(s->patches[second], s->block + at, (uint16_t *)out);
        } else if (j->w->format == TC_W_INT4) dequantise_block(p, scales, TC_W_INT4, out);
        else dequantise_block(p, scales, TC_W_INT8, out);
    }
}

/* A share of bringing the activations of the next part into the second-level cache. */
static void fetch_share(const job *j, const span *s, int64_t step, int64_t steps) {
    int64_t next = s->block + PART, num_pairs = pairs(j->num_panels);
    if (fits_whole(j) || next >= j->w->num_blocks) return;
    int64_t count = j->w->num_blocks - next < PART ? j->w->num_blocks - next : PART;
    const char *a = (const char *)rows_at(j->acts, j->first_tile, next, count);
    int64_t lines = j->num_tiles * count * TILE, share = s->panel / 2 * steps + step, shares = num_pairs * steps;
    for (int64_t line = share * lines / shares; line < (share + 1) * lines / shares; line++)
        _mm_prefetch(a + line * 64, _MM_HINT_T1);
}

/* All rows of the job x one span, while the next one is made ready. */
INLINE void span_rows_of(const int is_w8a8, const job *j, const span *s, span *next, int which) {
    const uint8_t *b0 = tiles_of(j, s, 0, j->buffers[which]), *b1 = tiles_of(j, s, 1, j->buffers[which]);
    const uint8_t *a = rows_at(j->acts, j->first_tile, s->block, s->num_blocks);
    float *sums = j->sums + s->panel / 2 * pairs(j->num_tiles) * 4 * TILE_SUMS;
    int is_last = s->block + s->num_blocks == j->w->num_blocks;
    int64_t steps = pairs(j->num_tiles);
    for (int64_t step = 0; step < steps; step++, sums += 4 * TILE_SUMS) {
        int64_t left = j->num_tiles - 2 * step;
        if (left > 1) two_by_two(is_w8a8, a, b0, b1, s->num_blocks, sums, s->block == 0, 0);
        else one_by_two(is_w8a8, a, TILE_BYTES, b0, b1, s->num_blocks, sums, s->block == 0, 0);
        a += 2 * s->num_blocks * TILE_BYTES;
        if (next) make_ready(j, next, step, steps, j->buffers[1 - which]);
        fetch_share(j, s, step, steps);
        if (is_last) put_out(j, s->panel, j->first_tile + 2 * step, left > 1 ? 2 : 1, sums);
    }
}

static void span_rows(const job *j, const span *s, span *next, int which) {
    if (j->w->format == TC_W_W8A8) span_rows_of(1, j, s, next, which);
    else span_rows_of(0, j, s, next, which);
}

static span span_at(const job *j, int64_t index) {
    int64_t parts = (j->w->num_blocks + PART - 1) / PART, num_pairs = pairs(j->num_panels);
    int64_t part = fits_whole(j) ? index % parts : index / num_pairs;
    int64_t pair = fits_whole(j) ? index / parts : index % num_pairs;
    int64_t left = j->w->num_blocks - part * PART;
    span s = {.panel = pair * 2, .block = part * PART, .num_blocks = left < PART ? left : PART};
    for (int i = 0; i < 2 && j->w->format == TC_W_COMPACT; i++)
        s.patches[i] = tc_patches(j->w, panel_of(j, s.panel, i), s.block);
    return s;
}

/* Rows by MAX_TILES tiles, then inputs by parts, then panels by pairs; weights in the order they lie in memory
 * where the activations fit the second-level cache as a whole. */
static void many_rows(job *j) {
    int64_t tiles = j->acts->stored_rows / TILE, parts = (j->w->num_blocks + PART - 1) / PART;
    int64_t spans = parts * pairs(j->num_panels);
    for (j->first_tile = 0; j->first_tile < tiles; j->first_tile += MAX_TILES) {
        j->num_tiles = tiles - j->first_tile < MAX_TILES ? tiles - j->first_tile : MAX_TILES;
        span next = span_at(j, 0);
        make_ready(j, &next, 0, 1, j->buffers[0]);
        for (int64_t i = 0; i < spans; i++) {
            span now = next;
            if (i + 1 < spans) next = span_at(j, i + 1);
            span_rows(j, &now, i + 1 < spans ? &next : NULL, (int)(i % 2));
        }
    }
}

/* All rows of `acts` x num_panels panels of `w`, into `output`. `scratch` has tc_amx_scratch bytes. */
void tc_amx_tiles(const tc_weight *w, int64_t first_panel, int64_t num_panels, const tc_acts *acts,
                  const tc_output *output, const tc_kernels *kernels, uint8_t *scratch) {
    job j = {.w = w, .acts = acts, .output = output, .kernels = kernels, .first_panel = first_panel,
             .num_panels = num_panels, .buffers = {scratch, scratch + 2 * PART * TILE_BYTES}};
    j.sums = (float *)(scratch + 4 * PART * TILE_BYTES);
    configure(acts->stored_rows < TILE ? acts->stored_rows : TILE);
    j.codes = begin_compact(w);
    j.expanded = scratch + sums_bytes(acts, num_panels) + 4 * PART * TILE_BYTES;
    if (is_few(acts) && (is_in_place(&j) || w->format == TC_W_COMPACT)) few_rows(&j);
    else many_rows(&j);
    _tile_release();
}
