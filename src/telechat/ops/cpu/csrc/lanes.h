/* Sixteen lanes of fp32 in GCC's vector notation, which the compiler maps to what the level has.
 *
 * One source of the kernels thus serves AVX-512, AVX2, SSE2 and NEON. Intrinsics appear only where the
 * notation has no words for what the processor does in one instruction.
 */
#ifndef LANES_H
#define LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "telechat.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* Every level compiles the same files; NAME(x) keeps their functions apart. */
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#if defined(__AVX512VNNI__)
#define NAME(x) JOIN(x, avx512)
#elif defined(__AVX2__)
#define NAME(x) JOIN(x, avx2)
#else
#define NAME(x) JOIN(x, portable)
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float v16f __attribute__((vector_size(64)));
typedef float v8f __attribute__((vector_size(32)));
typedef float v4f __attribute__((vector_size(16)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));
typedef uint16_t v16h __attribute__((vector_size(32)));
typedef int8_t v16b __attribute__((vector_size(16)));
typedef uint64_t v8q __attribute__((vector_size(64)));
typedef uint64_t v4q __attribute__((vector_size(32)));
typedef uint8_t v8c __attribute__((vector_size(8)));

INLINE v16f splat(float x) { return (v16f){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE v16i splat_int(int32_t x) { return (v16i){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

INLINE v16f load_f32(const float *p) {
    v16f v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_f32(float *p, v16f v) { memcpy(p, &v, sizeof v); }

INLINE v16f select16(v16i mask, v16f yes, v16f no) {
    return (v16f)((mask & (v16i)yes) | (~mask & (v16i)no));
}

INLINE v16f max16(v16f a, v16f b) {
#if defined(__AVX512F__)
    return (v16f)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return select16(a > b, a, b);
#endif
}

INLINE v16f abs16(v16f a) { return (v16f)((v16i)a & splat_int(0x7fffffff)); }

INLINE float bf16_to_float(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest, ties to even; NaN stays NaN. */
INLINE uint16_t float_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

INLINE v16u bf16_bits(v16f v) {
    v16u u = (v16u)v;
    v16u rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    v16i is_nan = (u & 0x7fffffff) > 0x7f800000;
    return (v16u)((is_nan & (v16i)((u >> 16) | 0x40)) | (~is_nan & (v16i)rounded));
}

/* GCC 12 makes two to sixteen conversions of these where the processor has one. */
INLINE v16f load_bf16(const uint16_t *p) {
    v16h h;
    memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)
    return (v16f)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
    return (v16f)(__builtin_convertvector(h, v16u) << 16);
#endif
}
INLINE void store_bf16(uint16_t *p, v16f v) {
#if defined(__AVX512F__)
    v16h h = (v16h)_mm512_cvtepi32_epi16((__m512i)bf16_bits(v));
#else
    v16h h = __builtin_convertvector(bf16_bits(v), v16h);
#endif
    memcpy(p, &h, sizeof h);
}
INLINE v16f load_int8(const int8_t *p) {
    v16b b;
    memcpy(&b, p, sizeof b);
#if defined(__AVX512F__)
    return (v16f)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)b));
#elif defined(__AVX2__)
    __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32((__m128i)b));
    __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128((__m128i)b, 8)));
    return __builtin_shufflevector((v8f)low, (v8f)high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    return __builtin_convertvector(__builtin_convertvector(b, v16i), v16f);
#endif
}
INLINE void store_int8(int8_t *p, v16i v) {
#if defined(__AVX512F__)
    v16b b = (v16b)_mm512_cvtepi32_epi8((__m512i)v);
#else
    v16b b = __builtin_convertvector(v, v16b);
#endif
    memcpy(p, &b, sizeof b);
}

/* Sixteen codes of four bits, two to a byte, the earlier one low. A byte becomes 64 bits, its high half moves to the
 * upper lane of the two. */
INLINE v16f load_int4(const uint8_t *p) {
#if defined(__AVX512F__)
    v8q pairs = (v8q)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)p));
#elif defined(__AVX2__)
    __m128i b = _mm_loadl_epi64((const __m128i *)p);
    v4q low = (v4q)_mm256_cvtepu8_epi64(b), high = (v4q)_mm256_cvtepu8_epi64(_mm_srli_si128(b, 4));
    v8q pairs = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
#else
    v8c b;
    memcpy(&b, p, sizeof b);
    v8q pairs = __builtin_convertvector(b, v8q);
#endif
    return __builtin_convertvector((v16i)((pairs | pairs << 28) & 0xf0000000full), v16f);
}
/* The other way, for codes 0 .. 15. */
INLINE void store_int4(uint8_t *p, v16i codes) {
    v8q pairs = (v8q)codes;
    v8c b = __builtin_convertvector((pairs | pairs >> 28) & 0xff, v8c);
    memcpy(p, &b, sizeof b);
}

INLINE v16f round_bf16(v16f v) { return (v16f)(bf16_bits(v) << 16); }

/* Element i onward of an array of either type. `dtype` is a constant wherever this is inlined in a loop. */
INLINE v16f load16(const void *p, int64_t i, int dtype) {
    return dtype == TC_F32 ? load_f32((const float *)p + i) : load_bf16((const uint16_t *)p + i);
}
INLINE void store16(void *p, int64_t i, v16f v, int dtype) {
    if (dtype == TC_F32) store_f32((float *)p + i, v);
    else store_bf16((uint16_t *)p + i, v);
}
INLINE float load1(const void *p, int64_t i, int dtype) {
    return dtype == TC_F32 ? ((const float *)p)[i] : bf16_to_float(((const uint16_t *)p)[i]);
}
INLINE void store1(void *p, int64_t i, float v, int dtype) {
    if (dtype == TC_F32) ((float *)p)[i] = v;
    else ((uint16_t *)p)[i] = float_to_bf16(v);
}

/* fp16 -> fp32 for finite numbers: the exponent is rebased by a multiplication, which is exact. */
INLINE v16f load_f16(const uint16_t *p) {
#if defined(__AVX512F__)
    return (v16f)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
    v16h h;
    memcpy(&h, p, sizeof h);
    v16u u = __builtin_convertvector(h, v16u);
    v16f magnitude = (v16f)((u & 0x7fff) << 13) * 0x1p112f;
    return (v16f)((v16u)magnitude | ((u & 0x8000) << 16));
#endif
}

/* Elements i .. i + 15 of a cached vector, whose scales are at `scales`. */
INLINE v16f load_cached(const void *vector, const void *scales, int64_t i, int dtype) {
    if (dtype == TC_F32 || dtype == TC_BF16) return load16(vector, i, dtype);
    if (dtype == TC_INT8) {
        float scale;
        memcpy(&scale, scales, sizeof scale);
        return load_int8((const int8_t *)vector + i) * scale;
    }
    uint32_t pair; /* minimum and scale */
    memcpy(&pair, (const char *)scales + i / KV_GROUP * 4, sizeof pair);
    v16u both = (v16u){0} + pair;
    return load_int4((const uint8_t *)vector + i / 2) * (v16f)(both & 0xffff0000u) + (v16f)(both << 16);
}

INLINE v16i load_i32(const int32_t *p) {
    v16i v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Reductions fold halves onto one another, in the same order at every level. */
INLINE float sum16(v16f v) {
    v8f a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
    v8f b = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    a += b;
    v4f c = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (c[0] + c[2]) + (c[1] + c[3]);
}
INLINE int32_t sum16i(v16i v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += v[i];
    return sum;
#endif
}
INLINE float highest16(v16f v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float best = v[0];
    for (int i = 1; i < 16; i++) best = v[i] > best ? v[i] : best;
    return best;
#endif
}

/* Sums of integers and what is to be added to them, as values. */
INLINE v16f scaled_sums(v16i exact, v16i offset, v16f scale, float row_scale) {
    v16i sum = (v16i)((v16u)exact + (v16u)offset);
#if defined(__AVX512F__)
    v16f value = (v16f)_mm512_cvtepi32_ps((__m512i)sum);
#else
    v16f value = __builtin_convertvector(sum, v16f);
#endif
    return value * row_scale * scale;
}

/* Nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves it in the low bits. */
INLINE v16f round16(v16f x, v16i *integer) {
    v16f shifted = x + 12582912.0f;
    *integer = (v16i)shifted - 0x4b400000;
    return shifted - 12582912.0f;
}

/* e^x to about 2 ulp; arguments are held within [-87, 88], so there is neither 0 nor infinity. */
INLINE v16f exp16(v16f x) {
    x = max16(x, splat(-87.0f));
    x = -max16(-x, splat(-88.0f));
    v16i n;
    v16f whole = round16(x * 1.44269504f, &n);
    v16f r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    v16f p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (v16f)((v16i)p + (n << 23));
}

INLINE v16f silu16(v16f x) { return x / (1.0f + exp16(-x)); }

#endif
