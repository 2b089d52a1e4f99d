/* Attention of many query tokens over one key/value head with AMX, in bf16 with fp32 sums.
 *
 * For prompts where speed counts more than bits: scores differ from level_attention.c by the rounding of queries
 * and weights to bf16. Everything is transposed, so that a lane is a query: scores are keys x queries, and the
 * softmax runs down the rows without adding across lanes; its result is the right operand of the second product
 * as it stands.
 */
#include "amx.h"

#define QUERIES 32  /* two tiles of them at a time */
#define KEYS 128    /* of one softmax step */
#define SEGMENT 512 /* keys made ready at a time: they stay in the second-level cache */
#define TILE_DWORDS 256

typedef struct {
    v16f highest[2], total[2]; /* by query */
    float *out;                /* [dim][32] fp32, sums of weighted values */
} running;

typedef struct {
    const tc_attention *a;
    int64_t sequence, kv_head, depth; /* depth: head_dim filled up to a multiple of 32 */
    uint16_t *keys;    /* [key][depth] */
    uint16_t *values;  /* [32 keys][16 dims][dim][key] */
    uint32_t *queries; /* [32 dims][tile][pair of dims][query] */
    float *scores;     /* [key][32] */
    uint32_t *weights; /* [32 keys][tile][pair of keys][query] */
} work;

/* Bytes of scratch that one task of `tokens` query tokens and `heads` heads needs. */
size_t tc_amx_attention_scratch(int64_t head_dim, int64_t tokens, int64_t heads) {
    size_t depth = (size_t)(head_dim + 31) / 32 * 32, blocks = (size_t)((tokens + QUERIES - 1) / QUERIES * heads);
    size_t states = blocks * (sizeof(running) + depth * QUERIES * sizeof(float));
    return 2 * SEGMENT * depth * 2 + depth * QUERIES * 2 + KEYS * QUERIES * 6 + states + 1024;
}

/* out[j] lane i = in[i] lane j. */
INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) { /* r[4i+j]: column 4q+j of rows 4i .. 4i+3 in quarter q */
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        __m512i c = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd), d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

/* 32 lanes of bf16: `low` in the lower 16. */
INLINE __m512i to_bf16(v16f low, v16f high) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }

/* Lane by lane `even` in the lower half and `odd` in the upper: a pair of rows of a right operand. */
INLINE __m512i pair_up(v16f even, v16f odd) {
    const __m512i order = _mm512_slli_epi32(_mm512_set_epi32(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18,
                                                            17, 16), 16);
    const __m512i first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_permutexvar_epi16(_mm512_or_si512(order, first), to_bf16(even, odd));
}

/* ---- making ready ------------------------------------------------------------------------------------ */

/* Where key number `key` of the sequence is. */
INLINE tc_place place_of(const work *w, int64_t key) {
    const tc_cache *c = &w->a->cache;
    int64_t block = w->a->block_tables[w->sequence * w->a->max_blocks + key / c->block_size];
    return tc_place_of(c, block, w->kv_head, key % c->block_size);
}

/* Keys first .. end - 1 of a segment, and zeros up to a whole step: what lies past the sequence may be NaN. */
static void ready_keys(const work *w, int64_t first, int64_t end) {
    const tc_cache *c = &w->a->cache;
    for (int64_t key = first; key < (end + KEYS - 1) / KEYS * KEYS; key++) {
        uint16_t *to = w->keys + (key - first) * w->depth;
        if (key >= end || c->head_dim < w->depth) memset(to, 0, (size_t)w->depth * 2);
        if (key >= end) continue;
        tc_place at = place_of(w, key);
        const char *from = (const char *)c->keys + at.vector, *scales = (const char *)c->key_scales + at.scales;
        for (int64_t j = 0; j < c->head_dim; j += 16) store_bf16(to + j, load_cached(from, scales, j, c->dtype));
    }
}

/* Values of 32 keys x 16 dims, one row per dim. */
static void ready_values(const work *w, int64_t first, int64_t end) {
    const tc_cache *c = &w->a->cache;
    for (int64_t key = first; key < (end + KEYS - 1) / KEYS * KEYS; key += 32) {
        const char *from[32] = {NULL}, *scales[32]; /* NULL past the end */
        for (int64_t i = 0; i < 32 && key + i < end; i++) {
            tc_place at = place_of(w, key + i);
            from[i] = (const char *)c->values + at.vector;
            scales[i] = (const char *)c->value_scales + at.scales;
        }
        for (int64_t j = 0; j < c->head_dim; j += 16) {
            __m512i rows[16];
            for (int i = 0; i < 16; i++) {
                v16f pair[2];
                for (int k = 0; k < 2; k++)
                    pair[k] = from[2 * i + k] ? load_cached(from[2 * i + k], scales[2 * i + k], j, c->dtype) : splat(0);
                rows[i] = pair_up(pair[0], pair[1]);
            }
            transpose(rows);
            uint16_t *to = w->values + ((key - first) * c->head_dim + j * 32);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * 32, rows[i]);
        }
    }
}

/* Up to 32 queries of one head, scaled; rows past `count` are zero. */
static void ready_queries(const work *w, int64_t token, int64_t count, int64_t head) {
    const tc_attention *a = w->a;
    int64_t dim = a->cache.head_dim;
    float scale = 1.0f / sqrtf((float)dim);
    for (int64_t j = 0; j < w->depth; j += 32)
        for (int64_t tile = 0; tile < 2; tile++) {
            __m512i rows[16];
            for (int64_t i = 0; i < 16; i++) {
                int64_t at = ((token + tile * 16 + i) * a->num_heads + head) * dim + j;
                v16f low = splat(0), high = splat(0);
                if (tile * 16 + i < count) low = load16(a->queries, at, a->dtype) * scale;
                if (tile * 16 + i < count && j + 16 < dim) high = load16(a->queries, at + 16, a->dtype) * scale;
                rows[i] = to_bf16(low, high);
            }
            transpose(rows);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(w->queries + (j / 16 + tile) * TILE_DWORDS + i * 16, rows[i]);
        }
}

/* ---- steps ------------------------------------------------------------------------------------------- */

/* scores [32 keys][32 queries] of keys `key` .. of the segment. */
static void score(const work *w, int64_t key) {
    const uint16_t *k = w->keys + key * w->depth;
    int64_t stride = w->depth * 2;
    float *s = w->scores + key % KEYS * QUERIES;
    FENCE();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t j = 0; j < w->depth; j += 32) {
        _tile_loadd(4, k + j, stride);
        _tile_loadd(5, k + 16 * w->depth + j, stride);
        _tile_loadd(6, w->queries + j / 16 * TILE_DWORDS, 64);
        _tile_loadd(7, w->queries + (j / 16 + 1) * TILE_DWORDS, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, s, QUERIES * 4);
    _tile_stored(1, s + 16, QUERIES * 4);
    _tile_stored(2, s + 16 * QUERIES, QUERIES * 4);
    _tile_stored(3, s + 16 * QUERIES + 16, QUERIES * 4);
    FENCE();
}

/* Scores of `count` keys from position `first` on to weights, for the queries of one tile at `positions`. */
INLINE void soften(const work *w, running *r, int tile, int64_t first, int64_t count, v16i positions) {
    float *s = w->scores + tile * 16;
    v16f highest = r->highest[tile], total = splat(0);
    int is_cut = first + count - 1 > positions[0];
    for (int64_t key = 0; key < count; key++) {
        v16f x = load_f32(s + key * QUERIES);
        if (is_cut) {
            x = select16(positions >= splat_int((int32_t)(first + key)), x, splat(-INFINITY));
            store_f32(s + key * QUERIES, x);
        }
        highest = max16(highest, x);
    }
    v16f rescale = select16(r->highest[tile] > splat(-INFINITY), exp16(r->highest[tile] - highest), splat(0));
    v16i changed = highest > r->highest[tile];
    for (int64_t key = 0; key < count; key += 2) {
        v16f pair[2];
        for (int i = 0; i < 2; i++) {
            v16f x = load_f32(s + (key + i) * QUERIES);
            pair[i] = exp16(x - highest);
            if (is_cut) pair[i] = select16(x > splat(-INFINITY), pair[i], splat(0));
            total += pair[i];
        }
        _mm512_storeu_si512(w->weights + (key / 32 * 2 + tile) * TILE_DWORDS + key % 32 / 2 * 16, pair_up(pair[0], pair[1]));
    }
    r->highest[tile] = highest;
    r->total[tile] = r->total[tile] * rescale + total;
    if (!_mm512_test_epi32_mask((__m512i)changed, (__m512i)changed)) return;
    for (int64_t j = 0; j < w->a->cache.head_dim; j++) {
        float *out = r->out + j * QUERIES + tile * 16;
        store_f32(out, load_f32(out) * rescale);
    }
}

/* out += values x weights for `count` keys from `key` of the segment on; one or two tiles of dims. */
INLINE void gather(const work *w, running *r, int64_t key, int64_t count, int64_t j, const int two) {
    int64_t dim = w->a->cache.head_dim;
    float *o = r->out + j * QUERIES;
    FENCE();
    _tile_loadd(0, o, QUERIES * 4);
    _tile_loadd(1, o + 16, QUERIES * 4);
    if (two) _tile_loadd(2, o + 16 * QUERIES, QUERIES * 4);
    if (two) _tile_loadd(3, o + 16 * QUERIES + 16, QUERIES * 4);
    for (int64_t i = 0; i < count; i += 32) {
        const uint16_t *v = w->values + (key + i) * dim + j * 32;
        _tile_loadd(6, w->weights + i / 16 * TILE_DWORDS, 64);
        _tile_loadd(7, w->weights + (i / 16 + 1) * TILE_DWORDS, 64);
        _tile_loadd(4, v, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (!two) continue;
        _tile_loadd(5, v + 512, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, o, QUERIES * 4);
    _tile_stored(1, o + 16, QUERIES * 4);
    if (two) _tile_stored(2, o + 16 * QUERIES, QUERIES * 4);
    if (two) _tile_stored(3, o + 16 * QUERIES + 16, QUERIES * 4);
    FENCE();
}

INLINE v16i select_least(v16i a, v16i b) { return (v16i)_mm512_min_epi32((__m512i)a, (__m512i)b); }

/* One block of queries over keys first .. end - 1, which are a segment; `position` is that of its first query. */
static void over_segment(const work *w, running *r, int64_t first, int64_t end, int64_t position, int64_t count) {
    v16i lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    v16i last = splat_int((int32_t)(position + count - 1)), positions[2];
    for (int i = 0; i < 2; i++) {
        positions[i] = lanes + splat_int((int32_t)position + i * 16);
        positions[i] = select_least(positions[i], last); /* rows that fill up see what the last query sees */
    }
    if (end > position + count) end = position + count;
    for (int64_t key = first; key < end; key += KEYS) {
        int64_t some = end - key < KEYS ? (end - key + 31) / 32 * 32 : KEYS;
        for (int64_t i = 0; i < some; i += 32) score(w, key - first + i);
        soften(w, r, 0, key, some, positions[0]);
        soften(w, r, 1, key, some, positions[1]);
        int64_t j = 0, dim = w->a->cache.head_dim;
        for (; j + 32 <= dim; j += 32) gather(w, r, key - first, some, j, 1);
        if (j < dim) gather(w, r, key - first, some, j, 0);
    }
}

static void put_out(const work *w, const running *r, int64_t token, int64_t count, int64_t head) {
    const tc_attention *a = w->a;
    int64_t dim = a->cache.head_dim;
    for (int tile = 0; tile < 2; tile++) {
        v16f factor = 1.0f / r->total[tile];
        for (int64_t j = 0; j < dim; j += 16) {
            __m512i rows[16];
            for (int i = 0; i < 16; i++) rows[i] = (__m512i)(load_f32(r->out + (j + i) * QUERIES + tile * 16) * factor);
            transpose(rows);
            for (int64_t i = 0; i < 16 && tile * 16 + i < count; i++)
                store16(a->out, ((token + tile * 16 + i) * a->num_heads + head) * dim + j, (v16f)rows[i], a->dtype);
        }
    }
}

/* Tokens first_token .. of `sequence` (counted within its new tokens) and all query heads of one key/value head.
 * `scratch` is aligned to 64 bytes and has tc_amx_attention_scratch. */
void tc_amx_attend(const tc_attention *a, int64_t sequence, int64_t kv_head, int64_t first_token, int64_t num_tokens,
                   uint8_t *scratch) {
    int64_t dim = a->cache.head_dim, depth = (dim + 31) / 32 * 32, group = a->num_heads / a->cache.num_kv_heads;
    int64_t num_new = a->query_starts[sequence + 1] - a->query_starts[sequence];
    int64_t row = a->query_starts[sequence] + first_token;
    int64_t position = a->kv_lengths[sequence] - num_new + first_token, end = position + num_tokens;
    int64_t blocks = (num_tokens + QUERIES - 1) / QUERIES;
    work w = {.a = a, .sequence = sequence, .kv_head = kv_head, .depth = depth, .keys = (uint16_t *)scratch};
    w.values = w.keys + SEGMENT * depth;
    w.queries = (uint32_t *)(w.values + SEGMENT * depth);
    w.scores = (float *)(w.queries + depth / 2 * QUERIES);
    w.weights = (uint32_t *)(w.scores + KEYS * QUERIES);
    running *states = (running *)(w.weights + KEYS / 2 * QUERIES);
    float *out = (float *)(states + blocks * group);
    for (int64_t i = 0; i < blocks * group; i++)
        states[i] = (running){{splat(-INFINITY), splat(-INFINITY)}, {splat(0), splat(0)}, out + i * dim * QUERIES};
    memset(out, 0, (size_t)(blocks * group * dim * QUERIES) * sizeof(float));
    tile_config config = {0};
    for (int i = 0; i < 8; i++) set_tile(&config, i, 16, 64);
    load_config(&config);
    for (int64_t first = 0; first < end; first += SEGMENT) {
        int64_t last = end - first < SEGMENT ? end : first + SEGMENT;
        ready_keys(&w, first, last);
        ready_values(&w, first, last);
        for (int64_t i = 0; i < blocks * group; i++) {
            int64_t token = i / group * QUERIES, count = num_tokens - token < QUERIES ? num_tokens - token : QUERIES;
            if (position + token + count <= first) continue;
            ready_queries(&w, row + token, count, kv_head * group + i % group);
            over_segment(&w, &states[i], first, last, position + token, count);
        }
    }
    _tile_release();
    for (int64_t i = 0; i < blocks * group; i++) {
        int64_t token = i / group * QUERIES, count = num_tokens - token < QUERIES ? num_tokens - token : QUERIES;
        put_out(&w, &states[i], row + token, count, kv_head * group + i % group);
    }
}
