/* bf16 products with AMX, for bf16 weights at any number of rows and for quantised weights at many.
 *
 * Every output is the sum over its inputs in order, 32 at a time, whatever the number of rows: a row's result
 * does not depend on the other rows. Quantised weights are turned into bf16 a part at a time: two panels by
 * 512 inputs, 32 KB that stay in the first-level cache while all rows pass by; partial sums wait in fp32.
 */
#include "amx.h"

#define FEW_TILES 4

/* A row of bf16 tiles: a block takes 1 KB of weights, or `height` * 64 bytes of activations. */
#define TILE_BYTES 1024

size_t tc_amx_scratch(const tc_weight *w, const tc_acts *acts, int64_t num_panels) {
    int64_t tiles = (acts->rows + TILE - 1) / TILE;
    size_t sums = (size_t)(tiles * (num_panels + 1)) * TILE_BYTES;
    return sums + (w->format == TC_W_BF16 ? 0 : 2 * PART * TILE_BYTES);
}

/* value = byte * scale - offset * scale, for 16 outputs; to bf16 in the upper half of each lane. */
INLINE v16u upper_bf16(v16u bytes, v16f scale, v16f shift) {
    v16f value = __builtin_convertvector((v16i)bytes, v16f) * scale + shift;
    return (v16u)value + 0x8000;
}

/* One quad of 16 outputs, unsigned bytes, into two pairs of a bf16 tile. */
INLINE void spread_quad(v16u quad, v16f scale, v16f shift, uint8_t *out) {
    v16u b0 = upper_bf16(quad & 0xff, scale, shift), b1 = upper_bf16((quad >> 8) & 0xff, scale, shift);
    v16u b2 = upper_bf16((quad >> 16) & 0xff, scale, shift), b3 = upper_bf16(quad >> 24, scale, shift);
    v16u first = (b0 >> 16) | (b1 & 0xffff0000), second = (b2 >> 16) | (b3 & 0xffff0000);
    memcpy(out, &first, 64);
    memcpy(out + 64, &second, 64);
}

INLINE void dequantise_block(const uint8_t *p, const uint16_t *scales, const int format, uint8_t *out) {
    v16f scale = load_f16(scales);
    v16f shift = scale * (format == TC_W_INT4 ? -8.0f : -128.0f);
    for (int i = 0; i < (format == TC_W_INT4 ? 4 : 8); i++) {
        v16u quad;
        memcpy(&quad, p + i * 64, 64);
        if (format == TC_W_INT8) {
            spread_quad(quad, scale, shift, out + i * 128);
            continue;
        }
        spread_quad(quad & 0x0f0f0f0f, scale, shift, out + i * 128);
        spread_quad((quad >> 4) & 0x0f0f0f0f, scale, shift, out + (i + 4) * 128);
    }
}

/* Blocks first .. first+count-1 of a panel as bf16 tiles: in place, or dequantised into `buffer`. */
static const uint8_t *weight_tiles(const tc_weight *w, int64_t panel, int64_t first, int64_t count,
                                   uint8_t *buffer) {
    const uint16_t *scales;
    if (w->format == TC_W_BF16) return tc_block(w, panel, first, &scales);
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *p = tc_block(w, panel, first + i, &scales);
        if (w->format == TC_W_INT4) dequantise_block(p, scales, TC_W_INT4, buffer + i * TILE_BYTES);
        else dequantise_block(p, scales, TC_W_INT8, buffer + i * TILE_BYTES);
    }
    return buffer;
}

static void configure(int64_t height) {
    tile_config config = {0};
    for (int i = 0; i < 4; i++) set_tile(&config, i, height, 64);
    for (int i = 4; i < 6; i++) set_tile(&config, i, height, 64);
    for (int i = 6; i < 8; i++) set_tile(&config, i, BLOCK / 2, 64);
    load_config(&config);
}

/* Two tiles of rows by two panels: four sums stay in registers over `count` blocks. */
static void two_by_two(const uint8_t *a0, const uint8_t *a1, const uint8_t *b0, const uint8_t *b1, int64_t count,
                       float *c00, float *c01, float *c10, float *c11) {
    FENCE();
    _tile_loadd(0, c00, 64);
    _tile_loadd(1, c01, 64);
    _tile_loadd(2, c10, 64);
    _tile_loadd(3, c11, 64);
    for (int64_t i = 0; i < count; i++) {
        _tile_loadd(6, b0 + i * TILE_BYTES, 64);
        _tile_loadd(4, a0 + i * TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1 + i * TILE_BYTES, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1 + i * TILE_BYTES, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c00, 64);
    _tile_stored(1, c01, 64);
    _tile_stored(2, c10, 64);
    _tile_stored(3, c11, 64);
    FENCE();
}

/* One tile of rows by two panels. */
static void one_by_two(const uint8_t *a, int64_t a_bytes, const uint8_t *b0, const uint8_t *b1, int64_t count,
                       float *c0, float *c1, int from_memory) {
    FENCE();
    _tile_loadd(0, c0, 64);
    _tile_loadd(1, c1, 64);
    for (int64_t i = 0; i < count; i++) {
        if (from_memory) { /* few rows: the weights stream, a few KB ahead hides the latency */
            for (int line = 0; line < TILE_BYTES; line += 64) {
                _mm_prefetch((const char *)b0 + i * TILE_BYTES + 4096 + line, _MM_HINT_T0);
                _mm_prefetch((const char *)b1 + i * TILE_BYTES + 4096 + line, _MM_HINT_T0);
            }
        }
        _tile_loadd(4, a + i * a_bytes, 64);
        _tile_loadd(6, b0 + i * TILE_BYTES, 64);
        _tile_loadd(7, b1 + i * TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, c0, 64);
    _tile_stored(1, c1, 64);
    FENCE();
}

typedef struct {
    const tc_weight *w;
    const tc_acts *acts;
    int64_t first_panel, num_panels, num_tiles;
    float *sums;     /* [panel, one more][tile][16][16] */
    uint8_t *buffer; /* two parts of dequantised panels */
} job;

static float *sums_of(const job *j, int64_t panel, int64_t tile) {
    return j->sums + (panel * j->num_tiles + tile) * TILE * PANEL;
}

/* All rows x panels p and p + 1 of the job x one part of the inputs. */
static void pair_part(const job *j, int64_t p, int64_t first, int64_t count) {
    int64_t rows = j->acts->rows;
    int64_t next = p + 1 < j->num_panels ? p + 1 : p; /* an odd last panel is multiplied twice, kept once */
    const uint8_t *b0 = weight_tiles(j->w, j->first_panel + p, first, count, j->buffer);
    const uint8_t *b1 = weight_tiles(j->w, j->first_panel + next, first, count, j->buffer + PART * TILE_BYTES);
    const uint8_t *a = (const uint8_t *)j->acts->values + rows * first * 64;
    int64_t tile_stride = count * TILE_BYTES;
    int64_t full = rows / TILE, height = rows % TILE, tile = 0;
    if (full && height) configure(TILE);
    for (; tile + 2 <= full; tile += 2) {
        const uint8_t *a0 = a + tile * tile_stride;
        two_by_two(a0, a0 + tile_stride, b0, b1, count, sums_of(j, p, tile), sums_of(j, p + 1, tile),
                   sums_of(j, p, tile + 1), sums_of(j, p + 1, tile + 1));
    }
    int from_memory = j->num_tiles == 1 && j->w->format == TC_W_BF16;
    for (; tile < full; tile++)
        one_by_two(a + tile * tile_stride, TILE_BYTES, b0, b1, count, sums_of(j, p, tile), sums_of(j, p + 1, tile),
                   from_memory);
    if (height) {
        if (full) configure(height);
        one_by_two(a + full * tile_stride, height * 64, b0, b1, count, sums_of(j, p, full), sums_of(j, p + 1, full),
                   from_memory);
    }
}

/* All rows of `acts` x num_panels panels of `w`, into `output`. `scratch` has tc_amx_scratch bytes. */
void tc_amx_bf16(const tc_weight *w, int64_t first_panel, int64_t num_panels, const tc_acts *acts,
                 const tc_output *output, const tc_kernels *kernels, uint8_t *scratch) {
    int64_t num_tiles = (acts->rows + TILE - 1) / TILE;
    size_t sum_bytes = (size_t)(num_tiles * (num_panels + 1)) * TILE_BYTES;
    job j = {w, acts, first_panel, num_panels, num_tiles, (float *)scratch, scratch + sum_bytes};
    memset(scratch, 0, sum_bytes);
    configure(acts->rows < TILE ? acts->rows : TILE); /* `pair_part` changes it where tiles differ in height */
    if (num_tiles <= FEW_TILES) { /* weights in the order they lie in memory */
        for (int64_t p = 0; p < num_panels; p += 2)
            for (int64_t b = 0; b < w->num_blocks; b += PART)
                pair_part(&j, p, b, w->num_blocks - b < PART ? w->num_blocks - b : PART);
    } else { /* a part of all activations stays in the second-level cache */
        for (int64_t b = 0; b < w->num_blocks; b += PART)
            for (int64_t p = 0; p < num_panels; p += 2)
                pair_part(&j, p, b, w->num_blocks - b < PART ? w->num_blocks - b : PART);
    }
    _tile_release();
    for (int64_t p = 0; p < num_panels; p++) {
        int64_t column = (first_panel + p) * PANEL;
        int64_t count = w->rows - column < PANEL ? w->rows - column : PANEL;
        for (int64_t tile = 0; tile < num_tiles; tile++) {
            int64_t rows = acts->rows - tile * TILE < TILE ? acts->rows - tile * TILE : TILE;
            kernels->store(output, sums_of(&j, p, tile), tile * TILE, rows, column, count);
        }
    }
}
