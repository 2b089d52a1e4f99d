/* Types and functions shared by the kernel files.
 *
 * Letters: M rows of activations (tokens), N rows of a weight (outputs), K columns of a weight (inputs).
 * A weight is cut into panels of 16 outputs, activations into tiles of up to 16 rows, both into blocks of
 * 32 inputs. Everything else about layouts stands beside the structs.
 */
#ifndef TELECHAT_H
#define TELECHAT_H

#include <stddef.h>
#include <stdint.h>

#define API __attribute__((visibility("default"))) /* called from Python */

#define PANEL 16 /* outputs of one panel: the lanes of one 512-bit register */
#define TILE 16  /* rows of one activation tile: the rows of one AMX tile */
#define BLOCK 32 /* inputs of one block: one scale of quantised activations */
#define INT_PANELS 4 /* panels that a product of integers takes at most at once */
#define BYTE_BLOCK 64 /* inputs of one block of w8a8 */
#define KV_GROUP 32 /* elements of a cached int4 vector that share a minimum and a scale */
#define PART 8   /* blocks that a product of many rows takes at a time */

enum { TC_F32 = 0, TC_BF16 = 1, TC_INT8 = 2, TC_INT4 = 3 };               /* element types; integers in caches */
enum { TC_W_INT4 = 0, TC_W_INT8 = 1, TC_W_BF16 = 2, TC_W_F32 = 3, TC_W_COMPACT = 4, TC_W_W8A8 = 5 }; /* weight formats */
enum { TC_ACT_INT8 = 0, TC_ACT_BF16 = 1, TC_ACT_F32 = 2, TC_ACT_UINT8 = 3 };      /* activation formats */
enum { TC_PORTABLE = 0, TC_AVX2 = 1, TC_AVX512 = 2, TC_AMX = 3 };         /* instruction set levels */

/* How activations become int8 for w8a8: q = clamp(round(x / scale + offset)), or with a scale of each row's own. */
typedef struct {
    float scale;
    int32_t offset, by_row; /* by_row: the row's largest magnitude becomes 127; scale and offset say nothing */
} tc_range;

/* A packed weight: num_panels panels after one another, each with num_blocks blocks; zeros fill both up.
 *   int4, int8  superblocks of 2 * group inputs: their blocks, then 2 x 16 fp16 scales. A block holds 8
 *               quads; in a quad each output has the 4 bytes of 4 consecutive inputs. Values are stored
 *               with an offset (8 or 128) as unsigned. int4 keeps quads 0-3 in low nibbles, 4-7 in high.
 *   bf16        a block is 16 pairs of inputs; in a pair each output has 2 consecutive inputs.
 *   compact     bf16 in 12 bits, without loss: see compact.h.
 *   f32         a block is 32 inputs of 16 outputs.
 *   w8a8        int8 as it is, of which all sums are integers to the end: a block is 64 inputs in 16 quads. Behind
 *               the panels each output has an fp32 scale, then each an int32 that is added to its sum.
 */
typedef struct {
    int32_t format, group;
    int64_t rows, columns; /* N, K without filling */
    int64_t num_panels, num_blocks, panel_bytes;
    uint8_t *data; /* aligned to 64 bytes */
    tc_range range; /* of w8a8 */
    uint8_t exponents[16]; /* of compact: by code */
    int64_t num_patches;
} tc_weight;

static inline int tc_is_bf16(const tc_weight *w) { return w->format == TC_W_BF16 || w->format == TC_W_COMPACT; }

/* Activations made ready for one kind of weight: [tile][block][row of the tile][inputs of a block], only the last
 * tile has fewer than 16 rows. int8 has one scale and one correction (-offset * sum of the 32 integers) per row and
 * block, [tile][block][row]. uint8, for w8a8, is int8 + 128 and has a scale per row.
 * For AMX bf16 and uint8 are in pairs of tiles, and cut into parts of `part` blocks,
 * [part][pair of tiles][block][row of the pair][64 bytes]: a part of many rows is to stay in the second-level cache.
 * From 16 rows on these are filled up with rows of zeros to whole tiles.
 */
typedef struct {
    int32_t format, offset;
    tc_range range;
    int64_t rows, columns, num_blocks;
    int64_t stored_rows, part; /* differ from rows and num_blocks where tiles are in pairs only */
    int64_t tiles_together;    /* 1 or 2 */
    void *values;
    float *scales;
    int32_t *corrections;
} tc_acts;

/* Where activations come from: x, or silu(x) * gated_by where that is given (then both are fp32). */
typedef struct {
    const void *x;
    const float *gated_by;
    int32_t dtype;
    int64_t stride; /* elements between rows */
} tc_source;

/* Where results go: out = result + bias, or out += result + bias. */
typedef struct {
    void *out;
    const float *bias; /* [N] or NULL */
    int32_t dtype, accumulate;
    int64_t stride; /* elements between rows */
} tc_output;

typedef struct {
    const tc_weight *weight;
    tc_output output;
} tc_product;

/* Paged keys and values of one layer. Strides are in bytes; a token's vector has its head_dim elements side by
 * side, and its scales follow those of the token before. block_size and head_dim are multiples of 16.
 *   int8  one fp32 scale per vector: value = integer * scale
 *   int4  a byte has two elements, the earlier one low. For each group of KV_GROUP elements, of which the last may
 *         be half a group, there are two bf16, minimum and scale: value = code * scale + minimum, codes 0 .. 15
 */
typedef struct {
    void *keys, *values;
    void *key_scales, *value_scales; /* NULL unless there are integers */
    int32_t dtype;
    int64_t num_kv_heads, head_dim, block_size;
    int64_t block_stride, head_stride, token_stride;
    int64_t scale_block_stride, scale_head_stride;
} tc_cache;

/* Bytes of the scales of one cached vector. */
static inline int64_t tc_scale_bytes(int64_t head_dim, int dtype) {
    return dtype == TC_INT8 ? 4 : dtype == TC_INT4 ? (head_dim + KV_GROUP - 1) / KV_GROUP * 4 : 0;
}

/* Bytes from the beginning of keys or values to a token's vector, and from the beginning of the scales to its own. */
typedef struct {
    int64_t vector, scales;
} tc_place;
static inline tc_place tc_place_of(const tc_cache *c, int64_t block, int64_t kv_head, int64_t offset) {
    return (tc_place){block * c->block_stride + kv_head * c->head_stride + offset * c->token_stride,
                      block * c->scale_block_stride + kv_head * c->scale_head_stride +
                          offset * tc_scale_bytes(c->head_dim, c->dtype)};
}

/* New tokens of several sequences and the cache they read. Tokens of sequence s are rows query_starts[s] ..
 * query_starts[s + 1]; the last one sees kv_lengths[s] keys.
 */
typedef struct {
    const void *queries; /* [tokens][heads][head_dim], rotated */
    void *out;           /* the same shape */
    tc_cache cache;
    int32_t dtype, deterministic; /* deterministic: fp32 for all of them */
    int64_t num_heads, num_sequences, num_decoding, max_blocks; /* the first num_decoding are computed in fp32 too */
    const int32_t *query_starts, *kv_lengths, *block_tables; /* block_tables [num_sequences][max_blocks] */
} tc_attention;

/* Rotary embedding of new queries (in place) and keys, and the cache rows they go to. */
typedef struct {
    void *queries;     /* [tokens][heads][head_dim] */
    const void *kv;    /* [tokens][kv_heads][2][head_dim]: key, value */
    const float *cos, *sin; /* [tokens][head_dim] */
    const int64_t *slots;   /* [tokens]: block * block_size + place in the block */
    tc_cache cache;
    int32_t dtype;
    int64_t num_heads;
} tc_rope;

/* The operations of one instruction set level, each on a part of the work of one thread. */
typedef struct {
    void (*prepare)(const tc_acts *acts, const tc_source *source, int64_t row, int64_t first, int64_t last);
    int64_t (*int_panels)(const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts, int64_t tile, float *y);
    void (*float_panel)(const tc_weight *w, int64_t panel, const tc_acts *acts, int64_t tile, float *y);
    void (*float_band)(const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts, int64_t tile, int64_t rows,
                       uint16_t *expanded, float *sums);
    int64_t (*w8a8_panels)(const tc_weight *w, int64_t panel, int64_t count, const tc_acts *acts, int64_t tile, float *y);
    void (*norm_row)(void *x, const void *add, void *y, const void *weight, int64_t width, float eps, int dtype);
    void (*swiglu)(const void *gate, const void *up, void *y, int64_t count, int dtype);
    void (*rope_token)(const tc_rope *rope, int64_t token);
    void (*attend)(const tc_attention *a, int64_t sequence, int64_t kv_head, int64_t first_token,
                   int64_t num_tokens, int64_t first_head, int64_t num_heads, float *scratch);
    void (*store)(const tc_output *o, const float *y, int64_t row, int64_t rows, int64_t first, int64_t count);
} tc_kernels;

extern const tc_kernels tc_kernels_portable;
#if defined(__x86_64__)
extern const tc_kernels tc_kernels_avx2, tc_kernels_avx512;
#endif

/* pool.c */
typedef struct tc_pool tc_pool;
typedef void (*tc_task)(void *arg, int64_t chunk, int thread);
tc_pool *tc_pool_new(int num_threads);
void tc_pool_free(tc_pool *pool);
int tc_pool_threads(const tc_pool *pool);
void tc_pool_run(tc_pool *pool, int64_t num_chunks, tc_task task, void *arg);

/* context.c: threads, a level and scratch memory; one operation at a time. */
typedef struct tc_context tc_context;
struct tc_context {
    tc_pool *pool;
    int level;
    const tc_kernels *kernels;
    struct tc_scratch *scratch;
    size_t most_scratch; /* bytes that the largest operation so far needed */
    void *lock;
};
void tc_enter(tc_context *context);
void tc_leave(tc_context *context);
void *tc_alloc(tc_context *context, size_t bytes); /* valid until tc_leave; aligned to 64 bytes */
typedef struct {
    struct tc_scratch *chunk;
    size_t used;
} tc_mark;
tc_mark tc_remember(const tc_context *context);
void tc_rewind(tc_context *context, tc_mark mark);
API void *tc_huge_alloc(size_t bytes);
API void tc_huge_free(void *memory, size_t bytes);

/* matmul.c */
size_t tc_acts_init(tc_context *context, tc_acts *acts, const tc_weight *weight, int64_t rows, int as_tiles);
#define ALL_ROWS INT64_MAX
void tc_prepare(tc_context *context, tc_acts *acts, const tc_source *source);
void tc_products(tc_context *context, const tc_acts *acts, const tc_product *products, int count);
void tc_multiply(tc_context *context, const tc_source *source, int64_t rows, const tc_product *products, int count,
                 int64_t num_decoding);
size_t tc_panels_scratch(const tc_acts *acts, int64_t num_panels);
void tc_panels(const tc_context *context, const tc_acts *acts, const tc_product *product, int64_t first, int64_t last,
               uint8_t *scratch);
tc_output tc_into(float *out, int64_t stride, const float *bias, int accumulate);

/* rows.c: operations on rows, spread over threads */
void tc_norm_rows(tc_context *c, void *x, const void *add, void *y, const void *weight, int64_t rows,
                  int64_t width, float eps, int dtype);
void tc_rope_rows(tc_context *c, const tc_rope *rope, int64_t tokens);
void tc_attend_all(tc_context *c, const tc_attention *attention);

/* mixture.c: a mixture of SwiGLU experts; experts first_expert .. first_expert + num_local - 1 are at hand. */
typedef struct {
    const tc_weight *gate, *up, *down;
    const float *down_bias; /* or NULL */
} tc_expert;
typedef struct {
    const tc_weight *router; /* fp32 [num_experts, hidden] */
    const tc_expert *experts; /* [num_local] */
    int64_t num_experts, first_expert, num_local, experts_per_token;
    int32_t renormalise;
    float scaling_factor; /* of the probabilities where they are not renormalised */
} tc_mixture;
void tc_mix(tc_context *c, const tc_mixture *mixture, const float *x, float *out, int64_t rows, int64_t hidden,
            int64_t num_decoding);

/* adapters.c: a product's layer changed by B A; both NULL where an adapter leaves the layer as it is. */
typedef struct {
    const tc_weight *a, *b; /* [rank, inputs], [outputs, rank] */
} tc_low_rank;

/* Rows first .. first + count - 1 of a batch, which have one adapter. */
typedef struct {
    const tc_low_rank *layers; /* by place */
    int64_t first, count;
} tc_adapter_run;
/* Adds to the outputs of `products` (one or two, fp32), which have been computed from the fp32 `source`; their
 * layers have the places `place` and `place` + 1. */
void tc_adapt(tc_context *context, const tc_adapter_run *runs, int64_t num_runs, int64_t place,
              const tc_source *source, const tc_product *products, int count);

/* pack.c */
API int64_t tc_weight_init(tc_weight *w);
int64_t tc_block_bytes(int format);
int64_t tc_superblock(const tc_weight *w); /* inputs between two rows of scales */
const uint8_t *tc_block(const tc_weight *w, int64_t panel, int64_t block, const uint16_t **scales);
const float *tc_out_scales(const tc_weight *w);    /* [16 * num_panels], of w8a8 */
const int32_t *tc_out_offsets(const tc_weight *w); /* the same */

/* compact.c */
int64_t tc_compact_out_bytes(const tc_weight *w);

/* matmul_amx_int.c, matmul_amx_tiles.c, attention_amx.c */
#if defined(__x86_64__)
int tc_amx_enable(void);
void tc_amx_int_begin(int64_t height);
void tc_amx_int_end(void);
void tc_amx_int_panel(const tc_weight *w, int64_t panel, const tc_acts *acts, int64_t tile, float *y);
size_t tc_amx_scratch(const tc_acts *acts, int64_t num_panels);
void tc_amx_tiles(const tc_weight *w, int64_t first_panel, int64_t num_panels, const tc_acts *acts,
                  const tc_output *output, const tc_kernels *kernels, uint8_t *scratch);
size_t tc_amx_attention_scratch(int64_t head_dim, int64_t tokens, int64_t heads);
void tc_amx_attend(const tc_attention *a, int64_t sequence, int64_t kv_head, int64_t first_token, int64_t num_tokens,
                   uint8_t *scratch);
#else /* never called: no context has that level */
#define tc_amx_int_begin(height) ((void)(height))
#define tc_amx_int_end() ((void)0)
#define tc_amx_int_panel(w, panel, acts, tile, y) ((void)0)
#define tc_amx_scratch(acts, panels) ((void)(panels), (size_t)0)
#define tc_amx_tiles(w, first, panels, acts, output, kernels, scratch) ((void)(scratch))
#define tc_amx_attention_scratch(head_dim, tokens, heads) ((size_t)0)
#define tc_amx_attend(a, sequence, kv_head, token, tokens, scratch) ((void)(scratch))
#endif

#endif
