/* Operations on rows, spread over threads: norm, SwiGLU, rotary embedding with cache write, attention. */
#include "telechat.h"

#define ROWS_PER_CHUNK 8
#define TOKENS_PER_CHUNK 2 /* of the rotary embedding: some microseconds each */
#define ELEMENTS_PER_CHUNK 4096 /* of an element-wise operation: some microseconds */
#define MAX_ATTENTION_ROWS 16
#define TASKS_PER_THREAD 3 /* of attention where there are few heads */
#define MAX_HEADS_PER_TASK 8

typedef struct {
    const tc_context *context;
    void *x, *y;
    const void *add, *weight;
    int64_t rows, width;
    float eps;
    int dtype;
} norm_work;

static char *element(const void *base, int64_t index, int dtype) {
    return (char *)base + index * (dtype == TC_F32 ? 4 : 2);
}

static void norm_chunk(void *arg, int64_t chunk, int thread) {
    (void)thread;
    const norm_work *n = arg;
    int64_t end = (chunk + 1) * ROWS_PER_CHUNK < n->rows ? (chunk + 1) * ROWS_PER_CHUNK : n->rows;
    for (int64_t row = chunk * ROWS_PER_CHUNK; row < end; row++) {
        int64_t at = row * n->width;
        n->context->kernels->norm_row(element(n->x, at, n->dtype), n->add ? element(n->add, at, n->dtype) : NULL,
                                      element(n->y, at, n->dtype), n->weight, n->width, n->eps, n->dtype);
    }
}

/* x += add where given, then y = norm(x): [rows, width], all of one type. */
void tc_norm_rows(tc_context *c, void *x, const void *add, void *y, const void *weight, int64_t rows,
                  int64_t width, float eps, int dtype) {
    norm_work n = {c, x, y, add, weight, rows, width, eps, dtype};
    tc_pool_run(c->pool, (rows + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK, norm_chunk, &n);
}

API void tc_norm(tc_context *c, void *x, const void *add, void *y, const void *weight, int64_t rows, int64_t width,
             float eps, int dtype) {
    tc_enter(c);
    tc_norm_rows(c, x, add, y, weight, rows, width, eps, dtype);
    tc_leave(c);
}

typedef struct {
    const tc_context *context;
    const void *gate, *up;
    void *y;
    int64_t count;
    int dtype;
} swiglu_work;

static void swiglu_chunk(void *arg, int64_t chunk, int thread) {
    (void)thread;
    const swiglu_work *s = arg;
    int64_t at = chunk * ELEMENTS_PER_CHUNK, count = s->count - at;
    if (count > ELEMENTS_PER_CHUNK) count = ELEMENTS_PER_CHUNK;
    s->context->kernels->swiglu(element(s->gate, at, s->dtype), element(s->up, at, s->dtype),
                                element(s->y, at, s->dtype), count, s->dtype);
}

/* y = silu(gate) * up, element by element. */
API void tc_swiglu(tc_context *c, const void *gate, const void *up, void *y, int64_t count, int dtype) {
    swiglu_work s = {c, gate, up, y, count, dtype};
    tc_enter(c);
    tc_pool_run(c->pool, (count + ELEMENTS_PER_CHUNK - 1) / ELEMENTS_PER_CHUNK, swiglu_chunk, &s);
    tc_leave(c);
}

typedef struct {
    const tc_context *context;
    const tc_rope *rope;
    int64_t tokens;
} rope_work;

static void rope_chunk(void *arg, int64_t chunk, int thread) {
    (void)thread;
    const rope_work *r = arg;
    int64_t end = (chunk + 1) * TOKENS_PER_CHUNK < r->tokens ? (chunk + 1) * TOKENS_PER_CHUNK : r->tokens;
    for (int64_t token = chunk * TOKENS_PER_CHUNK; token < end; token++)
        r->context->kernels->rope_token(r->rope, token);
}

void tc_rope_rows(tc_context *c, const tc_rope *rope, int64_t tokens) {
    rope_work r = {c, rope, tokens};
    tc_pool_run(c->pool, (tokens + TOKENS_PER_CHUNK - 1) / TOKENS_PER_CHUNK, rope_chunk, &r);
}

API void tc_rope_and_store(tc_context *c, const tc_rope *rope, int64_t tokens) {
    tc_enter(c);
    tc_rope_rows(c, rope, tokens);
    tc_leave(c);
}

#define AMX_TASK_TOKENS 256

/* One task of attention: some query tokens x some query heads of some key/value heads of one sequence. */
typedef struct {
    const tc_context *context;
    const tc_attention *a;
    int is_amx;
    int64_t kv_heads_per_task, kv_parts; /* key/value heads of a task, tasks of all of them */
    int64_t heads_per_task, head_parts, tokens_per_task;
    int64_t *first_task; /* [num_sequences + 1] */
    uint8_t *scratch;
    size_t scratch_per_thread;
} attention_work;

static int64_t find_sequence(const attention_work *w, int64_t task) {
    int64_t low = 0, high = w->a->num_sequences;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (w->first_task[middle] <= task) low = middle;
        else high = middle;
    }
    return low;
}

static void attention_chunk(void *arg, int64_t task, int thread) {
    const attention_work *w = arg;
    const tc_attention *a = w->a;
    int64_t sequence = find_sequence(w, task), rest = task - w->first_task[sequence];
    int64_t group = a->num_heads / a->cache.num_kv_heads;
    int64_t part = rest % w->head_parts, kv_part = rest / w->head_parts % w->kv_parts;
    int64_t token = rest / (w->head_parts * w->kv_parts) * w->tokens_per_task;
    int64_t num_new = a->query_starts[sequence + 1] - a->query_starts[sequence];
    int64_t tokens = num_new - token < w->tokens_per_task ? num_new - token : w->tokens_per_task;
    int64_t first = part * w->heads_per_task;
    int64_t heads = group - first < w->heads_per_task ? group - first : w->heads_per_task;
    uint8_t *scratch = w->scratch + (size_t)thread * w->scratch_per_thread;
    int64_t end = (kv_part + 1) * w->kv_heads_per_task;
    if (end > a->cache.num_kv_heads) end = a->cache.num_kv_heads;
    for (int64_t h = kv_part * w->kv_heads_per_task; h < end; h++) {
        if (w->is_amx) tc_amx_attend(a, sequence, h, token, tokens, scratch);
        else w->context->kernels->attend(a, sequence, h, token, tokens, h * group + first, heads, (float *)scratch);
    }
}

/* The tasks of all sequences that take this way. */
static void attend_some(tc_context *c, attention_work *w, int use_amx) {
    const tc_attention *a = w->a;
    w->first_task = tc_alloc(c, (size_t)(a->num_sequences + 1) * sizeof(int64_t));
    w->first_task[0] = 0;
    for (int64_t s = 0; s < a->num_sequences; s++) {
        int64_t num_new = a->query_starts[s + 1] - a->query_starts[s];
        if ((use_amx && s >= a->num_decoding) != w->is_amx) num_new = 0;
        int64_t parts = (num_new + w->tokens_per_task - 1) / w->tokens_per_task;
        w->first_task[s + 1] = w->first_task[s] + parts * w->kv_parts * w->head_parts;
    }
    if (!w->first_task[a->num_sequences]) return;
    w->scratch_per_thread = (w->scratch_per_thread + 63) / 64 * 64;
    w->scratch = tc_alloc(c, (size_t)tc_pool_threads(c->pool) * w->scratch_per_thread);
    tc_pool_run(c->pool, w->first_task[a->num_sequences], attention_chunk, w);
}

/* Attention of all new tokens; their keys and values are already in the cache. */
void tc_attend_all(tc_context *c, const tc_attention *a) {
    int64_t group = a->num_heads / a->cache.num_kv_heads;
    int use_amx = c->level == TC_AMX && !a->deterministic && a->cache.dtype != TC_F32;
    attention_work w = {.context = c, .a = a};
    /* Neighbouring heads in one task: while one is read, the beginning of the next is fetched from memory. */
    int64_t tasks = a->num_sequences * a->cache.num_kv_heads, threads = tc_pool_threads(c->pool);
    w.kv_heads_per_task = tasks / (threads * TASKS_PER_THREAD);
    if (w.kv_heads_per_task > MAX_HEADS_PER_TASK) w.kv_heads_per_task = MAX_HEADS_PER_TASK;
    if (w.kv_heads_per_task < 1) w.kv_heads_per_task = 1;
    w.kv_parts = (a->cache.num_kv_heads + w.kv_heads_per_task - 1) / w.kv_heads_per_task;
    w.heads_per_task = group < MAX_ATTENTION_ROWS ? group : MAX_ATTENTION_ROWS;
    w.head_parts = (group + w.heads_per_task - 1) / w.heads_per_task;
    w.tokens_per_task = MAX_ATTENTION_ROWS / w.heads_per_task;
    w.scratch_per_thread = 64 * (size_t)a->cache.head_dim * sizeof(float);
    attend_some(c, &w, use_amx);
    if (!use_amx) return;
    w = (attention_work){.context = c, .a = a, .is_amx = 1, .heads_per_task = group, .head_parts = 1};
    w.kv_heads_per_task = 1, w.kv_parts = a->cache.num_kv_heads;
    w.tokens_per_task = AMX_TASK_TOKENS;
    w.scratch_per_thread = tc_amx_attention_scratch(a->cache.head_dim, AMX_TASK_TOKENS, group);
    attend_some(c, &w, use_amx);
}

API void tc_attend(tc_context *c, const tc_attention *attention) {
    tc_enter(c);
    tc_attend_all(c, attention);
    tc_leave(c);
}
