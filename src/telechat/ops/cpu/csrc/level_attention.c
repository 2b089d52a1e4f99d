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

/* What stays in registers at the same time. */
#if defined(__AVX512F__)
#define KEYS_TOGETHER 16
#define STRIP(dim) (dim) /* elements of the result */
#else
#define KEYS_TOGETHER (LANES / 2)
#define STRIP(dim) ((dim) == 64 || (dim) == 128 ? 8 * LANES : (dim) == 160 ? 4 * LANES : 16)
#endif

/* out[t] = sum of the lanes of v[t], for KEYS_TOGETHER keys */
INLINE void sum_each(const vf v[KEYS_TOGETHER][PARTS], float *out) {
#if defined(__AVX512F__)
    __m512 a[8], b[4];
    for (int i = 0; i < 8; i++) {
        __m512 x = (__m512)v[2 * i][0], y = (__m512)v[2 * i + 1][0];
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
    }
    for (int i = 0; i < 4; i++) {
        __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    /* b[i] holds keys 4i .. 4i+3 in each 128-bit quarter; the quarters are still to be added. */
    __m512 c = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
    __m512 d = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x88), _mm512_shuffle_f32x4(b[2], b[3], 0xdd));
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xdd)));
#elif defined(__AVX2__)
    __m128 c[4], d[2];
    for (int i = 0; i < 4; i++) c[i] = (__m128)fold_parts(v[i]);
    for (int i = 0; i < 2; i++)
        d[i] = _mm_add_ps(_mm_unpacklo_ps(c[2 * i], c[2 * i + 1]), _mm_unpackhi_ps(c[2 * i], c[2 * i + 1]));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(d[0], d[1]), _mm_movehl_ps(d[1], d[0])));
#else
    for (int i = 0; i < KEYS_TOGETHER; i++) {
        v4f c = fold_parts(v[i]);
        out[i] = (c[0] + c[2]) + (c[1] + c[3]);
    }
#endif
}

/* 16 rows of keys or values of one type: themselves in the cache, or converted to fp32. */
typedef struct {
    const char *rows, *scales;
    int64_t stride, scale_stride; /* bytes between rows */
    int64_t next;                 /* bytes from here to the next 16 rows, 0 where there are none to be fetched */
} tile_rows;

/* Bytes before element i of a row. */
INLINE int64_t bytes_to(int64_t i, const int dtype) {
    return dtype == TC_F32 ? i * 4 : dtype == TC_BF16 ? i * 2 : dtype == TC_INT8 ? i : i / 2;
}

/* A part of row t, from element i on. A cache is seldom in the processor's: the next tile's line is asked for as
 * each line is read, for many requests at once would wait for one another. */
INLINE vf take(const tile_rows *r, int64_t t, int64_t i, const int dtype) {
    const char *row = r->rows + t * r->stride;
    const int64_t at = bytes_to(i, dtype);
    if (r->next && at % 64 == 0) __builtin_prefetch(row + at + r->next);
    return load_cached_part(row, r->scales + t * r->scale_stride, i, dtype);
}

/* Scores of one query row and 16 keys. */
INLINE v16f score_keys(const float *q, const tile_rows *k, const int dim, const int dtype) {
    float scores[KEYS];
    for (int first = 0; first < KEYS; first += KEYS_TOGETHER) {
        vf sums[KEYS_TOGETHER][PARTS];
        for (int i = 0; i < PARTS; i++)
            for (int t = 0; t < KEYS_TOGETHER; t++)
                sums[t][i] = load_part(q + i * LANES) * take(k, first + t, i * LANES, dtype);
        for (int j = 16; j < dim; j += 16)
            for (int i = 0; i < PARTS; i++) {
                vf part = load_part(q + j + i * LANES);
                for (int t = 0; t < KEYS_TOGETHER; t++) sums[t][i] += part * take(k, first + t, j + i * LANES, dtype);
            }
        sum_each(sums, scores + first);
    }
    return load_f32(scores);
}

/* out = out * rescale + weights x values, for the first `count` keys. */
INLINE void add_values(float *out, float rescale, const float *weights, const tile_rows *v, int64_t count,
                       const int dim, const int dtype) {
    const int strip = STRIP(dim);
    for (int first = 0; first < dim; first += strip) {
        vf sums[strip / LANES];
        for (int i = 0; i < strip / LANES; i++) sums[i] = load_part(out + first + i * LANES) * rescale;
        for (int64_t t = 0; t < count; t++)
            for (int i = 0; i < strip / LANES; i++) sums[i] += weights[t] * take(v, t, first + i * LANES, dtype);
        for (int i = 0; i < strip / LANES; i++) store_part(out + first + i * LANES, sums[i]);
    }
}

INLINE void convert_type(const tile_rows *r, float *buffer, int64_t dim, const int dtype) {
    for (int64_t t = 0; t < KEYS; t++)
        for (int64_t j = 0; j < dim; j += LANES) store_part(buffer + t * dim + j, take(r, t, j, dtype));
}

/* The same rows in fp32, in `buffer`. */
static void convert(tile_rows *r, float *buffer, int64_t dim, int dtype) {
    if (dtype == TC_BF16) convert_type(r, buffer, dim, TC_BF16);
    else if (dtype == TC_INT8) convert_type(r, buffer, dim, TC_INT8);
    else convert_type(r, buffer, dim, TC_INT4);
    *r = (tile_rows){(const char *)buffer, NULL, dim * 4, 0, 0};
}

typedef struct {
    int64_t num_rows;
    int64_t visible[MAX_ROWS]; /* keys that a row sees: all positions up to its own */
    float highest[MAX_ROWS];   /* running maximum of the scores */
    v16f total[MAX_ROWS];      /* running sum of exp(score - highest), by lane */
    float *queries, *out;      /* [rows][dim] fp32 */
} state;

/* One query row and the tile of keys that starts at position `first`. */
INLINE void row_step(state *s, int64_t r, int64_t first, const tile_rows *k, const tile_rows *v, const int dim,
                     const int dtype) {
    int64_t count = s->visible[r] - first < KEYS ? s->visible[r] - first : KEYS;
    v16i lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    v16i seen = lanes < splat_int((int32_t)count);
    v16f scores = score_keys(s->queries + r * dim, k, dim, dtype);
    /* What lies past the sequence may be anything, NaN included: selected away, never multiplied. */
    scores = select16(seen, scores, splat(-INFINITY));
    float before = s->highest[r], now = highest16(scores);
    now = now > before ? now : before;
    v16f weights = select16(seen, exp16(scores - now), splat(0));
    float rescale = now == before ? 1.0f : before == -INFINITY ? 0.0f : exp_part((vf){0} + (before - now))[0];
    s->highest[r] = now;
    s->total[r] = s->total[r] * rescale + weights;
    float lanes_of[KEYS];
    store_f32(lanes_of, weights);
    add_values(s->out + r * dim, rescale, lanes_of, v, count, dim, dtype);
}

/* Constants let the sums stay in registers. Each type in a function of its own, for GCC's time grows faster than
 * they do. */
typedef void row_step_fn(state *s, int64_t r, int64_t first, const tile_rows *k, const tile_rows *v, int dim);
#define ROW_STEP(name, dtype)                                                                                    \
    static void name(state *s, int64_t r, int64_t first, const tile_rows *k, const tile_rows *v, int dim) {     \
        switch (dim) {                                                                                           \
        case 64: row_step(s, r, first, k, v, 64, dtype); break;                                                  \
        case 128: row_step(s, r, first, k, v, 128, dtype); break;                                                \
        case 160: row_step(s, r, first, k, v, 160, dtype); break;                                                \
        default: row_step(s, r, first, k, v, dim, dtype);                                                        \
        }                                                                                                        \
    }
ROW_STEP(row_step_f32, TC_F32)
ROW_STEP(row_step_bf16, TC_BF16)
ROW_STEP(row_step_int8, TC_INT8)

/* Where the tile of keys or values that starts at position `first` lies. */
INLINE tc_place place_of(const tc_cache *c, const int32_t *table, int64_t kv_head, int64_t first) {
    return tc_place_of(c, table[first / c->block_size], kv_head, first % c->block_size);
}

/* All rows over all keys. A single row reads the cache itself; several rows have it converted once, which gives
 * the same bits, and so has a single one where an element takes many instructions. */
static void over_keys(const tc_attention *a, const int32_t *table, int64_t kv_head, state *s, float *buffers) {
    const tc_cache *c = &a->cache;
    const int dim = (int)c->head_dim;
    const int dtype = c->dtype, is_direct = dtype == TC_F32 || (dtype != TC_INT4 && s->num_rows == 1);
    row_step_fn *step = !is_direct || dtype == TC_F32 ? row_step_f32 : dtype == TC_BF16 ? row_step_bf16 : row_step_int8;
    const int64_t stride = c->token_stride, scale_stride = tc_scale_bytes(dim, dtype);
    int64_t end = 0;
    for (int64_t r = 0; r < s->num_rows; r++) end = s->visible[r] > end ? s->visible[r] : end;
    for (int64_t first = 0; first < end; first += KEYS) {
        tc_place at = place_of(c, table, kv_head, first);
        int64_t next = 0; /* the last tile fetches the beginning of the next head */
        if (first + KEYS < end) next = place_of(c, table, kv_head, first + KEYS).vector - at.vector;
        else if (kv_head + 1 < c->num_kv_heads) next = place_of(c, table, kv_head + 1, 0).vector - at.vector;
        const char *k_scales = (const char *)c->key_scales + at.scales;
        const char *v_scales = (const char *)c->value_scales + at.scales;
        tile_rows k = {(const char *)c->keys + at.vector, k_scales, stride, scale_stride, next};
        tile_rows v = {(const char *)c->values + at.vector, v_scales, stride, scale_stride, next};
        if (!is_direct) {
            convert(&k, buffers, dim, dtype);
            convert(&v, buffers + KEYS * dim, dim, dtype);
        }
        for (int64_t r = 0; r < s->num_rows; r++)
            if (s->visible[r] > first) step(s, r, first, &k, &v, dim);
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
    over_keys(a, a->block_tables + sequence * a->max_blocks, kv_head, &s, scratch + 2 * MAX_ROWS * dim);
    for (int64_t r = 0; r < s.num_rows; r++) {
        float factor = 1.0f / sum16(s.total[r]);
        for (int j = 0; j < dim; j += 16)
            store16(a->out, at[r] + j, load_f32(s.out + r * dim + j) * factor, a->dtype);
    }
}
