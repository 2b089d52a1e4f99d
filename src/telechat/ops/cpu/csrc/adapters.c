/* Low-rank adapters: what they add to a product, for the rows of a batch that they are for.
 *
 * Scales are in B already. A row's result does not depend on the other rows where that of a float product does
 * not.
 */
#include "telechat.h"

static tc_source rows_from(const tc_source *source, int64_t first) {
    tc_source s = *source;
    s.x = (const float *)s.x + first * s.stride;
    if (s.gated_by) s.gated_by += first * s.stride;
    return s;
}

/* out += B A x for `rows` rows, for up to two layers that read the same fp32 rows and write fp32. */
static void adapt_rows(tc_context *c, const tc_low_rank *layers, const tc_source *source, int64_t first, int64_t rows,
                       const tc_product *products, int count) {
    tc_product shrink[2], grow[2];
    tc_source shrunk[2];
    int n = 0;
    tc_mark mark = tc_remember(c);
    for (int i = 0; i < count; i++) {
        if (!layers[i].a) continue;
        const tc_output *to = &products[i].output;
        int64_t rank = layers[i].a->rows;
        float *between = tc_alloc(c, (size_t)(rows * rank) * sizeof(float));
        shrink[n] = (tc_product){layers[i].a, tc_into(between, rank, NULL, 0)};
        shrunk[n] = (tc_source){between, NULL, TC_F32, rank};
        grow[n++] = (tc_product){layers[i].b, tc_into((float *)to->out + first * to->stride, to->stride, NULL, 1)};
    }
    tc_source from = rows_from(source, first);
    if (n) tc_multiply(c, &from, rows, shrink, n, ALL_ROWS);
    for (int i = 0; i < n; i++) tc_multiply(c, &shrunk[i], rows, &grow[i], 1, ALL_ROWS);
    tc_rewind(c, mark);
}

void tc_adapt(tc_context *c, const tc_adapter_run *runs, int64_t num_runs, int64_t place, const tc_source *source,
              const tc_product *products, int count) {
    for (const tc_adapter_run *run = runs; run < runs + num_runs; run++)
        adapt_rows(c, run->layers + place, source, run->first, run->count, products, count);
}
