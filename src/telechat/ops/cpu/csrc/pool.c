/* A small thread pool: chunks of one task are claimed one by one, the caller works too.
 *
 * An idle worker spins for some microseconds, because the next task of a decode step follows at once; then it
 * lets any other thread run that wants to, for as long as lies between two steps of a small model, because
 * waking takes some 50 microseconds; then it sleeps on a condition variable. `ticket` holds a generation (upper
 * half) and the next chunk (lower half): claiming a chunk is one compare-and-swap, which fails when the task has
 * changed under a late worker, so nobody waits for a worker that has not woken. Odd generations mean "being set
 * up".
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "telechat.h"

#define SPINS_IDLE 4000   /* some 50 to 100 us before a worker lets others run */
#define YIELDS_IDLE 3000  /* some 0.5 to 1 ms more */
#define SPINS_FINISH 2000 /* before the caller lets others run while it waits for the last chunk */

struct tc_pool {
    int num_threads; /* the caller included */
    pthread_t *threads;
    _Atomic uint64_t ticket;
    _Atomic int64_t num_chunks, num_done;
    _Atomic(tc_task) task;
    _Atomic(void *) arg;
    _Atomic int sleepers, stopping;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
};

typedef struct {
    tc_pool *pool;
    int thread;
} worker_arg;

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint32_t generation(uint64_t ticket) { return (uint32_t)(ticket >> 32); }

/* Claim and run chunks of one generation until none is left. */
static void run_chunks(tc_pool *pool, uint32_t gen, int thread) {
    for (;;) {
        uint64_t ticket = atomic_load(&pool->ticket);
        int64_t chunk = (uint32_t)ticket;
        if (generation(ticket) != gen || chunk >= atomic_load(&pool->num_chunks)) return;
        tc_task task = atomic_load(&pool->task);
        void *arg = atomic_load(&pool->arg);
        if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + 1)) continue;
        task(arg, chunk, thread);
        atomic_fetch_add(&pool->num_done, 1);
    }
}

static int has_news(tc_pool *pool, uint32_t seen) {
    uint32_t gen = generation(atomic_load(&pool->ticket));
    return (gen != seen && gen % 2 == 0) || atomic_load(&pool->stopping);
}

static void *work(void *opaque) {
    worker_arg own = *(worker_arg *)opaque;
    tc_pool *pool = own.pool;
    free(opaque);
    uint32_t seen = 0;
    for (;;) {
        for (int spin = 0; spin < SPINS_IDLE && !has_news(pool, seen); spin++) relax();
        for (int turn = 0; turn < YIELDS_IDLE && !has_news(pool, seen); turn++) sched_yield();
        if (!has_news(pool, seen)) {
            pthread_mutex_lock(&pool->mutex);
            atomic_fetch_add(&pool->sleepers, 1);
            while (!has_news(pool, seen)) pthread_cond_wait(&pool->wake, &pool->mutex);
            atomic_fetch_sub(&pool->sleepers, 1);
            pthread_mutex_unlock(&pool->mutex);
        }
        if (atomic_load(&pool->stopping)) return NULL;
        uint32_t gen = generation(atomic_load(&pool->ticket));
        if (gen % 2) continue;
        run_chunks(pool, gen, own.thread);
        seen = gen;
    }
}

tc_pool *tc_pool_new(int num_threads) {
    tc_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = calloc((size_t)num_threads, sizeof *pool->threads);
    pool->num_threads = 1;
    for (int i = 1; pool->threads && i < num_threads; i++) {
        worker_arg *arg = malloc(sizeof *arg);
        if (!arg) break;
        *arg = (worker_arg){pool, i};
        if (pthread_create(&pool->threads[i], NULL, work, arg)) {
            free(arg); /* fewer threads than asked for: slower, not wrong */
            break;
        }
        pool->num_threads++;
    }
    return pool;
}

void tc_pool_free(tc_pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->stopping, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 1; i < pool->num_threads; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->threads);
    free(pool);
}

int tc_pool_threads(const tc_pool *pool) { return pool->num_threads; }

/* Run task(arg, chunk, thread) for every chunk. Not to be called from two threads at once, nor from a task. */
void tc_pool_run(tc_pool *pool, int64_t num_chunks, tc_task task, void *arg) {
    if (num_chunks == 1 || pool->num_threads == 1) {
        for (int64_t chunk = 0; chunk < num_chunks; chunk++) task(arg, chunk, 0);
        return;
    }
    if (num_chunks < 1) return;
    uint32_t gen = generation(atomic_load(&pool->ticket));
    atomic_store(&pool->ticket, (uint64_t)(gen + 1) << 32); /* late workers can claim nothing any more */
    atomic_store(&pool->task, task);
    atomic_store(&pool->arg, arg);
    atomic_store(&pool->num_chunks, num_chunks);
    atomic_store(&pool->num_done, 0);
    atomic_store(&pool->ticket, (uint64_t)(gen + 2) << 32);
    if (atomic_load(&pool->sleepers)) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
    run_chunks(pool, gen + 2, 0);
    for (int spin = 0; atomic_load(&pool->num_done) < num_chunks; spin++) {
        if (spin < SPINS_FINISH) relax();
        else sched_yield();
    }
}
