/* The next token of each row of logits. Knows the levels and the memory; the drawing is in level_sample.c. */
#include "sample.h"

/* logits [rows][vocab], changed in place by penalties, biases and masks. chosen [rows]: a token, or -1 where
 * no score is a finite maximum. */
API void tc_sample(tc_context *context, const tc_draw *draws, int64_t rows, float *logits, int64_t vocab,
                   int32_t *chosen) {
    tc_sample_row *sample_row = tc_sample_row_portable;
#if defined(__x86_64__)
    if (context->level >= TC_AVX512) sample_row = tc_sample_row_avx512;
    else if (context->level == TC_AVX2) sample_row = tc_sample_row_avx2;
#endif
    tc_enter(context);
    void *scratch = tc_alloc(context, tc_sample_scratch(vocab));
    for (int64_t row = 0; row < rows; row++)
        chosen[row] = sample_row(draws + row, logits + row * vocab, vocab, scratch);
    tc_leave(context);
}
