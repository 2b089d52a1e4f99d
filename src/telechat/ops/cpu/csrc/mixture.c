/* A mixture of SwiGLU experts: a softmax over the router's fp32 logits, the most probable experts of each row,
 * and each expert's product with the rows that chose it.
 *
 * A row's result is the sum over its experts in the order of their numbers, whatever the other rows choose.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "telechat.h"

/* The experts of one row by falling probability, the lower number first among equals, and their weights. */
static void route(const tc_mixture *m, float *logits, int32_t *experts, float *weights) {
    float highest = -INFINITY, total = 0, sum = 0;
    for (int64_t e = 0; e < m->num_experts; e++) highest = fmaxf(highest, logits[e]);
    for (int64_t e = 0; e < m->num_experts; e++) total += logits[e] = expf(logits[e] - highest);
    for (int64_t i = 0; i < m->experts_per_token; i++) {
        int64_t best = -1; /* never one that is taken, not even among NaN: a row has room for each expert once */
        for (int64_t e = 0; e < m->num_experts; e++)
            if (logits[e] != -1.0f && (best < 0 || logits[e] > logits[best])) best = e;
        experts[i] = (int32_t)best;
        sum += weights[i] = logits[best] / total;
        logits[best] = -1.0f; /* taken: below every probability */
    }
    for (int64_t i = 0; i < m->experts_per_token; i++)
        weights[i] = m->renormalise ? weights[i] / (sum + 1e-9f) : weights[i] * m->scaling_factor;
}

typedef struct {
    float *rows, *gate, *up, *down;
    int64_t *members; /* rows that chose the expert */
    float *shares;    /* and with what weight */
} group;

/* out += share * expert(x) for the rows that chose the expert. */
static void run_expert(tc_context *c, const tc_expert *expert, const group *g, int64_t count, const float *x,
                       float *out, int64_t hidden, int64_t num_decoding) {
    int64_t ffn = expert->gate->rows;
    for (int64_t i = 0; i < count; i++)
        memcpy(g->rows + i * hidden, x + g->members[i] * hidden, (size_t)hidden * sizeof(float));
    tc_source source = {g->rows, NULL, TC_F32, hidden}, gated = {g->gate, g->up, TC_F32, ffn};
    tc_product products[2] = {{expert->gate, tc_into(g->gate, ffn, NULL, 0)},
                              {expert->up, tc_into(g->up, ffn, NULL, 0)}};
    tc_product down = {expert->down, tc_into(g->down, hidden, expert->down_bias, 0)};
    tc_multiply(c, &source, count, products, 2, num_decoding);
    tc_multiply(c, &gated, count, &down, 1, num_decoding);
    for (int64_t i = 0; i < count; i++) {
        float *to = out + g->members[i] * hidden;
        for (int64_t j = 0; j < hidden; j++) to[j] += g->down[i * hidden + j] * g->shares[i];
    }
}

/* How many of the rows of a group decode; a group keeps the order of the rows. */
static int64_t decoding_members(const group *g, int64_t count, int64_t num_decoding) {
    int64_t n = 0;
    while (n < count && g->members[n] < num_decoding) n++;
    return n;
}

/* out [rows, hidden] = the sum of the local experts' shares for the rows of x. */
void tc_mix(tc_context *c, const tc_mixture *m, const float *x, float *out, int64_t rows, int64_t hidden,
            int64_t num_decoding) {
    int64_t k = m->experts_per_token, ffn = m->num_local ? m->experts[0].gate->rows : 0;
    size_t n = (size_t)rows, width = (size_t)hidden;
    float *logits = tc_alloc(c, n * (size_t)m->num_experts * sizeof(float));
    float *weights = tc_alloc(c, n * (size_t)k * sizeof(float));
    int32_t *experts = tc_alloc(c, n * (size_t)k * sizeof(int32_t));
    group g;
    g.rows = tc_alloc(c, n * width * sizeof(float));
    g.down = tc_alloc(c, n * width * sizeof(float));
    g.gate = tc_alloc(c, n * (size_t)ffn * sizeof(float));
    g.up = tc_alloc(c, n * (size_t)ffn * sizeof(float));
    g.members = tc_alloc(c, n * sizeof(int64_t));
    g.shares = tc_alloc(c, n * sizeof(float));
    tc_source source = {x, NULL, TC_F32, hidden};
    tc_product router = {m->router, tc_into(logits, m->num_experts, NULL, 0)};
    tc_multiply(c, &source, rows, &router, 1, ALL_ROWS);
    for (int64_t r = 0; r < rows; r++) route(m, logits + r * m->num_experts, experts + r * k, weights + r * k);
    memset(out, 0, n * width * sizeof(float));
    for (int64_t e = 0; e < m->num_local; e++) {
        int64_t count = 0;
        for (int64_t i = 0; i < rows * k; i++) {
            if (experts[i] != m->first_expert + e) continue;
            g.members[count] = i / k;
            g.shares[count++] = weights[i];
        }
        tc_mark mark = tc_remember(c);
        if (count) run_expert(c, &m->experts[e], &g, count, x, out, hidden, decoding_members(&g, count, num_decoding));
        tc_rewind(c, mark);
    }
}
