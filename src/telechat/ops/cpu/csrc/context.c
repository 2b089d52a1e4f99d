/* A context: the threads, the instruction set level and the scratch memory that operations share.
 *
 * Also asks the processor what it can do. Two calls on one context wait for each other; two contexts are
 * independent.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "telechat.h"

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t enabled_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

/* The highest level that both the processor and the operating system allow. */
API int tc_best_level(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return TC_PORTABLE;
    const uint32_t needed = (1u << 12) | (1u << 27) | (1u << 28) | (1u << 29); /* FMA OSXSAVE AVX F16C */
    if ((c & needed) != needed || (enabled_state() & 0x6) != 0x6) return TC_PORTABLE;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & (1u << 5))) return TC_PORTABLE; /* AVX2 */
    const uint32_t avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); /* F DQ BW VL */
    if ((b & avx512) != avx512 || !(c & (1u << 11)) || (enabled_state() & 0xe6) != 0xe6) return TC_AVX2;
    const uint32_t amx = (1u << 22) | (1u << 24) | (1u << 25); /* BF16 TILE INT8 */
    if ((d & amx) != amx || !(c & 2) || (enabled_state() & 0x60000) != 0x60000) return TC_AVX512; /* c: VBMI */
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5))) return TC_AVX512; /* AVX512-BF16 */
    return tc_amx_enable() ? TC_AMX : TC_AVX512;
}
#else
API int tc_best_level(void) { return TC_PORTABLE; }
#endif

/* Chunks of scratch, newest first; after an operation that needed several there is one of their total size. */
struct tc_scratch {
    struct tc_scratch *next;
    size_t size, used, used_before; /* used_before: in the older chunks */
    uint8_t *memory;
};

#define HUGE_PAGE ((size_t)2 << 20)

static size_t whole_pages(size_t bytes) { return (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE; }

/* Zeroed memory, in huge pages where the system gives them. NULL when there is none. */
API void *tc_huge_alloc(size_t bytes) {
    size_t size = whole_pages(bytes);
    /* One huge page more, so that the start can be aligned to one; the rest is given back. */
    uint8_t *raw = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)raw % HUGE_PAGE) % HUGE_PAGE;
    if (before) munmap(raw, before);
    if (before < HUGE_PAGE) munmap(raw + before + size, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(raw + before, size, MADV_HUGEPAGE); /* refusal costs speed only */
#endif
    return raw + before;
}

API void tc_huge_free(void *memory, size_t bytes) { munmap(memory, whole_pages(bytes)); }

static void add_chunk(tc_context *context, size_t bytes) {
    struct tc_scratch *chunk = malloc(sizeof *chunk), *older = context->scratch;
    uint8_t *memory = tc_huge_alloc(bytes);
    if (!chunk || !memory) abort(); /* an operation half done cannot be reported */
    *chunk = (struct tc_scratch){older, whole_pages(bytes), 0, older ? older->used_before + older->used : 0, memory};
    context->scratch = chunk;
}

static void drop_chunk(tc_context *context) {
    struct tc_scratch *chunk = context->scratch;
    context->scratch = chunk->next;
    tc_huge_free(chunk->memory, chunk->size);
    free(chunk);
}

void *tc_alloc(tc_context *context, size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (!context->scratch || context->scratch->used + bytes > context->scratch->size) add_chunk(context, bytes);
    struct tc_scratch *chunk = context->scratch;
    chunk->used += bytes;
    if (chunk->used_before + chunk->used > context->most_scratch)
        context->most_scratch = chunk->used_before + chunk->used;
    return chunk->memory + chunk->used - bytes;
}

tc_mark tc_remember(const tc_context *context) {
    return (tc_mark){context->scratch, context->scratch ? context->scratch->used : 0};
}

/* Forget what was allocated since `mark` within the same operation. */
void tc_rewind(tc_context *context, tc_mark mark) {
    while (context->scratch != mark.chunk) drop_chunk(context);
    if (mark.chunk) mark.chunk->used = mark.used;
}

void tc_enter(tc_context *context) { pthread_mutex_lock(context->lock); }

void tc_leave(tc_context *context) {
    if (context->scratch && (context->scratch->next || context->most_scratch > context->scratch->size)) {
        while (context->scratch) drop_chunk(context);
        add_chunk(context, context->most_scratch);
    }
    if (context->scratch) context->scratch->used = 0;
    pthread_mutex_unlock(context->lock);
}

/* A context of `threads` threads at `level`, or NULL where this machine cannot run that level. */
API tc_context *tc_context_new(int threads, int level) {
    if (threads < 1 || level < TC_PORTABLE || level > tc_best_level()) return NULL;
    tc_context *context = calloc(1, sizeof *context);
    pthread_mutex_t *lock = malloc(sizeof *lock);
    if (!context || !lock) abort();
    pthread_mutex_init(lock, NULL);
    context->lock = lock;
    context->level = level;
    context->kernels = &tc_kernels_portable;
#if defined(__x86_64__)
    if (level >= TC_AVX512) context->kernels = &tc_kernels_avx512;
    else if (level == TC_AVX2) context->kernels = &tc_kernels_avx2;
#endif
    context->pool = tc_pool_new(threads);
    if (!context->pool) abort();
    return context;
}

API void tc_context_free(tc_context *context) {
    tc_pool_free(context->pool);
    while (context->scratch) drop_chunk(context);
    pthread_mutex_destroy(context->lock);
    free(context->lock);
    free(context);
}
