/* What sample.c hands to the rows of level_sample.c. */
#ifndef SAMPLE_H
#define SAMPLE_H

#include "telechat.h"

/* Distinct tokens of a text, and how often its answer holds each. */
typedef struct {
    int64_t num_seen;
    const int32_t *ids, *counts;
} tc_history;

/* How the token of one row is drawn; the fields of ROW in ops/cpu/sample.py, in that order. */
typedef struct {
    double top_p, uniform;  /* 1: no cut; 0 <= uniform < 1 */
    int64_t top_k;          /* 0: no cut */
    float temperature;      /* 0: the highest score, without a draw */
    float min_p, repetition, presence, frequency;
    int32_t unused;
    const tc_history *history; /* what penalties apply to; NULL: nothing */
    int64_t num_biases;
    const int32_t *bias_ids;
    const float *biases;
    const uint32_t *allowed; /* one bit per token; NULL: all */
} tc_draw;

size_t tc_sample_scratch(int64_t vocab);
typedef int32_t tc_sample_row(const tc_draw *draw, float *scores, int64_t vocab, void *scratch);
tc_sample_row tc_sample_row_portable;
#if defined(__x86_64__)
tc_sample_row tc_sample_row_avx2, tc_sample_row_avx512;
#endif

#endif
