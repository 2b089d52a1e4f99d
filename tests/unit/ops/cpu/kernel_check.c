/* The kernels of one level against plain loops, as a program: so that they can be run for another processor, with an
 * emulator and no Python. `kernel_check [LEVEL]`: 0 is portable, 1 AVX2, 2 AVX-512, 3 AMX. Prints what failed and a
 * hash of all results, which is to be the same wherever the level runs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "telechat.h"

tc_context *tc_context_new(int threads, int level);
void tc_pack(tc_context *c, const tc_weight *w, const void *source, int dtype);
void tc_pack_w8a8(tc_context *c, const tc_weight *w, const int8_t *q, const float *scales, const int32_t *offsets);
int64_t tc_compact(tc_context *c, const tc_weight *plain, tc_weight *w);
void tc_unpack(const tc_weight *w, float *out);
void tc_matmul(tc_context *c, const tc_weight *w, const tc_source *source, int64_t rows, const tc_output *output,
               int64_t num_decoding);
void tc_norm(tc_context *c, void *x, const void *add, void *y, const void *weight, int64_t rows, int64_t width,
             float eps, int dtype);
void tc_swiglu(tc_context *c, const void *gate, const void *up, void *y, int64_t count, int dtype);
void tc_attend(tc_context *c, const tc_attention *attention);
void tc_rope_and_store(tc_context *c, const tc_rope *rope, int64_t tokens);

static int failures = 0;
static uint64_t hash = 14695981039346656037u; /* FNV-1a */

static void note(const void *results, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)results)[i]) * 1099511628211u;
}

static void expect(const char *what, double actual, double expected, double tolerance) {
    if (fabs(actual - expected) <= tolerance) return;
    printf("%s: %g, expected %g\n", what, actual, expected);
    failures++;
}

static float random_value(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / (1 << 23) - 1.0f;
}

static float *random_values(int64_t count) {
    float *values = malloc((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++) values[i] = random_value();
    return values;
}

/* Zeroed memory of exactly that size, so that a sanitizer sees whoever steps over its end. */
static void *weight_memory(int64_t bytes) {
    void *memory;
    if (posix_memalign(&memory, 64, (size_t)bytes)) abort();
    return memset(memory, 0, (size_t)bytes);
}

static void check_matmul(tc_context *c, int format, int64_t rows) {
    enum { N = 40, K = 300 };
    tc_weight w = {.format = format, .group = 32, .rows = N, .columns = K};
    w.data = weight_memory(tc_weight_init(&w));
    float *source = random_values(N * K), *plain = malloc(N * K * sizeof *plain), *x = random_values(rows * K);
    float *out = malloc((size_t)(rows * N) * sizeof *out);
    tc_pack(c, &w, source, 0);
    tc_unpack(&w, plain);
    tc_source from = {x, NULL, TC_F32, K};
    tc_output to = {out, NULL, TC_F32, 0, N};
    tc_matmul(c, &w, &from, rows, &to, 1);
    note(out, (size_t)(rows * N) * sizeof *out);
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t n = 0; n < N; n++) {
            double sum = 0;
            for (int64_t k = 0; k < K; k++) sum += (double)x[m * K + k] * plain[n * K + k];
            expect("matmul", out[m * N + n], sum, 0.25); /* int8 activations: 1/254 of up to 1, 300 times */
        }
    }
}

/* A compact weight is another form of the bf16 one. */
static void check_compact(tc_context *c, int64_t rows) {
    enum { N = 40, K = 300 };
    tc_weight plain = {.format = TC_W_BF16, .rows = N, .columns = K};
    tc_weight w = {.format = TC_W_COMPACT, .rows = N, .columns = K};
    plain.data = weight_memory(tc_weight_init(&plain));
    float *source = random_values(N * K), *x = random_values(rows * K), *out[2];
    for (int i = 0; i < 20; i++) source[i * 190] = ldexpf(1, -20 - i); /* more exponents than there are codes */
    tc_pack(c, &plain, source, 0);
    expect("compact", tc_compact(c, &plain, &w) > 0, 1, 0);
    expect("patches", w.num_patches > 0, 1, 0);
    for (int i = 0; i < 2; i++) {
        out[i] = malloc((size_t)(rows * N) * sizeof *out[i]);
        tc_source from = {x, NULL, TC_F32, K};
        tc_output to = {out[i], NULL, TC_F32, 0, N};
        tc_matmul(c, i ? &w : &plain, &from, rows, &to, 1);
    }
    expect("compact product", memcmp(out[0], out[1], (size_t)(rows * N) * sizeof *out[0]), 0, 0);
}

static void check_w8a8(tc_context *c, int by_row) {
    enum { M = 19, N = 40, K = 100 };
    tc_weight w = {.format = TC_W_W8A8, .rows = N, .columns = K, .range = {0.01f, -7, by_row}};
    w.data = weight_memory(tc_weight_init(&w));
    int8_t q[N * K];
    int32_t offsets[N];
    for (int i = 0; i < N * K; i++) q[i] = (int8_t)(128 * random_value());
    for (int n = 0; n < N; n++) {
        offsets[n] = 0;
        for (int k = 0; k < K && !by_row; k++) offsets[n] += 7 * q[n * K + k];
    }
    float *x = random_values(M * K), *scales = random_values(N), out[M * N];
    tc_pack_w8a8(c, &w, q, scales, offsets);
    tc_source from = {x, NULL, TC_F32, K};
    tc_output to = {out, NULL, TC_F32, 0, N};
    tc_matmul(c, &w, &from, M, &to, 1);
    note(out, sizeof out);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += x[m * K + k] * (double)q[n * K + k];
            if (!by_row) sum /= 0.01;
            /* Each input is rounded to a hundredth, or to 1/127. */
            expect("w8a8", out[m * N + n], sum * scales[n], (by_row ? 0.004 : 0.5) * 128 * 20 * fabsf(scales[n]) + 1e-3);
        }
}

static void check_rows(tc_context *c) {
    enum { W = 40 };
    float *x = random_values(W), *weight = random_values(W), out[W], squares = 0;
    for (int i = 0; i < W; i++) squares += x[i] * x[i];
    tc_norm(c, x, NULL, out, weight, 1, W, 1e-5f, TC_F32);
    note(out, sizeof out);
    for (int i = 0; i < W; i++) expect("norm", out[i], x[i] / sqrtf(squares / W + 1e-5f) * weight[i], 1e-5);
    tc_swiglu(c, x, weight, out, W, TC_F32);
    note(out, sizeof out);
    for (int i = 0; i < W; i++) expect("swiglu", out[i], x[i] / (1 + exp(-x[i])) * weight[i], 1e-5);
}

static void check_attention(tc_context *c) {
    enum { D = 32, KEYS = 37, BLOCKS = 3, BS = 16 };
    float *q = random_values(D), *k = random_values(BLOCKS * BS * D), *v = random_values(BLOCKS * BS * D), out[D];
    int32_t starts[] = {0, 1}, lengths[] = {KEYS}, table[] = {2, 0, 1};
    tc_cache cache = {k, v, NULL, NULL, TC_F32, 1, D, BS, BS * D * 4, BS * D * 4, D * 4, 0, 0};
    tc_attention a = {q, out, cache, TC_F32, 1, 1, 1, 0, BLOCKS, starts, lengths, table};
    tc_attend(c, &a);
    note(out, sizeof out);
    double weights[KEYS], total = 0;
    for (int t = 0; t < KEYS; t++) {
        double score = 0;
        for (int j = 0; j < D; j++) score += q[j] * k[(table[t / BS] * BS + t % BS) * D + j];
        total += weights[t] = exp(score / sqrt(D));
    }
    for (int j = 0; j < D; j++) {
        double sum = 0;
        for (int t = 0; t < KEYS; t++) sum += weights[t] / total * v[(table[t / BS] * BS + t % BS) * D + j];
        expect("attention", out[j], sum, 1e-5);
    }
}

static float bf16(const uint8_t *p) {
    uint32_t bits = (uint32_t)(p[0] | p[1] << 8) << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Element j of a cached vector of integers. */
static float cached(const uint8_t *vector, const uint8_t *scales, int j, int dtype) {
    float scale;
    if (dtype == TC_INT4) {
        scales += j / 32 * 4;
        return (float)(vector[j / 2] >> j % 2 * 4 & 15) * bf16(scales + 2) + bf16(scales);
    }
    memcpy(&scale, scales, sizeof scale);
    return (float)(int8_t)vector[j] * scale;
}

/* Keys that are turned by no angle, and values, through a cache of integers. */
static void check_integer_cache(tc_context *c, int dtype, double tolerance) {
    enum { D = 48, T = 21, BS = 16, BLOCKS = 2 };
    const int width = dtype == TC_INT4 ? D / 2 : D, scale_width = dtype == TC_INT4 ? 8 : 4;
    float *q = random_values(T * D), *kv = random_values(T * 2 * D), *cos = malloc(T * D * sizeof *cos);
    float *sin = calloc(T * D, sizeof *sin), *out = malloc(T * D * sizeof *out);
    uint8_t *keys = calloc(BLOCKS * BS, D), *values = calloc(BLOCKS * BS, D);
    uint8_t *key_scales = calloc(BLOCKS * BS, 8), *value_scales = calloc(BLOCKS * BS, 8);
    int64_t slots[T];
    for (int i = 0; i < T * D; i++) cos[i] = 1;
    for (int t = 0; t < T; t++) slots[t] = (1 - t / BS) * BS + t % BS; /* block 1, then block 0 */
    tc_cache cache = {keys, values, key_scales, value_scales, dtype, 1, D, BS, BS * width, BS * width, width,
                      BS * scale_width, BS * scale_width};
    tc_rope rope = {q, kv, cos, sin, slots, cache, TC_F32, 1};
    tc_rope_and_store(c, &rope, T);
    for (int t = 0; t < T; t++) {
        int64_t at = slots[t] * width, scale_at = slots[t] * scale_width;
        for (int j = 0; j < D; j++) {
            expect("key", cached(keys + at, key_scales + scale_at, j, dtype), kv[t * 2 * D + j], tolerance);
            expect("value", cached(values + at, value_scales + scale_at, j, dtype), kv[(t * 2 + 1) * D + j], tolerance);
        }
    }
    int32_t starts[] = {0, T}, lengths[] = {T}, table[] = {1, 0};
    tc_attention a = {q, out, cache, TC_F32, 1, 1, 1, 0, BLOCKS, starts, lengths, table};
    tc_attend(c, &a);
    note(out, T * D * sizeof *out);
    for (int j = 0; j < D; j++) expect("first token", out[j], kv[D + j], tolerance); /* it sees itself alone */
}

int main(int argc, char **argv) {
    tc_context *c = tc_context_new(2, argc > 1 ? atoi(argv[1]) : TC_PORTABLE);
    if (!c) return puts("this processor has no such level"), 2;
    for (int format = 0; format < 4; format++)
        for (int64_t rows = 1; rows < 40; rows += 7) check_matmul(c, format, rows);
    check_compact(c, 5);
    check_compact(c, 40);
    check_w8a8(c, 0);
    check_w8a8(c, 1);
    check_rows(c);
    check_attention(c);
    check_integer_cache(c, TC_INT8, 0.005);
    check_integer_cache(c, TC_INT4, 0.08);
    printf("%d failures, results %016llx\n", failures, (unsigned long long)hash);
    return failures != 0;
}
