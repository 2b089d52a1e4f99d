/* Makes TC_W_COMPACT weights, whose layout is in compact.h, and finds their patches.
 *
 * Packing runs once per weight; this file is compiled without instruction set flags.
 */
#include <stdlib.h>

#include "compact.h"

#define NUM_EXPONENTS 256
#define NUM_CODES 16
#define NO_CODE 255
#define LEAST_COMMON 100 /* one value in so many may be a patch, or the weight is no smaller and slower to read */

static uint32_t *starts_of(const tc_weight *w) { return (uint32_t *)(w->data + w->num_panels * w->panel_bytes); }

static tc_patch *patches_of(const tc_weight *w) { return (tc_patch *)(starts_of(w) + w->num_panels + 1); }

/* Bytes behind the panels: where each panel's patches begin, then all patches. */
int64_t tc_compact_out_bytes(const tc_weight *w) {
    return (w->num_panels + 1) * (int64_t)sizeof(uint32_t) +
           (w->num_patches + w->num_panels) * (int64_t)sizeof(tc_patch);
}

const tc_patch *tc_patches(const tc_weight *w, int64_t panel, int64_t block) {
    const tc_patch *first = patches_of(w) + starts_of(w)[panel];
    const tc_patch *end = patches_of(w) + starts_of(w)[panel + 1] - 1;
    while (first < end) {
        const tc_patch *middle = first + (end - first) / 2;
        if (middle->place < block * BLOCK_VALUES) first = middle + 1;
        else end = middle;
    }
    return first;
}

typedef struct {
    const tc_weight *plain; /* bf16 */
    tc_weight *weight;
    int64_t (*counts)[NUM_EXPONENTS]; /* by panel */
    uint8_t codes[NUM_EXPONENTS];
} compaction;

static const uint16_t *plain_panel(const compaction *c, int64_t panel) {
    return (const uint16_t *)(c->plain->data + panel * c->plain->panel_bytes);
}

static int exponent_of(uint16_t value) { return value >> 7 & 0xff; }

static void count_panel(void *arg, int64_t panel, int thread) {
    (void)thread;
    const compaction *c = arg;
    const uint16_t *p = plain_panel(c, panel);
    uint32_t counts[4][NUM_EXPONENTS] = {0}; /* four, so that equal neighbours do not wait for one another */
    for (int64_t i = 0; i < c->plain->num_blocks * BLOCK_VALUES; i += 4)
        for (int j = 0; j < 4; j++) counts[j][exponent_of(p[i + j])]++;
    for (int e = 0; e < NUM_EXPONENTS; e++)
        c->counts[panel][e] = (int64_t)counts[0][e] + counts[1][e] + counts[2][e] + counts[3][e];
}

/* Give the most frequent exponents codes, and count the values with another. */
static void choose_codes(compaction *c) {
    tc_weight *w = c->weight;
    int64_t totals[NUM_EXPONENTS] = {0};
    w->num_patches = w->num_panels * w->num_blocks * BLOCK_VALUES;
    for (int64_t panel = 0; panel < w->num_panels; panel++)
        for (int e = 0; e < NUM_EXPONENTS; e++) totals[e] += c->counts[panel][e];
    memset(c->codes, NO_CODE, sizeof c->codes);
    for (int code = 0; code < NUM_CODES; code++) {
        int best = 0;
        for (int e = 1; e < NUM_EXPONENTS; e++)
            if (totals[e] > totals[best]) best = e;
        w->num_patches -= totals[best];
        totals[best] = -1;
        w->exponents[code] = (uint8_t)best;
        c->codes[best] = (uint8_t)code;
    }
}

/* Where each panel's patches begin: their number and the end mark of those before. */
static void put_starts(const compaction *c) {
    uint32_t *start = starts_of(c->weight);
    start[0] = 0;
    for (int64_t panel = 0; panel < c->weight->num_panels; panel++) {
        int64_t count = 1;
        for (int e = 0; e < NUM_EXPONENTS; e++) count += c->codes[e] == NO_CODE ? c->counts[panel][e] : 0;
        start[panel + 1] = start[panel] + (uint32_t)count;
    }
}

static void compact_panel(void *arg, int64_t panel, int thread) {
    (void)thread;
    const compaction *c = arg;
    const uint16_t *p = plain_panel(c, panel);
    uint8_t *to = c->weight->data + panel * c->weight->panel_bytes;
    tc_patch *patch = patches_of(c->weight) + starts_of(c->weight)[panel];
    for (uint32_t place = 0; place < c->weight->num_blocks * BLOCK_VALUES; place++) {
        int row = place % BLOCK_VALUES / BLOCK, column = place % BLOCK;
        uint8_t code = c->codes[exponent_of(p[place])], *both = to + compact_code_at(row, column);
        if (code == NO_CODE) {
            *patch++ = (tc_patch){place, p[place]};
            code = 0;
        }
        *both = row % 4 < 2 ? code : (uint8_t)(*both | code << 4);
        to[compact_rest_at(row, column)] = (uint8_t)((p[place] >> 8 & 0x80) | (p[place] & 0x7f));
        if (place % BLOCK_VALUES == BLOCK_VALUES - 1) to += COMPACT_BYTES;
    }
    *patch = (tc_patch){UINT32_MAX, 0};
}

/* Make `w`, of which format and shape are set, of `plain`, a bf16 weight of its shape. Returns the bytes at w->data,
 * which are the caller's; 0 where so many values have rare exponents that it would not pay, or memory is short. */
API int64_t tc_compact(tc_context *context, const tc_weight *plain, tc_weight *w) {
    compaction c = {.plain = plain, .weight = w};
    tc_weight_init(w);
    c.counts = malloc((size_t)w->num_panels * sizeof *c.counts);
    if (!c.counts) return 0;
    tc_enter(context);
    tc_pool_run(context->pool, w->num_panels, count_panel, &c);
    choose_codes(&c);
    int64_t bytes = tc_weight_init(w);
    w->data = w->num_patches * LEAST_COMMON > w->rows * w->columns ? NULL : tc_huge_alloc((size_t)bytes);
    if (w->data) {
        put_starts(&c);
        tc_pool_run(context->pool, w->num_panels, compact_panel, &c);
    }
    tc_leave(context);
    free(c.counts);
    return w->data ? bytes : 0;
}
