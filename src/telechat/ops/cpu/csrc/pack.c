/* Packed weights: their sizes, and the way between them and plain matrices.
 *
 * Packing runs once per weight; this file is compiled without instruction set flags.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compact.h"

enum { FROM_F32 = 0, FROM_BF16 = 1, FROM_F16 = 2 };

static float f16_to_float(uint16_t h) {
    uint32_t u = (uint32_t)(h & 0x7fff) << 13;
    float f;
    memcpy(&f, &u, 4);
    f *= 0x1p112f;
    return h & 0x8000 ? -f : f;
}

/* fp32 -> fp16 to nearest even, for |f| < 65520; scales of weights are far below. */
static uint16_t float_to_f16(float f) {
    uint32_t u, sign;
    memcpy(&u, &f, 4);
    sign = (u >> 16) & 0x8000;
    float magnitude = fabsf(f);
    if (magnitude < 0x1p-14f) { /* subnormal in fp16: units of 2^-24 */
        return (uint16_t)(sign | (uint32_t)lrintf(magnitude * 0x1p24f));
    }
    u &= 0x7fffffff;
    u += 0xfff + ((u >> 13) & 1);
    return (uint16_t)(sign | ((u - (112u << 23)) >> 13));
}

int64_t tc_block_bytes(int format) {
    static const int64_t bytes[] = {256, 512, 1024, 2048, COMPACT_BYTES, 1024};
    return bytes[format];
}

static int has_scales(const tc_weight *w) { return w->format == TC_W_INT4 || w->format == TC_W_INT8; }

static int64_t block_inputs(const tc_weight *w) { return w->format == TC_W_W8A8 ? BYTE_BLOCK : BLOCK; }

int64_t tc_superblock(const tc_weight *w) { return has_scales(w) ? 2 * (int64_t)w->group : block_inputs(w); }

/* Bytes behind the panels. */
static int64_t out_bytes(const tc_weight *w) {
    if (w->format == TC_W_COMPACT) return tc_compact_out_bytes(w);
    return w->format == TC_W_W8A8 ? w->num_panels * PANEL * 8 : 0;
}

const float *tc_out_scales(const tc_weight *w) { return (const float *)(w->data + w->num_panels * w->panel_bytes); }

const int32_t *tc_out_offsets(const tc_weight *w) {
    return (const int32_t *)(tc_out_scales(w) + w->num_panels * PANEL);
}

/* Fill in the derived fields of a weight whose format, group, rows and columns are set; returns its bytes. */
API int64_t tc_weight_init(tc_weight *w) {
    int64_t unit = tc_superblock(w);
    int64_t units = (w->columns + unit - 1) / unit;
    w->num_blocks = units * (unit / block_inputs(w));
    w->num_panels = (w->rows + PANEL - 1) / PANEL;
    w->panel_bytes = w->num_blocks * tc_block_bytes(w->format) + (has_scales(w) ? units * 2 * PANEL * 2 : 0);
    return w->num_panels * w->panel_bytes + out_bytes(w);
}

/* The bytes of a block, and the 16 scales that belong to it. */
const uint8_t *tc_block(const tc_weight *w, int64_t panel, int64_t block, const uint16_t **scales) {
    const uint8_t *base = w->data + panel * w->panel_bytes;
    if (!has_scales(w)) {
        *scales = NULL;
        return base + block * tc_block_bytes(w->format);
    }
    int64_t per_unit = tc_superblock(w) / BLOCK;
    const uint8_t *unit = base + block / per_unit * (per_unit * tc_block_bytes(w->format) + 2 * PANEL * 2);
    int64_t half = block % per_unit / (per_unit / 2);
    *scales = (const uint16_t *)(unit + per_unit * tc_block_bytes(w->format)) + half * PANEL;
    return unit + block % per_unit * tc_block_bytes(w->format);
}

static float source_value(const void *source, int64_t index, int dtype) {
    if (dtype == FROM_F32) return ((const float *)source)[index];
    uint16_t half = ((const uint16_t *)source)[index];
    return dtype == FROM_BF16 ? bf16_to_float(half) : f16_to_float(half);
}

/* Round-to-nearest of one group. int4 takes its scale from the value of largest magnitude, which becomes
 * exactly -8 (as all 16 levels are then used); int8 maps the largest magnitude to 127. */
static uint16_t quantise_group(const float *x, int count, int format, int8_t *q) {
    float low = 0, high = 0;
    for (int i = 0; i < count; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float extreme = high >= -low ? high : low;
    uint16_t scale = float_to_f16(format == TC_W_INT4 ? extreme / -8.0f : fabsf(extreme) / 127.0f);
    float s = f16_to_float(scale);
    int least = format == TC_W_INT4 ? -8 : -127, most = format == TC_W_INT4 ? 7 : 127;
    for (int i = 0; i < count; i++) {
        long n = s == 0 ? 0 : lrintf(fminf(fmaxf(x[i] / s, -1000.0f), 1000.0f));
        q[i] = (int8_t)(n < least ? least : n > most ? most : n);
    }
    return scale;
}

static void put_int(uint8_t *block, int format, int lane, int k, int q) {
    int quad = k / 4;
    if (format == TC_W_INT8) {
        block[quad * 64 + lane * 4 + k % 4] = (uint8_t)(q + 128);
        return;
    }
    uint8_t *byte = block + quad % 4 * 64 + lane * 4 + k % 4;
    *byte = quad < 4 ? (uint8_t)((*byte & 0xf0) | (q + 8)) : (uint8_t)((*byte & 0x0f) | ((q + 8) << 4));
}

static int get_int(const uint8_t *block, int format, int lane, int k) {
    int quad = k / 4;
    if (format == TC_W_INT8) return block[quad * 64 + lane * 4 + k % 4] - 128;
    int byte = block[quad % 4 * 64 + lane * 4 + k % 4];
    return (quad < 4 ? byte & 15 : byte >> 4) - 8;
}

/* One output row of integers and scales into its lane; what lies past the columns becomes 0. */
static void put_int_row(const tc_weight *w, int64_t row, const int8_t *q, const uint16_t *scales) {
    int64_t num_groups = (w->columns + w->group - 1) / w->group;
    for (int64_t b = 0; b < w->num_blocks; b++) {
        const uint16_t *block_scales;
        uint8_t *block = (uint8_t *)tc_block(w, row / PANEL, b, &block_scales);
        int64_t group = b * BLOCK / w->group;
        ((uint16_t *)block_scales)[row % PANEL] = group < num_groups && scales ? scales[group] : 0;
        for (int k = 0; k < BLOCK; k++) {
            int64_t column = b * BLOCK + k;
            put_int(block, w->format, (int)(row % PANEL), k, q && column < w->columns ? q[column] : 0);
        }
    }
}

/* As put_float_row, without a change of type: the blocks of a panel are one run of pairs. */
static void put_bf16_row(const tc_weight *w, int64_t row, const uint16_t *source) {
    uint16_t *to = (uint16_t *)(w->data + row / PANEL * w->panel_bytes) + row % PANEL * 2;
    for (int64_t column = 0; column < w->num_blocks * BLOCK; column += 2, to += 2 * PANEL)
        for (int i = 0; i < 2; i++) to[i] = column + i < w->columns ? source[row * w->columns + column + i] : 0;
}

static void put_float_row(const tc_weight *w, int64_t row, const void *source, int dtype) {
    const uint16_t *none;
    if (source && dtype == FROM_BF16 && w->format == TC_W_BF16) {
        put_bf16_row(w, row, source);
        return;
    }
    for (int64_t column = 0; column < w->num_blocks * BLOCK; column++) {
        int inside = source && column < w->columns;
        float x = inside ? source_value(source, row * w->columns + column, dtype) : 0;
        uint8_t *block = (uint8_t *)tc_block(w, row / PANEL, column / BLOCK, &none);
        int k = (int)(column % BLOCK), lane = (int)(row % PANEL);
        if (w->format == TC_W_F32) ((float *)block)[k * PANEL + lane] = x;
        else ((uint16_t *)block)[k / 2 * 32 + lane * 2 + k % 2] = float_to_bf16(x);
    }
}

typedef struct {
    const tc_weight *weight;
    const void *source; /* plain matrix, or NULL when integers are given */
    const int8_t *q;
    const uint16_t *scales;
    int dtype;
} packing;

static void pack_panel(void *arg, int64_t panel, int thread) {
    (void)thread;
    const packing *p = arg;
    const tc_weight *w = p->weight;
    int64_t num_groups = w->group ? (w->columns + w->group - 1) / w->group : 0;
    int8_t *q = malloc((size_t)w->columns);
    uint16_t *scales = malloc((size_t)(num_groups + 1) * sizeof *scales);
    float *x = malloc((size_t)(w->group + 1) * sizeof *x);
    if (!q || !scales || !x) abort();
    for (int64_t row = panel * PANEL; row < (panel + 1) * PANEL; row++) {
        int inside = row < w->rows;
        if (!has_scales(w)) {
            put_float_row(w, row, inside ? p->source : NULL, p->dtype);
        } else if (!inside) {
            put_int_row(w, row, NULL, NULL);
        } else if (p->q) {
            put_int_row(w, row, p->q + row * w->columns, p->scales + row * num_groups);
        } else {
            for (int64_t g = 0; g < num_groups; g++) {
                int64_t first = g * w->group;
                int count = (int)(w->columns - first < w->group ? w->columns - first : w->group);
                for (int i = 0; i < count; i++)
                    x[i] = source_value(p->source, row * w->columns + first + i, p->dtype);
                scales[g] = quantise_group(x, count, w->format, q + first);
            }
            put_int_row(w, row, q, scales);
        }
    }
    free(q);
    free(scales);
    free(x);
}

/* Pack a plain [N, K] matrix (dtype: 0 fp32, 1 bf16, 2 fp16), quantising it where the format says so. */
API void tc_pack(tc_context *c, const tc_weight *w, const void *source, int dtype) {
    packing p = {w, source, NULL, NULL, dtype};
    tc_enter(c);
    tc_pool_run(c->pool, w->num_panels, pack_panel, &p);
    tc_leave(c);
}

/* Pack integers [N, K] and fp16 scales [N, ceil(K / group)] that came from elsewhere. */
API void tc_pack_quantised(tc_context *c, const tc_weight *w, const int8_t *q, const uint16_t *scales) {
    packing p = {w, NULL, q, scales, FROM_F32};
    tc_enter(c);
    tc_pool_run(c->pool, w->num_panels, pack_panel, &p);
    tc_leave(c);
}

typedef struct {
    const tc_weight *weight;
    const int8_t *q;
    const float *scales;
    const int32_t *offsets; /* or NULL */
} byte_packing;

static void pack_bytes(void *arg, int64_t panel, int thread) {
    (void)thread;
    const byte_packing *p = arg;
    const tc_weight *w = p->weight;
    uint8_t *to = w->data + panel * w->panel_bytes;
    for (int64_t row = panel * PANEL; row < (panel + 1) * PANEL; row++) {
        int inside = row < w->rows, lane = (int)(row % PANEL);
        int32_t sum = 0;
        for (int64_t column = 0; column < w->num_blocks * BYTE_BLOCK; column++) {
            int8_t q = inside && column < w->columns ? p->q[row * w->columns + column] : 0;
            to[column / 4 * 64 + lane * 4 + column % 4] = (uint8_t)q;
            sum += q;
        }
        ((float *)tc_out_scales(w))[row] = inside ? p->scales[row] : 0;
        /* Activations are stored with 128 added to them. Wraps as the sums do. */
        uint32_t offset = inside && p->offsets ? (uint32_t)p->offsets[row] : 0;
        ((int32_t *)tc_out_offsets(w))[row] = (int32_t)(offset - 128u * (uint32_t)sum);
    }
}

/* Pack a w8a8 weight whose `range` is set: integers [N, K], and for each output a scale and what is added to its
 * sum of integers (or NULL): result = (sum + offset) * scale, times the row's scale where rows have one. */
API void tc_pack_w8a8(tc_context *c, const tc_weight *w, const int8_t *q, const float *scales,
                      const int32_t *offsets) {
    byte_packing p = {w, q, scales, offsets};
    tc_enter(c);
    tc_pool_run(c->pool, w->num_panels, pack_bytes, &p);
    tc_leave(c);
}

/* A row of a compact weight, [K] in bf16. */
static void take_compact_row(const tc_weight *w, int64_t row, uint16_t *out) {
    const uint16_t *none;
    int64_t panel = row / PANEL;
    int lane = (int)(row % PANEL);
    for (int64_t k = 0; k < w->columns; k++) {
        const uint8_t *block = tc_block(w, panel, k / BLOCK, &none);
        int in_block = (int)(k % BLOCK);
        out[k] = compact_value(w->exponents, block, in_block / 2, lane * 2 + in_block % 2);
    }
    for (const tc_patch *patch = tc_patches(w, panel, 0); patch->place != UINT32_MAX; patch++) {
        int64_t k = patch->place / BLOCK_VALUES * BLOCK + patch->place % BLOCK_VALUES / BLOCK * 2 + patch->place % 2;
        if (patch->place % BLOCK / 2 == (uint32_t)lane && k < w->columns) out[k] = (uint16_t)patch->value;
    }
}

/* A row of a bf16 or fp32 weight, [K] of its type. */
static void take_row(const tc_weight *w, int64_t row, void *out) {
    const uint8_t *panel = w->data + row / PANEL * w->panel_bytes;
    int64_t lane = row % PANEL;
    if (w->format == TC_W_COMPACT) {
        take_compact_row(w, row, out);
        return;
    }
    for (int64_t k = 0; k < w->columns; k++) {
        if (w->format == TC_W_F32) ((float *)out)[k] = ((const float *)panel)[k * PANEL + lane];
        else ((uint16_t *)out)[k] = ((const uint16_t *)panel)[k / 2 * BLOCK + lane * 2 + k % 2];
    }
}

typedef struct {
    const tc_weight *weight;
    const int64_t *rows;
    uint8_t *out;
} taking;

static void take_one(void *arg, int64_t i, int thread) {
    (void)thread;
    const taking *t = arg;
    int64_t bytes = t->weight->columns * (t->weight->format == TC_W_F32 ? 4 : 2);
    take_row(t->weight, t->rows[i], t->out + i * bytes);
}

/* Some rows of a bf16 or fp32 weight, [count, K] of its type. */
API void tc_take_rows(tc_context *c, const tc_weight *w, const int64_t *rows, int64_t count, void *out) {
    taking t = {w, rows, out};
    tc_enter(c);
    tc_pool_run(c->pool, count, take_one, &t);
    tc_leave(c);
}

static void unpack_int_row(const tc_weight *w, int64_t row, float *out) {
    for (int64_t column = 0; column < w->columns; column++) {
        const uint16_t *scales;
        const uint8_t *block = tc_block(w, row / PANEL, column / BLOCK, &scales);
        int k = (int)(column % BLOCK), lane = (int)(row % PANEL);
        out[column] = (float)get_int(block, w->format, lane, k) * f16_to_float(scales[lane]);
    }
}

static void unpack_bf16_row(const tc_weight *w, int64_t row, float *out, uint16_t *half) {
    take_row(w, row, half);
    for (int64_t column = 0; column < w->columns; column++) out[column] = bf16_to_float(half[column]);
}

/* The plain fp32 matrix [N, K] that a packed weight, not w8a8, stands for. */
API void tc_unpack(const tc_weight *w, float *out) {
    uint16_t *half = malloc((size_t)w->columns * sizeof *half);
    if (!half) abort();
    for (int64_t row = 0; row < w->rows; row++, out += w->columns) {
        if (has_scales(w)) unpack_int_row(w, row, out);
        else if (w->format == TC_W_F32) take_row(w, row, out);
        else unpack_bf16_row(w, row, out, half);
    }
    free(half);
}
