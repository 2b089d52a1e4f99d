/* Low-rank adapters: what they add to a product, for the rows of a batch that they are for.
 *
 * Scales are in B already. All threads share the work of a run of many rows; of runs of few rows, as when many
 * adapters decode, each is done by one thread, because sharing would cost more than it gains.
 */
#include "telechat.h"

#define FEW_ROWS TILE
#define FEW_PANELS 16

/* One run's part of a call. */
typedef struct {
    const tc_adapter_run *run;
    tc_source source;
    tc_acts input;         /* of A; the layers read the same rows */
    int count;
    tc_product shrink[2], grow[2];
    tc_source shrunk[2];
    tc_acts between[2];    /* of B */
} job;

static int as_bf16(const tc_context *c, const tc_weight *w) { return c->level == TC_AMX && tc_is_bf16(w); }

static tc_source rows_from(const tc_source *source, int64_t first) {
    tc_source s = *source;
    s.x = (const float *)s.x + first * s.stride;
    if (s.gated_by) s.gated_by += first * s.stride;
    return s;
}

/* The products of one run, and room for what is between them. Returns 0 where its adapter leaves the layers alone. */
static int plan(tc_context *c, job *j, const tc_adapter_run *run, int64_t place, const tc_source *source,
                const tc_product *products, int count) {
    j->run = run;
    j->source = rows_from(source, run->first);
    j->count = 0;
    for (int i = 0; i < count; i++) {
        const tc_low_rank *layer = &run->layers[place + i];
        if (!layer->a) continue;
        const tc_output *to = &products[i].output;
        int64_t rank = layer->a->rows;
        float *between = tc_alloc(c, (size_t)(run->count * rank) * sizeof(float));
        j->shrink[j->count] = (tc_product){layer->a, tc_into(between, rank, NULL, 0)};
        j->shrunk[j->count] = (tc_source){between, NULL, TC_F32, rank};
        j->grow[j->count++] =
            (tc_product){layer->b, tc_into((float *)to->out + run->first * to->stride, to->stride, NULL, 1)};
    }
    return j->count;
}

static void multiply_here(const tc_context *c, const tc_acts *acts, const tc_source *source, const tc_product *product,
                          uint8_t *scratch) {
    for (int64_t row = 0; source && row < acts->stored_rows; row++)
        c->kernels->prepare(acts, source, row, 0, acts->num_blocks);
    for (int64_t first = 0, end = product->weight->num_panels; first < end; first += FEW_PANELS)
        tc_panels(c, acts, product, first, first + FEW_PANELS < end ? first + FEW_PANELS : end, scratch);
}

typedef struct {
    const tc_context *context;
    const job *jobs;
    uint8_t *scratch;
    size_t scratch_per_thread;
} few;

static void run_job(void *arg, int64_t chunk, int thread) {
    const few *f = arg;
    const job *j = &f->jobs[chunk];
    uint8_t *scratch = f->scratch + (size_t)thread * f->scratch_per_thread;
    for (int i = 0; i < j->count; i++) {
        multiply_here(f->context, &j->input, i ? NULL : &j->source, &j->shrink[i], scratch);
        multiply_here(f->context, &j->between[i], &j->shrunk[i], &j->grow[i], scratch);
    }
}

static void run_few(tc_context *c, job *jobs, int64_t num_jobs) {
    few f = {.context = c, .jobs = jobs};
    for (job *j = jobs; j < jobs + num_jobs; j++) {
        const tc_weight *a = j->shrink[0].weight;
        tc_acts_init(c, &j->input, a, j->run->count, as_bf16(c, a));
        size_t most = tc_panels_scratch(&j->input, FEW_PANELS);
        for (int i = 0; i < j->count; i++) {
            tc_acts_init(c, &j->between[i], j->grow[i].weight, j->run->count, as_bf16(c, a));
            size_t size = tc_panels_scratch(&j->between[i], FEW_PANELS);
            if (size > most) most = size;
        }
        if (most > f.scratch_per_thread) f.scratch_per_thread = (most + 63) / 64 * 64;
    }
    f.scratch = tc_alloc(c, (size_t)tc_pool_threads(c->pool) * f.scratch_per_thread + 64);
    tc_pool_run(c->pool, num_jobs, run_job, &f);
}

void tc_adapt(tc_context *c, const tc_adapter_run *runs, int64_t num_runs, int64_t place, const tc_source *source,
              const tc_product *products, int count) {
    if (!num_runs) return;
    tc_mark mark = tc_remember(c);
    job *jobs = tc_alloc(c, (size_t)num_runs * sizeof(job));
    int64_t num_jobs = 0;
    for (const tc_adapter_run *run = runs; run < runs + num_runs; run++) {
        job *j = &jobs[num_jobs];
        if (!plan(c, j, run, place, source, products, count)) continue;
        if (num_runs > 1 && run->count <= FEW_ROWS) {
            num_jobs++;
            continue;
        }
        tc_multiply(c, &j->source, run->count, j->shrink, j->count, ALL_ROWS);
        for (int i = 0; i < j->count; i++) tc_multiply(c, &j->shrunk[i], run->count, &j->grow[i], 1, ALL_ROWS);
    }
    if (num_jobs) run_few(c, jobs, num_jobs);
    tc_rewind(c, mark);
}
