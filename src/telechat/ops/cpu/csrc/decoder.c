/* All decoder layers, final norm and head in one call, for new tokens of many sequences at once.
 *
 * The residual stream stays in fp32 from the first layer to the last; activations are rounded only where a
 * product wants them so. Knows nothing of sampling. Of other ranks it knows only a function that adds up what
 * all of them have.
 */
#include <string.h>

#include "telechat.h"

/* Places of a layer's products among those that an adapter may change; the head's comes after all layers. */
enum { TC_QUERY, TC_KEY_VALUE, TC_DENSE, TC_GATE, TC_UP, TC_DOWN, TC_PLACES };

typedef struct {
    const tc_weight *query, *key_value, *dense, *gate, *up, *down; /* the last three NULL with a mixture */
    const float *input_norm, *post_norm, *dense_bias, *down_bias;  /* biases may be NULL */
    const tc_mixture *mixture;                                     /* or NULL */
    tc_cache cache;
} tc_layer;

/* Replaces `count` values by their sums over all ranks. */
typedef void (*tc_reduce)(float *values, int64_t count, void *state);

typedef struct {
    int64_t num_layers, hidden, ffn, num_heads; /* ffn and heads of this rank; ffn 0 without dense layers */
    const tc_layer *layers;
    const float *final_norm;
    const tc_weight *head; /* [vocabulary, hidden] */
    float eps;
    int32_t residual_post_norm, deterministic;
    tc_reduce reduce; /* NULL where there is one rank */
    void *reduce_state;
} tc_decoder;

typedef struct {
    int64_t num_tokens, num_sequences, num_decoding, max_blocks, num_logits; /* num_decoding: of the sequences */
    const int32_t *query_starts, *kv_lengths, *block_tables;
    const int64_t *slots;       /* [num_tokens] */
    const float *cos, *sin;     /* [num_tokens][head_dim] */
    const int64_t *logit_rows;  /* [num_logits]: rows of x whose logits are wanted */
    float *x;                   /* [num_tokens][hidden]: embeddings in, output of the last layer out */
    float *logits;              /* [num_logits][vocabulary] */
    int64_t num_runs;           /* 0 where no row has an adapter */
    const tc_adapter_run *runs; /* in the order of their rows */
} tc_batch;

/* Buffers of one call, shared by all layers. `partial` exists where results do not go straight into x. */
typedef struct {
    float *normed, *query, *key_value, *attended, *gate, *up, *partial;
    int64_t num_decoding; /* rows at the beginning that are computed as those of a decoding step are */
    int64_t first_place;  /* of the layer, among what adapters may change */
} buffers;

/* x += sum of the ranks' partial results. */
static void add_partial(const tc_decoder *d, const tc_batch *b, const buffers *t) {
    int64_t count = b->num_tokens * d->hidden;
    if (d->reduce) d->reduce(t->partial, count, d->reduce_state);
    for (int64_t i = 0; i < count; i++) b->x[i] += t->partial[i];
}

static void multiply(tc_context *c, const tc_batch *b, const buffers *t, int64_t place, const tc_source *source,
                     const tc_product *products, int count) {
    tc_multiply(c, source, b->num_tokens, products, count, t->num_decoding);
    tc_adapt(c, b->runs, b->num_runs, t->first_place + place, source, products, count);
}

/* x += source x weight + bias, over all ranks; one of them has the bias. */
static void project(tc_context *c, const tc_decoder *d, const tc_batch *b, buffers *t, int64_t place,
                    const tc_source *source, const tc_weight *weight, const float *bias) {
    tc_product product = {weight, tc_into(b->x, d->hidden, bias, 1)};
    if (d->reduce) product.output = tc_into(t->partial, d->hidden, bias, 0);
    multiply(c, b, t, place, source, &product, 1);
    if (d->reduce) add_partial(d, b, t);
}

static void attention_part(tc_context *c, const tc_decoder *d, const tc_layer *l, const tc_batch *b, buffers *t) {
    int64_t width = d->num_heads * l->cache.head_dim, kv_width = 2 * l->cache.num_kv_heads * l->cache.head_dim;
    tc_source normed = {t->normed, NULL, TC_F32, d->hidden}, attended = {t->attended, NULL, TC_F32, width};
    tc_product products[2] = {{l->query, tc_into(t->query, width, NULL, 0)},
                              {l->key_value, tc_into(t->key_value, kv_width, NULL, 0)}};
    multiply(c, b, t, TC_QUERY, &normed, products, 2);
    tc_rope rope = {t->query, t->key_value, b->cos, b->sin, b->slots, l->cache, TC_F32, d->num_heads};
    tc_rope_rows(c, &rope, b->num_tokens);
    /* fp32 weights ask for fp32 throughout. */
    int is_exact = d->deterministic || l->query->format == TC_W_F32;
    tc_attention attention = {t->query, t->attended, l->cache, TC_F32, is_exact, d->num_heads, b->num_sequences,
                              b->num_decoding, b->max_blocks, b->query_starts, b->kv_lengths, b->block_tables};
    tc_attend_all(c, &attention);
    project(c, d, b, t, TC_DENSE, &attended, l->dense, l->dense_bias);
}

static void feed_forward_part(tc_context *c, const tc_decoder *d, const tc_layer *l, const tc_batch *b,
                              buffers *t) {
    if (l->mixture) {
        tc_mix(c, l->mixture, t->normed, t->partial, b->num_tokens, d->hidden, t->num_decoding);
        add_partial(d, b, t);
        return;
    }
    tc_source normed = {t->normed, NULL, TC_F32, d->hidden}, gated = {t->gate, t->up, TC_F32, d->ffn};
    tc_product products[2] = {{l->gate, tc_into(t->gate, d->ffn, NULL, 0)},
                              {l->up, tc_into(t->up, d->ffn, NULL, 0)}};
    multiply(c, b, t, TC_GATE, &normed, products, 2);
    project(c, d, b, t, TC_DOWN, &gated, l->down, l->down_bias);
}

/* x -> normed; where the residual comes after the norm, x takes the normed values. */
static void norm_part(tc_context *c, const tc_decoder *d, const float *weight, const tc_batch *b, buffers *t) {
    tc_norm_rows(c, b->x, NULL, t->normed, weight, b->num_tokens, d->hidden, d->eps, TC_F32);
    if (d->residual_post_norm)
        memcpy(b->x, t->normed, (size_t)(b->num_tokens * d->hidden) * sizeof(float));
}

/* The run that a row is in, or NULL. */
static const tc_adapter_run *run_of(const tc_batch *b, int64_t row) {
    for (const tc_adapter_run *run = b->runs; run < b->runs + b->num_runs; run++)
        if (row >= run->first && row < run->first + run->count) return run;
    return NULL;
}

static void head_part(tc_context *c, const tc_decoder *d, const tc_batch *b) {
    size_t row_bytes = (size_t)d->hidden * sizeof(float);
    float *rows = tc_alloc(c, (size_t)b->num_logits * row_bytes);
    for (int64_t i = 0; i < b->num_logits; i++)
        memcpy(rows + i * d->hidden, b->x + b->logit_rows[i] * d->hidden, row_bytes);
    tc_norm_rows(c, rows, NULL, rows, d->final_norm, b->num_logits, d->hidden, d->eps, TC_F32);
    tc_source source = {rows, NULL, TC_F32, d->hidden};
    tc_product head = {d->head, tc_into(b->logits, d->head->rows, NULL, 0)};
    tc_multiply(c, &source, b->num_logits, &head, 1, ALL_ROWS);
    /* Wanted rows are in an order of their own. */
    for (int64_t i = 0; i < b->num_logits && b->num_runs; i++) {
        const tc_adapter_run *run = run_of(b, b->logit_rows[i]);
        if (!run) continue;
        tc_adapter_run one = {run->layers, i, 1};
        tc_adapt(c, &one, 1, d->num_layers * TC_PLACES, &source, &head, 1);
    }
}

/* Buffers are needed throughout, the scratch memory of a product only until the next: a mark is returned to
 * after each layer, so that a call's memory does not grow with their number. */
API void tc_decode(tc_context *c, const tc_decoder *d, const tc_batch *b) {
    if (b->num_tokens < 1) return;
    tc_enter(c);
    const tc_cache *cache = &d->layers[0].cache;
    size_t n = (size_t)b->num_tokens * sizeof(float), width = (size_t)(d->num_heads * cache->head_dim);
    buffers t;
    t.num_decoding = d->deterministic ? ALL_ROWS : b->query_starts[b->num_decoding];
    t.normed = tc_alloc(c, n * (size_t)d->hidden);
    t.partial = tc_alloc(c, n * (size_t)d->hidden);
    t.query = tc_alloc(c, n * width);
    t.key_value = tc_alloc(c, n * (size_t)(2 * cache->num_kv_heads * cache->head_dim));
    t.attended = tc_alloc(c, n * width);
    t.gate = tc_alloc(c, n * (size_t)d->ffn);
    t.up = tc_alloc(c, n * (size_t)d->ffn);
    for (int64_t i = 0; i < d->num_layers; i++) {
        tc_mark mark = tc_remember(c);
        t.first_place = i * TC_PLACES;
        norm_part(c, d, d->layers[i].input_norm, b, &t);
        attention_part(c, d, &d->layers[i], b, &t);
        norm_part(c, d, d->layers[i].post_norm, b, &t);
        feed_forward_part(c, d, &d->layers[i], b, &t);
        tc_rewind(c, mark);
    }
    if (b->num_logits) head_part(c, d, b);
    tc_leave(c);
}
