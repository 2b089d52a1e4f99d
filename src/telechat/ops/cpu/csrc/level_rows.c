/* Operations on single rows: activations for a product, norm, SwiGLU, rotary embedding, storing results.
 *
 * Compiled once per instruction set level.
 */
#include "lanes.h"

/* ---- activations ------------------------------------------------------------------------------------- */

INLINE float source_at(const tc_source *s, int64_t i) {
    if (!s->gated_by) return load1(s->x, i, s->dtype);
    float x = ((const float *)s->x)[i];
    return silu16(splat(x))[0] * s->gated_by[i];
}

/* 32 inputs of a row as fp32; those past the columns are 0. */
INLINE void load_block(const tc_source *s, int64_t at, int64_t count, v16f *low, v16f *high) {
    if (count >= BLOCK) {
        if (s->dtype == TC_F32) {
            *low = load16(s->x, at, TC_F32);
            *high = load16(s->x, at + 16, TC_F32);
        } else {
            *low = load16(s->x, at, TC_BF16);
            *high = load16(s->x, at + 16, TC_BF16);
        }
        if (s->gated_by) {
            *low = silu16(*low) * load_f32(s->gated_by + at);
            *high = silu16(*high) * load_f32(s->gated_by + at + 16);
        }
        return;
    }
    float buffer[BLOCK] = {0};
    for (int64_t i = 0; i < count; i++) buffer[i] = source_at(s, at + i);
    *low = load_f32(buffer);
    *high = load_f32(buffer + 16);
}

/* Where a row's inputs of a block are, counted in such rows. */
INLINE int64_t row_index(const tc_acts *acts, int64_t row, int64_t block) {
    int64_t unit = acts->tiles_together * TILE, start = row / unit * unit;
    int64_t height = acts->stored_rows - start < unit ? acts->stored_rows - start : unit;
    int64_t first = block / acts->part * acts->part;
    int64_t count = acts->num_blocks - first < acts->part ? acts->num_blocks - first : acts->part;
    return acts->stored_rows * first + start * count + (block - first) * height + row - start;
}

/* Nearest integers of x * factor. The product is shown to the compiler as changed, so that it is rounded and not
 * fused with the addition in round16: inputs of few bits hit ties, and all levels are to decide them alike. */
INLINE v16i scaled_integers(v16f x, float factor) {
    x *= factor;
    __asm__("" : "+m"(x));
    return round16(x);
}

/* The scale that makes the largest magnitude of a row 127. */
static float row_scale(const tc_acts *acts, const tc_source *s, int64_t row) {
    v16f low, high, most = splat(0);
    for (int64_t at = 0; at < acts->columns; at += BLOCK) {
        load_block(s, row * s->stride + at, acts->columns - at, &low, &high);
        most = max16(most, max16(abs16(low), abs16(high)));
    }
    float scale = highest16(most) / 127.0f;
    return scale > 1e-12f ? scale : 1e-12f;
}

INLINE v16i bytes_of(v16f x, float scale, float offset) {
    x = x / scale + offset;
    x = -max16(-max16(x, splat(-128.0f)), splat(-127.0f));
    return round16(x) + 128;
}

/* Blocks first .. last-1 of one row in 8 bits; all of them where the row has a scale of its own. */
static void prepare_bytes(const tc_acts *acts, const tc_source *s, int64_t row, int64_t first, int64_t last) {
    int is_filling = row >= acts->rows;
    float scale = acts->range.scale, offset = (float)acts->range.offset;
    if (acts->range.by_row) {
        scale = is_filling ? 1.0f : row_scale(acts, s, row);
        offset = 0;
    }
    /* Where all rows have one scale, the weight's contain it. */
    if (first == 0) acts->scales[row] = acts->range.by_row ? scale : 1.0f;
    for (int64_t b = first; b < last; b++) {
        uint8_t *to = (uint8_t *)acts->values + row_index(acts, row, b) * BYTE_BLOCK;
        for (int64_t i = 0; i < BYTE_BLOCK; i += BLOCK) {
            v16f low, high;
            int64_t at = b * BYTE_BLOCK + i;
            load_block(s, row * s->stride + at, is_filling ? 0 : acts->columns - at, &low, &high);
            store_int8((int8_t *)to + i, bytes_of(low, scale, offset));
            store_int8((int8_t *)to + i + 16, bytes_of(high, scale, offset));
        }
    }
}

/* Bring blocks first .. last-1 of one row into the form that `acts` has. */
static void prepare(const tc_acts *acts, const tc_source *s, int64_t row, int64_t first, int64_t last) {
    if (acts->format == TC_ACT_UINT8) {
        prepare_bytes(acts, s, row, first, last);
        return;
    }
    for (int64_t b = first; b < last; b++) {
        int64_t index = row_index(acts, row, b);
        v16f low, high;
        /* A row that only fills up the last tile has no columns. */
        int64_t count = row < acts->rows ? acts->columns - b * BLOCK : 0;
        load_block(s, row * s->stride + b * BLOCK, count, &low, &high);
        if (acts->format == TC_ACT_BF16) {
            store_bf16((uint16_t *)acts->values + index * BLOCK, low);
            store_bf16((uint16_t *)acts->values + index * BLOCK + 16, high);
        } else if (acts->format == TC_ACT_F32) {
            /* offset tells that bf16 weights want activations of their own precision */
            store_f32((float *)acts->values + index * BLOCK, acts->offset ? round_bf16(low) : low);
            store_f32((float *)acts->values + index * BLOCK + 16, acts->offset ? round_bf16(high) : high);
        } else {
            float largest = highest16(max16(abs16(low), abs16(high)));
            float inverse = largest > 0 ? 127.0f / largest : 0.0f;
            v16i q_low = scaled_integers(low, inverse), q_high = scaled_integers(high, inverse);
            int8_t *q = (int8_t *)acts->values + index * BLOCK;
            store_int8(q, q_low);
            store_int8(q + 16, q_high);
            acts->scales[index] = largest / 127.0f;
            acts->corrections[index] = -acts->offset * sum16i(q_low + q_high);
        }
    }
}

/* ---- results ----------------------------------------------------------------------------------------- */

/* y [rows][16] -> columns first .. first+count-1 of output rows row .. row+rows-1. */
static void store(const tc_output *o, const float *y, int64_t row, int64_t rows, int64_t first, int64_t count) {
    for (int64_t r = 0; r < rows; r++, y += PANEL) {
        int64_t at = (row + r) * o->stride + first;
        if (count == PANEL) {
            v16f v = load_f32(y);
            if (o->bias) v += load_f32(o->bias + first);
            if (o->accumulate) v = (o->dtype == TC_F32 ? load16(o->out, at, TC_F32) : load16(o->out, at, TC_BF16)) + v;
            if (o->dtype == TC_F32) store16(o->out, at, v, TC_F32);
            else store16(o->out, at, v, TC_BF16);
            continue;
        }
        for (int64_t i = 0; i < count; i++) {
            float v = y[i] + (o->bias ? o->bias[first + i] : 0.0f);
            if (o->accumulate) v = load1(o->out, at + i, o->dtype) + v;
            store1(o->out, at + i, v, o->dtype);
        }
    }
}

/* ---- norm -------------------------------------------------------------------------------------------- */

/* x += add (where given, rounded to the type), then y = weight * round(x / rms(x)). */
INLINE void norm_typed(void *x, const void *add, void *y, const void *weight, int64_t width, float eps,
                       const int dtype) {
    v16f sums[2] = {splat(0), splat(0)};
    float tail = 0;
    int64_t even = width / 16 * 16;
    for (int64_t i = 0; i < even; i += 16) {
        v16f v = load16(x, i, dtype);
        if (add) {
            v += load16(add, i, dtype);
            if (dtype == TC_BF16) v = round_bf16(v);
            store16(x, i, v, dtype);
        }
        sums[i / 16 % 2] += v * v;
    }
    for (int64_t i = even; i < width; i++) {
        if (add) store1(x, i, load1(x, i, dtype) + load1(add, i, dtype), dtype);
        float v = load1(x, i, dtype);
        tail += v * v;
    }
    float mean = (sum16(sums[0] + sums[1]) + tail) / (float)width;
    float factor = 1.0f / sqrtf(mean + eps);
    for (int64_t i = 0; i < even; i += 16) {
        v16f v = load16(x, i, dtype) * factor;
        if (dtype == TC_BF16) v = round_bf16(v);
        store16(y, i, v * load16(weight, i, dtype), dtype);
    }
    for (int64_t i = even; i < width; i++) {
        float v = load1(x, i, dtype) * factor;
        if (dtype == TC_BF16) v = bf16_to_float(float_to_bf16(v));
        store1(y, i, v * load1(weight, i, dtype), dtype);
    }
}

static void norm_row(void *x, const void *add, void *y, const void *w, int64_t width, float eps, int dtype) {
    if (dtype == TC_F32) norm_typed(x, add, y, w, width, eps, TC_F32);
    else norm_typed(x, add, y, w, width, eps, TC_BF16);
}

/* ---- SwiGLU ------------------------------------------------------------------------------------------ */

INLINE void swiglu_typed(const void *gate, const void *up, void *y, int64_t count, const int dtype) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        v16f v = silu16(load16(gate, i, dtype));
        if (dtype == TC_BF16) v = round_bf16(v);
        store16(y, i, v * load16(up, i, dtype), dtype);
    }
    for (; i < count; i++) {
        float v = silu16(splat(load1(gate, i, dtype)))[0];
        if (dtype == TC_BF16) v = bf16_to_float(float_to_bf16(v));
        store1(y, i, v * load1(up, i, dtype), dtype);
    }
}

static void swiglu(const void *gate, const void *up, void *y, int64_t count, int dtype) {
    if (dtype == TC_F32) swiglu_typed(gate, up, y, count, TC_F32);
    else swiglu_typed(gate, up, y, count, TC_BF16);
}

/* ---- rotary embedding -------------------------------------------------------------------------------- */

INLINE void rotate_typed(const void *from, int64_t at, void *to, int64_t to_at, const float *cos,
                         const float *sin, int64_t d, const int dtype, const int to_dtype) {
    int64_t half = d / 2;
    for (int64_t j = 0; j < half; j++) {
        float first = load1(from, at + j, dtype), second = load1(from, at + half + j, dtype);
        float a = first * cos[j] - second * sin[j];
        float b = second * cos[half + j] + first * sin[half + j];
        if (dtype == TC_BF16) {
            a = bf16_to_float(float_to_bf16(a));
            b = bf16_to_float(float_to_bf16(b));
        }
        store1(to, to_at + j, a, to_dtype);
        store1(to, to_at + half + j, b, to_dtype);
    }
}

static void rotate(const void *from, int64_t at, void *to, int64_t to_at, const float *cos, const float *sin,
                   int64_t d, int dtype, int to_dtype) {
    if (dtype == TC_F32 && to_dtype == TC_F32)
        rotate_typed(from, at, to, to_at, cos, sin, d, TC_F32, TC_F32);
    else if (dtype == TC_F32) rotate_typed(from, at, to, to_at, cos, sin, d, TC_F32, TC_BF16);
    else if (to_dtype == TC_F32) rotate_typed(from, at, to, to_at, cos, sin, d, TC_BF16, TC_F32);
    else rotate_typed(from, at, to, to_at, cos, sin, d, TC_BF16, TC_BF16);
}

/* An fp32 vector as int8, the largest magnitude as 127. */
static void quantise_int8(const float *x, int8_t *q, float *scale, int64_t d) {
    v16f most = splat(0);
    for (int64_t j = 0; j < d; j += 16) most = max16(most, abs16(load_f32(x + j)));
    float largest = highest16(most), inverse = largest > 0 ? 127.0f / largest : 0.0f;
    for (int64_t j = 0; j < d; j += 16) store_int8(q + j, scaled_integers(load_f32(x + j), inverse));
    *scale = largest / 127.0f;
}

/* An fp32 vector as int4, each group's least element as 0 and its greatest as 15, but for the rounding to bf16. */
static void quantise_int4(const float *x, uint8_t *q, uint16_t *scales, int64_t d) {
    for (int64_t first = 0; first < d; first += KV_GROUP, scales += 2) {
        int64_t end = d - first < KV_GROUP ? d : first + KV_GROUP;
        v16f most = load_f32(x + first), least = -most; /* least: of the opposite numbers the greatest */
        for (int64_t j = first + 16; j < end; j += 16) {
            most = max16(most, load_f32(x + j));
            least = max16(least, -load_f32(x + j));
        }
        float low = -highest16(least);
        scales[0] = float_to_bf16(low);
        scales[1] = float_to_bf16((highest16(most) - low) / 15.0f);
        float minimum = bf16_to_float(scales[0]), scale = bf16_to_float(scales[1]);
        float inverse = scale > 0 ? 1.0f / scale : 0.0f;
        for (int64_t j = first; j < end; j += 16) {
            v16i codes = scaled_integers(load_f32(x + j) - minimum, inverse);
            codes &= codes > 0;
            store_int4(q + j / 2, (codes & (codes < 15)) | (15 & (codes >= 15)));
        }
    }
}

static void quantise(const float *x, char *q, char *scales, int64_t d, int dtype) {
    if (dtype == TC_INT8) quantise_int8(x, (int8_t *)q, (float *)scales, d);
    else quantise_int4(x, (uint8_t *)q, (uint16_t *)scales, d);
}

/* `count` elements, a multiple of 16, from one type to another. */
static void copy_typed(const void *from, int64_t at, int dtype, void *to, int64_t to_at, int to_dtype, int64_t count) {
    for (int64_t j = 0; j < count; j += 16) {
        v16f v = dtype == TC_F32 ? load16(from, at + j, TC_F32) : load16(from, at + j, TC_BF16);
        if (to_dtype == TC_F32) store16(to, to_at + j, v, TC_F32);
        else store16(to, to_at + j, v, TC_BF16);
    }
}

/* One key/value head of a token into the cache. */
static void store_head(const tc_rope *r, int64_t from, tc_place to, const float *cos, const float *sin) {
    const tc_cache *c = &r->cache;
    int64_t d = c->head_dim;
    char *key_to = (char *)c->keys + to.vector, *value_to = (char *)c->values + to.vector;
    if (c->dtype == TC_INT8 || c->dtype == TC_INT4) {
        float key[d], value[d];
        rotate(r->kv, from, key, 0, cos, sin, d, r->dtype, TC_F32);
        copy_typed(r->kv, from + d, r->dtype, value, 0, TC_F32, d);
        quantise(key, key_to, (char *)c->key_scales + to.scales, d, c->dtype);
        quantise(value, value_to, (char *)c->value_scales + to.scales, d, c->dtype);
        return;
    }
    rotate(r->kv, from, key_to, 0, cos, sin, d, r->dtype, c->dtype);
    copy_typed(r->kv, from + d, r->dtype, value_to, 0, c->dtype, d);
}

static void rope_token(const tc_rope *r, int64_t t) {
    const tc_cache *c = &r->cache;
    int64_t d = c->head_dim;
    const float *cos = r->cos + t * d, *sin = r->sin + t * d;
    for (int64_t h = 0; h < r->num_heads; h++) {
        int64_t at = (t * r->num_heads + h) * d;
        rotate(r->queries, at, r->queries, at, cos, sin, d, r->dtype, r->dtype);
    }
    int64_t block = r->slots[t] / c->block_size, place = r->slots[t] % c->block_size;
    for (int64_t h = 0; h < c->num_kv_heads; h++)
        store_head(r, (t * c->num_kv_heads + h) * 2 * d, tc_place_of(c, block, h, place), cos, sin);
}

/* ---- table ------------------------------------------------------------------------------------------- */

int64_t NAME(int_panels)(const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts, int64_t tile, float *y);
void NAME(float_panel)(const tc_weight *w, int64_t panel, const tc_acts *acts, int64_t tile, float *y);
void NAME(float_band)(const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts, int64_t tile, int64_t rows,
                      uint16_t *expanded, float *sums);
int64_t NAME(w8a8_panels)(const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts, int64_t tile, float *y);
void NAME(attend)(const tc_attention *a, int64_t sequence, int64_t kv_head, int64_t first_token,
                  int64_t num_tokens, int64_t first_head, int64_t num_heads, float *scratch);

const tc_kernels NAME(tc_kernels) = {
    prepare,  NAME(int_panels), NAME(float_panel), NAME(float_band), NAME(w8a8_panels),
    norm_row, swiglu,           rope_token,        NAME(attend),     store,
};
