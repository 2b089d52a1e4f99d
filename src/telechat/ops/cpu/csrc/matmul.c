/* Products of activations and packed weights: which kernel, and which thread does which panels.
 *
 * The division of work decides speed only, never results.
 */
#include "telechat.h"

/* From so many rows on, an AMX tile product per block beats vector dot products (both give the same bits). */
#define AMX_INT_MIN_ROWS 9
/* So much of bf16 activations, with two panels of bf16 weights, fits the second-level cache. */
#define FEW_BLOCKS (128 * 4096 / BLOCK)
/* From so many rows on fp32 activations are multiplied in bands (both give the same bits). */
#define BAND_MIN_ROWS 32
#define BAND_ROWS 512 /* whose even and odd sums are 64 KB a panel */
#define BAND_PANELS 8
#define EXPANDED_BYTES ((size_t)BAND_PANELS * PART * BLOCK * PANEL * 2) /* of compact weights, as bf16 */
#define TILE_ROW 64 /* bytes of one row of a tile: 32 inputs in bf16, 64 in 8 bits */
#define CHUNKS_PER_THREAD 8
#define MAX_PANELS_PER_CHUNK 16
#define MAX_PANELS_TILES 32 /* 512 rows x 512 outputs of 32-bit sums: half of a second-level cache of 2 MB */
#define MAX_PRODUCTS 4

/* Room for `rows` activations in the form that `w` wants, in the context's scratch memory. */
size_t tc_acts_init(tc_context *c, tc_acts *acts, const tc_weight *w, int64_t rows, int as_tiles) {
    int is_int = w->format == TC_W_INT4 || w->format == TC_W_INT8, is_w8a8 = w->format == TC_W_W8A8;
    *acts = (tc_acts){.rows = rows, .columns = w->columns, .num_blocks = w->num_blocks, .range = w->range};
    acts->stored_rows = as_tiles && (is_int || rows > TILE) ? (rows + TILE - 1) / TILE * TILE : rows;
    int is_few = rows <= 2 * TILE || rows * w->num_blocks <= FEW_BLOCKS;
    acts->part = as_tiles && (is_int || !is_few) ? PART : w->num_blocks;
    acts->tiles_together = as_tiles ? 2 : 1;
    acts->format = is_w8a8 ? TC_ACT_UINT8 : as_tiles ? TC_ACT_BF16 : is_int ? TC_ACT_INT8 : TC_ACT_F32;
    acts->offset = w->format == TC_W_INT4 ? 8 : w->format == TC_W_INT8 ? 128 : tc_is_bf16(w);
    size_t blocks = (size_t)(acts->stored_rows * w->num_blocks);
    size_t width = acts->format == TC_ACT_INT8 ? BLOCK : acts->format == TC_ACT_F32 ? BLOCK * 4 : TILE_ROW;
    /* A pair of tiles more: AMX kernels load one step ahead of what they use. */
    acts->values = tc_alloc(c, blocks * width + (as_tiles ? 2 * TILE * TILE_ROW : 0));
    if (acts->format == TC_ACT_INT8) {
        acts->scales = tc_alloc(c, blocks * sizeof(float));
        acts->corrections = tc_alloc(c, blocks * sizeof(int32_t));
    } else if (is_w8a8) {
        acts->scales = tc_alloc(c, (size_t)acts->stored_rows * sizeof(float));
    }
    return blocks * width;
}

#define PREPARE_BLOCKS 64 /* of one row, for one thread */

typedef struct {
    const tc_context *context;
    const tc_acts *acts;
    const tc_source *source;
    int64_t parts_per_row, parts_per_chunk, blocks_per_part;
} preparation;

static void prepare_chunk(void *arg, int64_t chunk, int thread) {
    (void)thread;
    const preparation *p = arg;
    int64_t end = (chunk + 1) * p->parts_per_chunk;
    if (end > p->parts_per_row * p->acts->stored_rows) end = p->parts_per_row * p->acts->stored_rows;
    for (int64_t part = chunk * p->parts_per_chunk; part < end; part++) {
        int64_t first = part % p->parts_per_row * p->blocks_per_part, last = first + p->blocks_per_part;
        if (last > p->acts->num_blocks) last = p->acts->num_blocks;
        p->context->kernels->prepare(p->acts, p->source, part / p->parts_per_row, first, last);
    }
}

void tc_prepare(tc_context *c, tc_acts *acts, const tc_source *source) {
    int64_t parts_per_row = (acts->num_blocks + PREPARE_BLOCKS - 1) / PREPARE_BLOCKS;
    int64_t blocks = PREPARE_BLOCKS;
    if (acts->range.by_row) parts_per_row = 1, blocks = acts->num_blocks;
    int64_t parts = parts_per_row * acts->stored_rows;
    /* Waking threads costs more than a few thousand values do. */
    int64_t threads = parts < 3 ? 1 : tc_pool_threads(c->pool);
    int64_t per_chunk = threads == 1 ? parts : (parts + threads * 4 - 1) / (threads * 4);
    preparation p = {c, acts, source, parts_per_row, per_chunk, blocks};
    tc_pool_run(c->pool, (parts + per_chunk - 1) / per_chunk, prepare_chunk, &p);
}

typedef struct {
    const tc_context *context;
    const tc_acts *acts;
    const tc_product *products;
    int count;
    int64_t first_panel[MAX_PRODUCTS + 1]; /* panels of all products are counted through */
    int64_t large, num_large, small;       /* panels of a chunk: at the end smaller ones even out the threads */
    uint8_t *scratch;
    size_t scratch_per_thread;
} work;

/* Some rows of `count` panels; y [panel][height][16]. */
static void store_panels(const tc_context *c, const tc_product *product, int64_t panel, int64_t count, const float *y,
                         int64_t height, int64_t row, int64_t rows) {
    for (int64_t i = 0; i < count; i++) {
        int64_t column = (panel + i) * PANEL, left = product->weight->rows - column;
        c->kernels->store(&product->output, y + i * height * PANEL, row, rows, column, left < PANEL ? left : PANEL);
    }
}

static void panel_by_panel(const tc_context *c, const tc_acts *acts, const tc_product *product, int64_t first,
                           int64_t last) {
    const tc_kernels *kernels = c->kernels;
    const tc_weight *w = product->weight;
    _Alignas(64) float y[INT_PANELS * TILE * PANEL];
    for (int64_t tile = 0; tile * TILE < acts->rows; tile++) {
        int64_t rows = acts->rows - tile * TILE < TILE ? acts->rows - tile * TILE : TILE;
        int is_amx = acts->format == TC_ACT_INT8 && c->level == TC_AMX && rows >= AMX_INT_MIN_ROWS;
        if (is_amx) tc_amx_int_begin(rows);
        for (int64_t panel = first, count = 1; panel < last; panel += count) {
            if (acts->format == TC_ACT_F32) kernels->float_panel(w, panel, acts, tile, y);
            else if (acts->format == TC_ACT_UINT8) count = kernels->w8a8_panels(w, panel, last - panel, acts, tile, y);
            else if (is_amx) tc_amx_int_panel(w, panel, acts, tile, y);
            else count = kernels->int_panels(w, panel, last - panel, acts, tile, y);
            store_panels(c, product, panel, count, y, TILE, tile * TILE, rows);
        }
        if (is_amx) tc_amx_int_end();
    }
}

static int in_bands(const tc_acts *acts) { return acts->format == TC_ACT_F32 && acts->rows >= BAND_MIN_ROWS; }

static void band_by_band(const tc_context *c, const tc_acts *acts, const tc_product *product, int64_t first,
                         int64_t last, uint8_t *scratch) {
    float *sums = (float *)(scratch + EXPANDED_BYTES);
    for (int64_t row = 0; row < acts->rows; row += BAND_ROWS) {
        int64_t rows = acts->rows - row < BAND_ROWS ? acts->rows - row : BAND_ROWS;
        for (int64_t panel = first, count; panel < last; panel += count) {
            count = last - panel < BAND_PANELS ? last - panel : BAND_PANELS;
            c->kernels->float_band(product->weight, panel, count, acts, row / TILE, rows, (uint16_t *)scratch, sums);
            store_panels(c, product, panel, count, sums, rows, row, rows);
        }
    }
}

/* Scratch memory that `tc_panels` needs for so many panels. */
size_t tc_panels_scratch(const tc_acts *acts, int64_t num_panels) {
    if (acts->tiles_together == 2) return tc_amx_scratch(acts, num_panels);
    if (!in_bands(acts)) return 0;
    int64_t rows = acts->rows < BAND_ROWS ? acts->rows : BAND_ROWS;
    return EXPANDED_BYTES + (size_t)(2 * BAND_PANELS * rows * PANEL) * sizeof(float);
}

/* Panels first .. last - 1 of a product, on the calling thread. */
void tc_panels(const tc_context *c, const tc_acts *acts, const tc_product *product, int64_t first, int64_t last,
               uint8_t *scratch) {
    if (acts->tiles_together == 2)
        tc_amx_tiles(product->weight, first, last - first, acts, &product->output, c->kernels, scratch);
    else if (in_bands(acts)) band_by_band(c, acts, product, first, last, scratch);
    else panel_by_panel(c, acts, product, first, last);
}

static void multiply_chunk(void *arg, int64_t chunk, int thread) {
    const work *k = arg;
    int64_t begin = chunk < k->num_large ? chunk * k->large : k->num_large * k->large + (chunk - k->num_large) * k->small;
    int64_t end = begin + (chunk < k->num_large ? k->large : k->small);
    for (int i = 0; i < k->count; i++) {
        const tc_product *product = &k->products[i];
        int64_t first = begin - k->first_panel[i], last = end - k->first_panel[i];
        if (first < 0) first = 0;
        if (last > product->weight->num_panels) last = product->weight->num_panels;
        if (first >= last) continue;
        tc_panels(k->context, k->acts, product, first, last, k->scratch + (size_t)thread * k->scratch_per_thread);
    }
}

/* Cut the panels into chunks: large ones, then for each thread one more in small pieces. */
static int64_t divide(work *k, int64_t threads) {
    int in_pairs = k->acts->tiles_together == 2;
    int64_t panels = k->first_panel[k->count], large = panels / (threads * CHUNKS_PER_THREAD);
    int64_t most = in_pairs && k->acts->part < k->acts->num_blocks ? MAX_PANELS_TILES : MAX_PANELS_PER_CHUNK;
    if (large > most) large = most;
    if (large < INT_PANELS) large = panels < threads * INT_PANELS ? panels / threads : INT_PANELS;
    if (in_pairs) large = (large + 1) / 2 * 2;
    k->large = large < 1 ? 1 : large;
    k->small = in_pairs ? (k->large / 4 + 1) / 2 * 2 : k->large / 4;
    if (k->small < INT_PANELS) k->small = k->large < INT_PANELS ? k->large : INT_PANELS;
    k->num_large = panels / k->large - threads;
    if (k->num_large < 0) k->num_large = 0;
    int64_t rest = panels - k->num_large * k->large;
    return k->num_large + (rest + k->small - 1) / k->small;
}

/* Several weights of one format and shape of input times the same activations. */
void tc_products(tc_context *c, const tc_acts *acts, const tc_product *products, int count) {
    int64_t threads = tc_pool_threads(c->pool);
    work k = {.context = c, .acts = acts, .products = products, .count = count};
    for (int i = 0; i < count; i++) k.first_panel[i + 1] = k.first_panel[i] + products[i].weight->num_panels;
    int64_t num_chunks = divide(&k, threads);
    k.scratch_per_thread = (tc_panels_scratch(acts, k.large) + 63) / 64 * 64;
    if (k.scratch_per_thread) k.scratch = tc_alloc(c, (size_t)threads * k.scratch_per_thread);
    tc_pool_run(c->pool, num_chunks, multiply_chunk, &k);
}

tc_output tc_into(float *out, int64_t stride, const float *bias, int accumulate) {
    return (tc_output){out, bias, TC_F32, accumulate, stride};
}

static void multiply_alike(tc_context *c, const tc_source *source, int64_t rows, const tc_product *products, int count,
                           int as_tiles) {
    tc_acts acts;
    tc_acts_init(c, &acts, products[0].weight, rows, as_tiles);
    tc_prepare(c, &acts, source);
    tc_products(c, &acts, products, count);
}

/* Products with rows first .. end - 1. */
static void multiply_from(tc_context *c, const tc_source *source, int64_t first, int64_t end,
                          const tc_product *products, int count, int as_tiles) {
    tc_source s = *source;
    tc_product moved[MAX_PRODUCTS];
    s.x = (const char *)s.x + first * s.stride * (s.dtype == TC_F32 ? 4 : 2);
    if (s.gated_by) s.gated_by += first * s.stride;
    for (int i = 0; i < count; i++) {
        moved[i] = products[i];
        tc_output *o = &moved[i].output;
        o->out = (char *)o->out + first * o->stride * (o->dtype == TC_F32 ? 4 : 2);
    }
    multiply_alike(c, &s, end - first, moved, count, as_tiles);
}

static int shares_activations(const tc_weight *a, const tc_weight *b) {
    return a->format == b->format && a->num_blocks == b->num_blocks && a->range.scale == b->range.scale &&
           a->range.offset == b->range.offset && a->range.by_row == b->range.by_row;
}

/* Products of the rows of `source` with one or two weights; these share the prepared activations where their
 * formats allow it. Quantised weights have a form for decoding, in integers, and on AMX one for prompts, in bf16,
 * whose bits differ: the first num_decoding rows take the one, the rest the other, so that how a row is computed
 * does not depend on how many there are. */
void tc_multiply(tc_context *c, const tc_source *source, int64_t rows, const tc_product *products, int count,
                 int64_t num_decoding) {
    const tc_weight *w = products[0].weight, *last = products[count - 1].weight;
    if (!shares_activations(w, last)) {
        tc_multiply(c, source, rows, products, 1, num_decoding);
        tc_multiply(c, source, rows, products + 1, 1, num_decoding);
        return;
    }
    int is_quantised = w->format == TC_W_INT4 || w->format == TC_W_INT8;
    if (c->level < TC_AMX || !is_quantised || num_decoding >= rows) {
        int as_tiles = c->level == TC_AMX && (tc_is_bf16(w) || w->format == TC_W_W8A8);
        multiply_alike(c, source, rows, products, count, as_tiles);
        return;
    }
    if (num_decoding) multiply_from(c, source, 0, num_decoding, products, count, 0);
    multiply_from(c, source, num_decoding, rows, products, count, 1);
}

/* out [M, N] = x [M, K] x weight, plus bias. x and out are fp32 or bf16. */
API void tc_matmul(tc_context *c, const tc_weight *w, const tc_source *source, int64_t rows, const tc_output *output,
                   int64_t num_decoding) {
    if (rows < 1) return;
    tc_enter(c);
    tc_product product = {w, *output};
    tc_multiply(c, source, rows, &product, 1, num_decoding);
    tc_leave(c);
}
