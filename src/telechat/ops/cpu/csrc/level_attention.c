/* Attention of a few query rows over one key/value head, read from its cache blocks in place.
 *
 * Keys are taken 16 at a time, at positions that are multiples of 16, with an online softmax in fp32. A query
 * row goes through the same steps in the same order whether it is decoded alone or is part of a prompt chunk,
 * and whatever the block size is.
 *
 * Compiled once per instruction set level.
 */
#include "lanes.h"

#define KEYS 16
#define MAX_ROWS 16

/* out[t] = sum of the lanes of v[t] */
INLINE v16f sum_each(const v16f v[KEYS]) {
#if defined(__AVX512F__)
    __m512 a[8], b[4];
    for (int i = 0; i < 8; i++) {
        __m512 x = (__m512)v[2 * i], y = (__m512)v[2 * i + 1];
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
    }
    for (int i = 0; i < 4; i++) {
        __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    /* b[i] holds keys 4i .. 4i+3 in each 128-bit quarter; the quarters are still to be added. */
    __m512 c = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
    __m512 d = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x88), _mm512_shuffle_f32x4(b[2], b[3], 0xdd));
    return (v16f)_mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xdd));
#else
    v16f out;
    for (int i = 0; i < KEYS; i++) out[i] = sum16(v[i]);
    return out;
#endif
}

/* Scores of one query row and 16 keys whose rows are `stride` floats apart. */
INLINE v16f score_keys(const float *q, const float *keys, int64_t stride, const int dim) {
    v16f sums[KEYS];
    for (int t = 0; t < KEYS; t++) sums[t] = load_f32(q) * load_f32(keys + t * stride);
    for (int j = 16; j < dim; j += 16) {
        v16f qj = load_f32(q + j);
        for (int t = 0; t < KEYS; t++) sums[t] += qj * load_f32(keys + t * stride + j);
    }
    return sum_each(sums);
}

/* out = out * rescale + weights x values, for the first `count` keys. */
INLINE void add_values(float *out, float rescale, const float *weights, const float *values, int64_t stride,
                       int64_t count, const int dim) {
    v16f sums[dim / 16];
    for (int j = 0; j < dim / 16; j++) sums[j] = load_f32(out + j * 16) * rescale;
    for (int64_t t = 0; t < count; t++) {
        v16f weight = splat(weights[t]);
        for (int j = 0; j < dim / 16; j++) sums[j] += weight * load_f32(values + t * stride + j * 16);
    }
    for (int j = 0; j < dim / 16; j++) store_f32(out + j * 16, sums[j]);
}

/* A tile of a cache as fp32 rows: itself where it is fp32, else converted into `buffer`. `scales` belong to the
 * rows of int8. */
INLINE const float *as_float(const void *cache, int64_t at, const float *scales, int64_t *stride, int dtype,
                             float *buffer, int64_t dim) {
    if (dtype == TC_F32) return (const float *)cache + at;
    if (dtype == TC_INT8) {
        const int8_t *bytes = (const int8_t *)cache + at;
        for (int64_t t = 0; t < KEYS; t++)
            for (int64_t j = 0; j < dim; j += 16)
                store_f32(buffer + t * dim + j, load_int8(bytes + t * *stride + j) * scales[t]);
        *stride = dim;
        return buffer;
    }
    const uint16_t *rows = (const uint16_t *)cache + at;
    for (int64_t t = 0; t < KEYS; t++)
        for (int64_t j = 0; j < dim; j += 16) store_f32(buffer + t * dim + j, load_bf16(rows + t * *stride + j));
    *stride = dim;
    return buffer;
}

typedef struct {
    int64_t num_rows;
    int64_t visible[MAX_ROWS]; /* keys that a row sees: all positions up to its own */
    float highest[MAX_ROWS];   /* running maximum of the scores */
    v16f total[MAX_ROWS];      /* running sum of exp(score - highest), by lane */
    float *queries, *out;      /* [rows][dim] fp32 */
} state;

/* One query row and the tile of keys that starts at position `first`. */
INLINE void row_step(state *s, int64_t r, int64_t first, const float *keys, int64_t key_stride,
                     const float *values, int64_t value_stride, const int dim) {
    int64_t count = s->visible[r] - first < KEYS ? s->visible[r] - first : KEYS;
    v16i lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    v16i seen = lanes < splat_int((int32_t)count);
    v16f scores = score_keys(s->queries + r * dim, keys, key_stride, dim);
    /* What lies past the sequence may be anything, NaN included: selected away, never multiplied. */
    scores = select16(seen, scores, splat(-INFINITY));
    float before = s->highest[r], now = highest16(scores);
    now = now > before ? now : before;
    v16f weights = select16(seen, exp16(scores - now), splat(0));
    float rescale = now == before ? 1.0f : before == -INFINITY ? 0.0f : exp16(splat(before - now))[0];
    s->highest[r] = now;
    s->total[r] = s->total[r] * rescale + weights;
    float lanes_of[KEYS];
    store_f32(lanes_of, weights);
    add_values(s->out + r * dim, rescale, lanes_of, values, value_stride, count, dim);
}

INLINE void attend_dim(const tc_attention *a, int64_t sequence, int64_t kv_head, state *s, float *buffers,
                       const int dim) {
    const int32_t *table = a->block_tables + sequence * a->max_blocks;
    const tc_cache *c = &a->cache;
    int64_t end = 0;
    for (int64_t r = 0; r < s->num_rows; r++) end = s->visible[r] > end ? s->visible[r] : end;
    for (int64_t first = 0; first < end; first += KEYS) {
        int64_t block = table[first / c->block_size], place = first % c->block_size;
        int64_t at = block * c->block_stride + kv_head * c->head_stride + place * c->token_stride;
        int64_t scale_at = block * c->scale_block_stride + kv_head * c->scale_head_stride + place;
        const float *key_scales = c->key_scales ? c->key_scales + scale_at : NULL;
        const float *value_scales = c->value_scales ? c->value_scales + scale_at : NULL;
        int64_t key_stride = c->token_stride, value_stride = c->token_stride;
        const float *keys = as_float(c->keys, at, key_scales, &key_stride, c->dtype, buffers, dim);
        const float *values = as_float(c->values, at, value_scales, &value_stride, c->dtype,
                                       buffers + KEYS * dim, dim);
        for (int64_t r = 0; r < s->num_rows; r++)
            if (s->visible[r] > first) row_step(s, r, first, keys, key_stride, values, value_stride, dim);
    }
}

/* Tokens first_token .. of `sequence` (counted within its new tokens) and query heads first_head ..; at most
 * 16 rows in all. `scratch` holds 64 * head_dim floats. */
void NAME(attend)(const tc_attention *a, int64_t sequence, int64_t kv_head, int64_t first_token,
                  int64_t num_tokens, int64_t first_head, int64_t num_heads, float *scratch) {
    int dim = (int)a->cache.head_dim;
    int64_t num_new = a->query_starts[sequence + 1] - a->query_starts[sequence];
    float scale = 1.0f / sqrtf((float)dim);
    state s = {.num_rows = num_tokens * num_heads, .queries = scratch, .out = scratch + MAX_ROWS * dim};
    int64_t at[MAX_ROWS];
    for (int64_t r = 0; r < s.num_rows; r++) {
        int64_t token = first_token + r / num_heads;
        at[r] = ((a->query_starts[sequence] + token) * a->num_heads + first_head + r % num_heads) * dim;
        s.visible[r] = a->kv_lengths[sequence] - num_new + token + 1;
        s.highest[r] = -INFINITY;
        s.total[r] = splat(0);
        for (int j = 0; j < dim; j += 16) {
            store_f32(s.queries + r * dim + j, load16(a->queries, at[r] + j, a->dtype) * scale);
            store_f32(s.out + r * dim + j, splat(0));
        }
    }
    float *buffers = scratch + 2 * MAX_ROWS * dim;
    switch (dim) { /* a constant lets the sums stay in registers */
    case 64: attend_dim(a, sequence, kv_head, &s, buffers, 64); break;
    case 128: attend_dim(a, sequence, kv_head, &s, buffers, 128); break;
    case 160: attend_dim(a, sequence, kv_head, &s, buffers, 160); break;
    default: attend_dim(a, sequence, kv_head, &s, buffers, dim);
    }
    for (int64_t r = 0; r < s.num_rows; r++) {
        float factor = 1.0f / sum16(s.total[r]);
        for (int j = 0; j < dim; j += 16)
            store16(a->out, at[r] + j, load_f32(s.out + r * dim + j) * factor, a->dtype);
    }
}
