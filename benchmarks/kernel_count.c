/* Ticks of the processor's time stamp counter for products by a library of kernels: `kernel_count LIBRARY LEVEL`.
 *
 * For an emulator whose counter counts instructions, such as Bochs: what two compilers, or two versions of the
 * sources, make of the kernels is thus compared for processors that are not at hand. Nothing is timed.
 * Levels: 0 portable, 1 AVX2, 2 AVX-512, 3 AMX. 512 outputs, 4,096 inputs, one thread, the least of three calls.
 *
 *     cc -O1 -I src/telechat/ops/cpu/csrc benchmarks/kernel_count.c -o kernel_count -ldl
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <x86intrin.h>

#include "telechat.h"

enum { N = 512, K = 4096, MOST_ROWS = 128, CALLS = 3 };

typedef struct {
    tc_context *(*context_new)(int, int);
    int64_t (*weight_init)(tc_weight *);
    void *(*alloc)(size_t);
    void (*pack)(tc_context *, const tc_weight *, const void *, int);
    int64_t (*compact)(tc_context *, const tc_weight *, tc_weight *);
    void (*matmul)(tc_context *, const tc_weight *, const tc_source *, int64_t, const tc_output *, int64_t);
} kernels;

static void *need(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) fprintf(stderr, "%s\n", dlerror()), exit(1);
    return found;
}

static float *some_values(int64_t count, uint32_t step) {
    float *values = malloc((size_t)count * sizeof *values);
    for (uint32_t i = 0; i < count; i++) values[i] = (float)((i * step >> 8) % 2001) / 1000 - 1;
    return values;
}

/* Many rows are a prompt's, few are tokens of answers. */
static unsigned long long count(const kernels *k, tc_context *c, const tc_weight *w, const float *x, float *out,
                                int64_t rows) {
    tc_source source = {x, NULL, TC_F32, K};
    tc_output output = {out, NULL, TC_F32, 0, N};
    unsigned long long least = ~0ull;
    for (int call = 0; call < CALLS; call++) {
        unsigned long long begin = __rdtsc();
        k->matmul(c, w, &source, rows, &output, rows < MOST_ROWS ? rows : 0);
        unsigned long long ticks = __rdtsc() - begin;
        if (ticks < least) least = ticks;
    }
    return least;
}

int main(int argc, char **argv) {
    void *library = argc == 3 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!library) return fprintf(stderr, "%s\n", argc == 3 ? dlerror() : "kernel_count LIBRARY LEVEL"), 2;
    kernels k = {need(library, "tc_context_new"), need(library, "tc_weight_init"), need(library, "tc_huge_alloc"),
                 need(library, "tc_pack"),        need(library, "tc_compact"),     need(library, "tc_matmul")};
    tc_context *c = k.context_new(1, atoi(argv[2]));
    float *source = some_values(N * K, 2654435761u), *x = some_values(MOST_ROWS * K, 2246822519u);
    float *out = malloc(MOST_ROWS * N * sizeof *out);
    const struct {
        const char *name;
        int format;
    } formats[] = {{"int4", TC_W_INT4}, {"int8", TC_W_INT8}, {"bfloat16", TC_W_BF16}, {"compact", TC_W_COMPACT}};
    const int rows[] = {1, 8, MOST_ROWS};
    for (int f = 0; f < 4; f++) {
        int is_compact = formats[f].format == TC_W_COMPACT;
        tc_weight w = {.format = is_compact ? TC_W_BF16 : formats[f].format, .group = 32, .rows = N, .columns = K};
        w.data = k.alloc((size_t)k.weight_init(&w));
        k.pack(c, &w, source, TC_F32);
        if (is_compact) {
            tc_weight made = {.format = TC_W_COMPACT, .rows = N, .columns = K};
            if (k.compact(c, &w, &made) <= 0) return fprintf(stderr, "too many exponents\n"), 1;
            w = made;
        }
        for (int r = 0; r < 3; r++) printf("%s %d %llu\n", formats[f].name, rows[r], count(&k, c, &w, x, out, rows[r]));
    }
    return 0;
}
