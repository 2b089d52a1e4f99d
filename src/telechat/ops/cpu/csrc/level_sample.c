/* Choosing the token of one row: penalties, biases and mask, then the highest score or a draw.
 *
 * A draw inverts the cumulative distribution of the kept tokens in vocabulary order. Sorting a vocabulary would
 * cost more than a small model's step, so the row is cut into blocks of 64: their maxima tell where the tokens
 * that can be kept at all are, and only those are looked at one by one.
 * Compiled once per instruction set level.
 */
#include <stdlib.h>

#include "lanes.h"
#include "sample.h"

#define SPAN 64
#define NARROWINGS 5 /* halvings of the range in which the cut lies, each a quick look at the whole row */

typedef struct {
    float *highest;    /* of each block */
    double *mass;      /* of each block */
    float *weights;    /* of tokens, or of candidates */
    float *sorted;     /* a copy that selection may reorder */
    int32_t *ids;      /* of candidates, growing */
} space;

static int64_t num_blocks(int64_t vocab) { return (vocab + SPAN - 1) / SPAN; }

/* The same at every level; defined once. */
#if !defined(__AVX2__)
size_t tc_sample_scratch(int64_t vocab) {
    int64_t blocks = num_blocks(vocab);
    return (size_t)blocks * (sizeof(float) + sizeof(double) + SPAN * (2 * sizeof(float) + sizeof(int32_t)));
}
#endif

static space divide(void *scratch, int64_t vocab) {
    int64_t blocks = num_blocks(vocab);
    space s;
    s.mass = scratch;
    s.weights = (float *)(s.mass + blocks);
    s.sorted = s.weights + blocks * SPAN;
    s.ids = (int32_t *)(s.sorted + blocks * SPAN);
    s.highest = (float *)(s.ids + blocks * SPAN);
    return s;
}

/* ---- before the choice ------------------------------------------------------------------------------- */

static void adjust(const tc_draw *d, float *x, int64_t vocab) {
    const tc_history *seen = d->history;
    for (int64_t j = 0; seen && j < seen->num_seen; j++) {
        float *score = x + seen->ids[j];
        *score = *score > 0 ? *score / d->repetition : *score * d->repetition;
        if (seen->counts[j] > 0) *score -= (float)seen->counts[j] * d->frequency + d->presence;
    }
    for (int64_t j = 0; j < d->num_biases; j++) x[d->bias_ids[j]] += d->biases[j];
    if (!d->allowed) return;
    for (int64_t first = 0; first < vocab; first += 32) {
        uint32_t bits = d->allowed[first / 32];
        int64_t count = vocab - first < 32 ? vocab - first : 32;
        if (bits == 0xffffffffu) continue;
        for (int64_t j = 0; j < count; j++)
            if (!(bits >> j & 1)) x[first + j] = -INFINITY;
    }
}

/* The highest score of every block, and of all; NaN when there is a NaN. */
static float find_highest(const float *x, int64_t vocab, float *highest) {
    float best = -INFINITY;
    int64_t even = vocab / SPAN * SPAN;
    v16i is_nan = splat_int(0);
    for (int64_t first = 0; first < even; first += SPAN) {
        v16f a = load_f32(x + first), b = load_f32(x + first + 16);
        v16f c = load_f32(x + first + 32), d = load_f32(x + first + 48);
        is_nan |= (a != a) | (b != b) | (c != c) | (d != d);
        float top = highest16(max16(max16(a, b), max16(c, d)));
        highest[first / SPAN] = top;
        if (top > best) best = top;
    }
    if (even < vocab) {
        float top = -INFINITY;
        for (int64_t i = even; i < vocab; i++) {
            if (x[i] != x[i]) return NAN;
            if (x[i] > top) top = x[i];
        }
        highest[even / SPAN] = top;
        if (top > best) best = top;
    }
    for (int i = 0; i < 16; i++)
        if (is_nan[i]) return NAN;
    return best;
}

static int32_t first_of(const float *x, int64_t vocab, const float *highest, float value) {
    int64_t i = 0;
    while (highest[i / SPAN] != value) i += SPAN;
    while (i < vocab - 1 && x[i] != value) i++;
    return (int32_t)i;
}

/* e^((x - top) * inverse), 0 where fp32 has next to nothing left: masked tokens must never be drawn. */
INLINE v16f weights16(v16f x, float top, float inverse) {
    v16f z = (x - top) * inverse;
    return select16(z > -86.0f, exp16(z), splat(0));
}

/* ---- drawing from the whole vocabulary --------------------------------------------------------------- */

/* Weights of all tokens into s->weights, their sums by block into s->mass; returns the sum. */
static double weigh_all(const float *x, int64_t vocab, float top, float inverse, const space *s) {
    double total = 0;
    int64_t even = vocab / SPAN * SPAN;
    for (int64_t first = 0; first < even; first += SPAN) {
        v16f sum = splat(0);
        for (int j = 0; j < SPAN; j += 16) {
            v16f w = weights16(load_f32(x + first + j), top, inverse);
            store_f32(s->weights + first + j, w);
            sum += w;
        }
        total += s->mass[first / SPAN] = sum16(sum);
    }
    if (even < vocab) {
        double sum = 0;
        for (int64_t i = even; i < vocab; i++)
            sum += s->weights[i] = weights16(splat(x[i]), top, inverse)[0];
        total += s->mass[even / SPAN] = sum;
    }
    return total;
}

static int32_t draw_from_all(int64_t vocab, double total, double uniform, const space *s) {
    double target = uniform * total, before = 0;
    int64_t block = 0, last = num_blocks(vocab) - 1;
    while (block < last && before + s->mass[block] <= target) before += s->mass[block++];
    /* Rounding may leave the target at the end of a block: its last token that has weight is the one. */
    int64_t end = (block + 1) * SPAN < vocab ? (block + 1) * SPAN : vocab, chosen = -1;
    for (int64_t i = block * SPAN; i < end; i++) {
        if (s->weights[i] <= 0) continue;
        chosen = i;
        before += s->weights[i];
        if (before > target) break;
    }
    for (int64_t i = block * SPAN - 1; chosen < 0; i--)
        if (s->weights[i] > 0) chosen = i;
    return (int32_t)chosen;
}

/* ---- drawing from candidates ------------------------------------------------------------------------- */

/* Reorders v[0 .. n-1]; returns the k-th largest, k from 1. */
static float kth_largest(float *v, int64_t n, int64_t k) {
    for (;;) {
        float pivot = v[n / 2];
        int64_t above = 0, equal = 0;
        for (int64_t i = 0; i < n; i++) { /* [above][equal][below] */
            float x = v[i];
            if (x > pivot) {
                v[i] = v[above + equal];
                v[above + equal] = v[above];
                v[above++] = x;
            } else if (x == pivot) {
                v[i] = v[above + equal];
                v[above + equal++] = x;
            }
        }
        if (k <= above) n = above;
        else if (k <= above + equal) return pivot;
        else {
            k -= above + equal;
            v += above + equal;
            n -= above + equal;
        }
    }
}

/* The weight at which the largest weights together first reach `limit`, and how many of exactly that weight
 * are needed. Reorders v. */
static float reaches(float *v, int64_t n, double limit, int64_t *num_equal) {
    double before = 0;
    for (;;) {
        float pivot = v[n / 2];
        int64_t above = 0, equal = 0;
        double mass = 0;
        for (int64_t i = 0; i < n; i++) {
            float x = v[i];
            if (x > pivot) {
                mass += x;
                v[i] = v[above + equal];
                v[above + equal] = v[above];
                v[above++] = x;
            } else if (x == pivot) {
                v[i] = v[above + equal];
                v[above + equal++] = x;
            }
        }
        int64_t below = n - above - equal;
        if (above && before + mass >= limit) n = above;
        else if (before + mass + (double)equal * pivot >= limit || !below) {
            double needed = (limit - before - mass) / pivot;
            *num_equal = needed >= (double)equal ? equal : (int64_t)needed;
            if ((double)*num_equal < needed && *num_equal < equal) ++*num_equal;
            return pivot;
        } else {
            before += mass + (double)equal * pivot;
            v += above + equal;
            n = below;
        }
    }
}

/* Drops candidates under `least`, and of those equal to it all but the first `num_equal`; returns how many
 * are left. */
static int64_t keep_from(float *weights, int32_t *ids, int64_t n, float least, int64_t num_equal) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        if (weights[i] < least || (weights[i] == least && num_equal-- <= 0)) continue;
        weights[kept] = weights[i];
        ids[kept++] = ids[i];
    }
    return kept;
}

/* Scores of at least `least`, and their ids, in vocabulary order. */
static int64_t gather(const float *x, int64_t vocab, float least, const space *s) {
    int64_t n = 0;
    for (int64_t first = 0; first < vocab; first += SPAN) {
        if (s->highest[first / SPAN] < least) continue;
        int64_t i = first, end = first + SPAN < vocab ? first + SPAN : vocab;
#if defined(__AVX512F__)
        const __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        for (; i + 16 <= end; i += 16) {
            __m512 scores = _mm512_loadu_ps(x + i);
            __mmask16 is_high = _mm512_cmp_ps_mask(scores, _mm512_set1_ps(least), _CMP_GE_OQ);
            _mm512_mask_compressstoreu_ps(s->weights + n, is_high, scores);
            _mm512_mask_compressstoreu_epi32(s->ids + n, is_high,
                                             _mm512_add_epi32(places, _mm512_set1_epi32((int32_t)i)));
            n += __builtin_popcount(is_high);
        }
#endif
        for (; i < end; i++) {
            s->weights[n] = x[i];
            s->ids[n] = (int32_t)i;
            n += x[i] >= least;
        }
    }
    return n;
}

static int64_t count_from(const float *x, int64_t vocab, float least, const space *s) {
    int64_t count = 0;
    v16i found = splat_int(0);
    for (int64_t first = 0; first < vocab; first += SPAN) {
        if (s->highest[first / SPAN] < least) continue;
        int64_t i = first, end = first + SPAN < vocab ? first + SPAN : vocab;
        for (; i + 16 <= end; i += 16) found -= load_f32(x + i) >= least;
        for (; i < end; i++) count += x[i] >= least;
    }
    for (int j = 0; j < 16; j++) count += found[j];
    return count;
}

static int64_t gather_top_k(const float *x, int64_t vocab, int64_t k, float top, const space *s) {
    int64_t blocks = num_blocks(vocab);
    float least = -INFINITY, high = top;
    if (k <= blocks) { /* k blocks hold a score at least as high: so do the k best */
        memcpy(s->sorted, s->highest, (size_t)blocks * sizeof(float));
        least = kth_largest(s->sorted, blocks, k);
    }
    for (int step = 0; step < NARROWINGS; step++) {
        float middle = least > -INFINITY ? least + (high - least) / 2 : top - 32;
        if (count_from(x, vocab, middle, s) >= k) least = middle;
        else if (least > -INFINITY) high = middle;
        else break;
    }
    int64_t n = gather(x, vocab, least, s);
    if (n <= k) return n;
    memcpy(s->sorted, s->weights, (size_t)n * sizeof(float));
    least = kth_largest(s->sorted, n, k);
    int64_t above = 0;
    for (int64_t i = 0; i < n; i++) above += s->weights[i] > least;
    return keep_from(s->weights, s->ids, n, least, k - above);
}

/* A weight for which lighter tokens together have no more than `spare`: top-p keeps none of them. The caller
 * allows for the rounding of fp32 sums. */
static float light_weight(int64_t vocab, double spare, const space *s) {
    float least = (float)(spare / (double)vocab), high = 1;
    for (int step = 0; step < NARROWINGS; step++) {
        float middle = sqrtf(least * high);
        v16f sums[2] = {splat(0), splat(0)};
        int64_t i = 0;
        for (; i + 32 <= vocab; i += 32) {
            v16f a = load_f32(s->weights + i), b = load_f32(s->weights + i + 16);
            sums[0] += select16(a < middle, a, splat(0));
            sums[1] += select16(b < middle, b, splat(0));
        }
        double mass = sum16(sums[0] + sums[1]);
        for (; i < vocab; i++) mass += s->weights[i] < middle ? s->weights[i] : 0;
        if (mass <= spare) least = middle;
        else high = middle;
    }
    return least;
}

static int32_t draw_candidate(const tc_draw *d, const float *x, int64_t vocab, float top, float inverse,
                              const space *s) {
    int has_k = d->top_k > 0 && d->top_k < vocab;
    int64_t n;
    double total = 0;
    if (has_k) n = gather_top_k(x, vocab, d->top_k, top, s);
    else {
        float least = d->min_p;
        if (d->top_p < 1) {
            total = weigh_all(x, vocab, top, inverse, s);
            float light = light_weight(vocab, (1 - d->top_p) * total * 0.999, s);
            if (light > least) least = light;
        }
        /* A little lower: the exact cut is made by weight. */
        n = gather(x, vocab, top + (logf(least) - 1e-3f) / inverse, s);
    }
    for (int64_t i = n; i % 16; i++) s->weights[i] = -INFINITY;
    double sum = 0;
    for (int64_t i = 0; i < n; i += 16) {
        v16f w = weights16(load_f32(s->weights + i), top, inverse);
        store_f32(s->weights + i, w);
        sum += sum16(w);
    }
    if (d->top_p < 1) {
        int64_t num_equal;
        memcpy(s->sorted, s->weights, (size_t)n * sizeof(float));
        float least = reaches(s->sorted, n, d->top_p * (has_k ? sum : total), &num_equal);
        n = keep_from(s->weights, s->ids, n, least, num_equal);
    }
    if (d->min_p > 0) n = keep_from(s->weights, s->ids, n, d->min_p, n);
    sum = 0;
    for (int64_t i = 0; i < n; i++) sum += s->weights[i];
    double target = d->uniform * sum, before = 0;
    int32_t chosen = -1;
    for (int64_t i = 0; i < n && before <= target; i++) {
        if (s->weights[i] <= 0) continue;
        chosen = s->ids[i];
        before += s->weights[i];
    }
    return chosen;
}

/* Whether top-p surely keeps the best token alone, as it does for most tokens of most answers: told from the
 * scores of its block and the maxima of the others, which bound the mass from above. */
static int is_alone(const tc_draw *d, const float *x, int64_t vocab, int64_t best, float top, float inverse,
                    const space *s) {
    if (d->top_p >= 1) return 0;
    int64_t blocks = num_blocks(vocab), own = best / SPAN, i = 0;
    double mass = 0, most = d->top_k > 0 && d->top_k < SPAN ? (double)d->top_k : SPAN;
    s->highest[own] = -INFINITY;
    for (; i + 16 <= blocks; i += 16) mass += sum16(weights16(load_f32(s->highest + i), top, inverse));
    for (; i < blocks; i++) mass += weights16(splat(s->highest[i]), top, inverse)[0];
    s->highest[own] = top;
    mass *= most;
    int64_t end = (own + 1) * SPAN < vocab ? (own + 1) * SPAN : vocab;
    for (i = own * SPAN; i + 16 <= end; i += 16) mass += sum16(weights16(load_f32(x + i), top, inverse));
    for (; i < end; i++) mass += weights16(splat(x[i]), top, inverse)[0];
    return mass * d->top_p * (1 + 1e-4) < 1; /* sums of fp32 are that exact */
}

int32_t NAME(tc_sample_row)(const tc_draw *d, float *x, int64_t vocab, void *scratch) {
    space s = divide(scratch, vocab);
    adjust(d, x, vocab);
    float top = find_highest(x, vocab, s.highest);
    if (!isfinite(top)) return -1;
    int32_t best = first_of(x, vocab, s.highest, top);
    if (d->temperature <= 0) return best;
    float inverse = 1.0f / (d->temperature > 1e-30f ? d->temperature : 1e-30f);
    if (d->top_p >= 1 && d->min_p <= 0 && (d->top_k <= 0 || d->top_k >= vocab)) {
        double total = weigh_all(x, vocab, top, inverse, &s);
        return draw_from_all(vocab, total, d->uniform, &s);
    }
    return is_alone(d, x, vocab, best, top, inverse, &s) ? best : draw_candidate(d, x, vocab, top, inverse, &s);
}
