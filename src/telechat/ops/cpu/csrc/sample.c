/* The next token of each row of logits. Knows the levels, threads and memory; the drawing is in level_sample.c. */
#include "sample.h"

#define ROWS_PER_CHUNK 2

typedef struct {
    tc_sample_row *sample_row;
    const tc_draw *draws;
    int64_t rows, vocab;
    float *logits;
    int32_t *chosen;
    uint8_t *scratch;
    size_t scratch_per_thread;
} sampling;

static void sample_chunk(void *arg, int64_t chunk, int thread) {
    const sampling *s = arg;
    int64_t end = (chunk + 1) * ROWS_PER_CHUNK < s->rows ? (chunk + 1) * ROWS_PER_CHUNK : s->rows;
    for (int64_t row = chunk * ROWS_PER_CHUNK; row < end; row++)
        s->chosen[row] = s->sample_row(s->draws + row, s->logits + row * s->vocab, s->vocab,
                                       s->scratch + (size_t)thread * s->scratch_per_thread);
}

/* logits [rows][vocab], changed in place by penalties, biases and masks. chosen [rows]: a token, or -1 where
 * no score is a finite maximum. */
API void tc_sample(tc_context *context, const tc_draw *draws, int64_t rows, float *logits, int64_t vocab,
                   int32_t *chosen) {
    sampling s = {tc_sample_row_portable, draws, rows, vocab, logits, chosen, NULL, 0};
#if defined(__x86_64__)
    if (context->level >= TC_AVX512) s.sample_row = tc_sample_row_avx512;
    else if (context->level == TC_AVX2) s.sample_row = tc_sample_row_avx2;
#endif
    tc_enter(context);
    s.scratch_per_thread = (tc_sample_scratch(vocab) + 63) / 64 * 64;
    s.scratch = tc_alloc(context, (size_t)tc_pool_threads(context->pool) * s.scratch_per_thread);
    tc_pool_run(context->pool, (rows + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK, sample_chunk, &s);
    tc_leave(context);
}
