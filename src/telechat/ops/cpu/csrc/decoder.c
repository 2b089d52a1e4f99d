/* All decoder layers, final norm and head in one call, for new tokens of many sequences at once.
 *
 * The residual stream stays in fp32 from the first layer to the last; activations are rounded only where a
 * product wants them so. Knows dense layers; knows nothing of mixtures of experts or of sampling.
 */
#include <string.h>

#include "telechat.h"

typedef struct {
    const tc_weight *query, *key_value, *dense, *gate, *up, *down;
    const float *input_norm, *post_norm, *dense_bias, *down_bias; /* biases may be NULL */
    void *keys, *values; /* cache of this layer */
} tc_layer;

typedef struct {
    int64_t num_layers, hidden, ffn, num_heads, num_kv_heads, head_dim;
    int64_t block_size, block_stride, head_stride, token_stride; /* of the cache, in elements */
    const tc_layer *layers;
    const float *final_norm;
    const tc_weight *head; /* [vocabulary, hidden] */
    float eps;
    int32_t cache_dtype, residual_post_norm, deterministic;
} tc_decoder;

typedef struct {
    int64_t num_tokens, num_sequences, max_blocks, num_logits;
    const int32_t *query_starts, *kv_lengths, *block_tables;
    const int64_t *slots;       /* [num_tokens] */
    const float *cos, *sin;     /* [num_tokens][head_dim] */
    const int64_t *logit_rows;  /* [num_logits]: rows of x whose logits are wanted */
    float *x;                   /* [num_tokens][hidden]: embeddings in, output of the last layer out */
    float *logits;              /* [num_logits][vocabulary] */
} tc_batch;

/* Buffers of one call, shared by all layers. */
typedef struct {
    float *normed, *query, *key_value, *attended, *gate, *up;
} buffers;

static tc_output into(float *out, int64_t stride, const float *bias, int accumulate) {
    return (tc_output){out, bias, TC_F32, accumulate, stride};
}

/* Products of the rows of `source` with one or two weights. */
static void multiply(tc_context *c, const tc_decoder *d, const tc_source *source, int64_t rows,
                     const tc_product *products, int count) {
    tc_acts acts;
    const tc_weight *w = products[0].weight, *last = products[count - 1].weight;
    if (last->format != w->format || last->num_blocks != w->num_blocks) { /* they share no activations */
        multiply(c, d, source, rows, products, 1);
        multiply(c, d, source, rows, products + 1, 1);
        return;
    }
    tc_acts_init(c, &acts, w, rows, tc_uses_bf16(c, w, rows, d->deterministic));
    tc_prepare(c, &acts, source);
    tc_products(c, &acts, products, count);
}

static void attention_part(tc_context *c, const tc_decoder *d, const tc_layer *l, const tc_batch *b, buffers *t) {
    int64_t n = b->num_tokens, width = d->num_heads * d->head_dim, kv_width = 2 * d->num_kv_heads * d->head_dim;
    tc_source normed = {t->normed, NULL, TC_F32, d->hidden};
    tc_product products[2] = {{l->query, into(t->query, width, NULL, 0)},
                              {l->key_value, into(t->key_value, kv_width, NULL, 0)}};
    multiply(c, d, &normed, n, products, 2);
    tc_rope rope = {t->query, t->key_value, b->cos, b->sin, b->slots, l->keys, l->values, TC_F32,
                    d->cache_dtype, d->num_heads, d->num_kv_heads, d->head_dim, d->block_size,
                    d->block_stride, d->head_stride, d->token_stride};
    tc_rope_rows(c, &rope, n);
    tc_attention attention = {t->query, t->attended, l->keys, l->values, TC_F32, d->cache_dtype, d->num_heads,
                              d->num_kv_heads, d->head_dim, d->block_size, d->block_stride, d->head_stride,
                              d->token_stride, b->num_sequences, b->max_blocks, b->query_starts, b->kv_lengths,
                              b->block_tables};
    tc_attend_all(c, &attention);
    tc_source attended = {t->attended, NULL, TC_F32, width};
    tc_product dense = {l->dense, into(b->x, d->hidden, l->dense_bias, 1)};
    multiply(c, d, &attended, n, &dense, 1);
}

static void feed_forward_part(tc_context *c, const tc_decoder *d, const tc_layer *l, const tc_batch *b,
                              buffers *t) {
    int64_t n = b->num_tokens;
    tc_source normed = {t->normed, NULL, TC_F32, d->hidden};
    tc_product products[2] = {{l->gate, into(t->gate, d->ffn, NULL, 0)}, {l->up, into(t->up, d->ffn, NULL, 0)}};
    multiply(c, d, &normed, n, products, 2);
    tc_source gated = {t->gate, t->up, TC_F32, d->ffn};
    tc_product down = {l->down, into(b->x, d->hidden, l->down_bias, 1)};
    multiply(c, d, &gated, n, &down, 1);
}

/* x -> normed; where the residual comes after the norm, x takes the normed values. */
static void norm_part(tc_context *c, const tc_decoder *d, const float *weight, const tc_batch *b, buffers *t) {
    tc_norm_rows(c, b->x, NULL, t->normed, weight, b->num_tokens, d->hidden, d->eps, TC_F32);
    if (d->residual_post_norm)
        memcpy(b->x, t->normed, (size_t)(b->num_tokens * d->hidden) * sizeof(float));
}

static void head_part(tc_context *c, const tc_decoder *d, const tc_batch *b) {
    size_t row_bytes = (size_t)d->hidden * sizeof(float);
    float *rows = tc_alloc(c, (size_t)b->num_logits * row_bytes);
    for (int64_t i = 0; i < b->num_logits; i++)
        memcpy(rows + i * d->hidden, b->x + b->logit_rows[i] * d->hidden, row_bytes);
    tc_norm_rows(c, rows, NULL, rows, d->final_norm, b->num_logits, d->hidden, d->eps, TC_F32);
    tc_source source = {rows, NULL, TC_F32, d->hidden};
    tc_product head = {d->head, into(b->logits, d->head->rows, NULL, 0)};
    multiply(c, d, &source, b->num_logits, &head, 1);
}

/* Buffers are needed throughout, the scratch memory of a product only until the next: a mark is returned to
 * after each layer, so that a call's memory does not grow with their number. */
API void tc_decode(tc_context *c, const tc_decoder *d, const tc_batch *b) {
    if (b->num_tokens < 1) return;
    tc_enter(c);
    size_t n = (size_t)b->num_tokens * sizeof(float), width = (size_t)(d->num_heads * d->head_dim);
    size_t kv_width = (size_t)(2 * d->num_kv_heads * d->head_dim);
    buffers t;
    t.normed = tc_alloc(c, n * (size_t)d->hidden);
    t.query = tc_alloc(c, n * width);
    t.key_value = tc_alloc(c, n * kv_width);
    t.attended = tc_alloc(c, n * width);
    t.gate = tc_alloc(c, n * (size_t)d->ffn);
    t.up = tc_alloc(c, n * (size_t)d->ffn);
    for (int64_t i = 0; i < d->num_layers; i++) {
        tc_mark mark = tc_remember(c);
        norm_part(c, d, d->layers[i].input_norm, b, &t);
        attention_part(c, d, &d->layers[i], b, &t);
        norm_part(c, d, d->layers[i].post_norm, b, &t);
        feed_forward_part(c, d, &d->layers[i], b, &t);
        tc_rewind(c, mark);
    }
    if (b->num_logits) head_part(c, d, b);
    tc_leave(c);
}
