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
typedef float v4f __attribute__((vector_size(16)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));
typedef uint16_t v16h __attribute__((vector_size(32)));
typedef int8_t v16b __attribute__((vector_size(16)));
typedef uint64_t v8q __attribute__((vector_size(64)));
typedef uint64_t v4q __attribute__((vector_size(32)));
typedef uint8_t v8c __attribute__((vector_size(8)));

/* What one register of the level holds. GCC keeps wider vectors in memory: what must be fast goes part by part. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define PARTS (16 / LANES)
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

INLINE vf load_part(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_part(float *p, vf v) { memcpy(p, &v, sizeof v); }

INLINE vf part_of(v16f v, int i) {
    vf part;
    memcpy(&part, (const char *)&v + i * sizeof part, sizeof part);
    return part;
}
INLINE v16f join(const vf parts[PARTS]) {
    v16f v;
    memcpy(&v, parts, sizeof v);
    return v;
}

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

INLINE vf max_part(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    vi mask = a > b;
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
#endif
}

INLINE v16f max16(v16f a, v16f b) {
    vf parts[PARTS];
    for (int i = 0; i < PARTS; i++) parts[i] = max_part(part_of(a, i), part_of(b, i));
    return join(parts);
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
INLINE vf load_bf16_part(const uint16_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    return (vf)((vu){p[0], p[1], p[2], p[3]} << 16);
#endif
}
INLINE v16f load_bf16(const uint16_t *p) {
    vf parts[PARTS];
    for (int i = 0; i < PARTS; i++) parts[i] = load_bf16_part(p + i * LANES);
    return join(parts);
}
INLINE void store_bf16(uint16_t *p, v16f v) {
#if defined(__AVX512F__)
    v16h h = (v16h)_mm512_cvtepi32_epi16((__m512i)bf16_bits(v));
#else
    v16h h = __builtin_convertvector(bf16_bits(v), v16h);
#endif
    memcpy(p, &h, sizeof h);
}
INLINE vf load_int8_part(const int8_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    return (vf){p[0], p[1], p[2], p[3]};
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

/* Codes of four bits, two to a byte, the earlier one low. */
INLINE vf load_int4_part(const uint8_t *p) {
#if defined(__AVX512F__)
    /* A byte becomes 64 bits, its high half moves to the upper lane of the two. */
    v8q pairs = (v8q)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)p));
    return (vf)_mm512_cvtepi32_ps((__m512i)((pairs | pairs << 28) & 0xf0000000full));
#elif defined(__AVX2__)
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    __m256i shifted = _mm256_srlv_epi32(_mm256_set1_epi32(codes), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    return (vf)_mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)));
#else
    return (vf){p[0] & 15, p[0] >> 4, p[1] & 15, p[1] >> 4};
#endif
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
#elif defined(__AVX2__)
    vf parts[PARTS];
    for (int i = 0; i < PARTS; i++) parts[i] = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + i * 8)));
    return join(parts);
#else
    v16h h;
    memcpy(&h, p, sizeof h);
    v16u u = __builtin_convertvector(h, v16u);
    v16f magnitude = (v16f)((u & 0x7fff) << 13) * 0x1p112f;
    return (v16f)((v16u)magnitude | ((u & 0x8000) << 16));
#endif
}

/* A part of a cached vector from element i on; its scales are at `scales`. */
INLINE vf load_cached_part(const void *vector, const void *scales, int64_t i, int dtype) {
    if (dtype == TC_F32) return load_part((const float *)vector + i);
    if (dtype == TC_BF16) return load_bf16_part((const uint16_t *)vector + i);
    if (dtype == TC_INT8) {
        float scale;
        memcpy(&scale, scales, sizeof scale);
        return load_int8_part((const int8_t *)vector + i) * scale;
    }
    uint32_t pair; /* minimum and scale */
    memcpy(&pair, (const char *)scales + i / KV_GROUP * 4, sizeof pair);
    vu both = (vu){0} + pair;
    return load_int4_part((const uint8_t *)vector + i / 2) * (vf)(both & 0xffff0000u) + (vf)(both << 16);
}
/* Elements i .. i + 15. */
INLINE v16f load_cached(const void *vector, const void *scales, int64_t i, int dtype) {
    vf parts[PARTS];
    for (int part = 0; part < PARTS; part++) parts[part] = load_cached_part(vector, scales, i + part * LANES, dtype);
    return join(parts);
}

INLINE v16i load_i32(const int32_t *p) {
    v16i v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Reductions fold halves onto one another, in the same order at every level: eight, four, two lanes. */
INLINE v4f fold_parts(const vf *parts) {
#if defined(__AVX512F__)
    __m512 v = (__m512)parts[0];
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return (v4f)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
    __m256 half = (__m256)(parts[0] + parts[1]);
    return (v4f)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
#endif
}
INLINE float sum16(v16f v) {
    vf parts[PARTS];
    for (int i = 0; i < PARTS; i++) parts[i] = part_of(v, i);
    v4f c = fold_parts(parts);
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
    vf best = part_of(v, 0);
    for (int i = 1; i < PARTS; i++) best = max_part(best, part_of(v, i));
    float highest = best[0];
    for (int i = 1; i < LANES; i++) highest = best[i] > highest ? best[i] : highest;
    return highest;
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
INLINE vf round_part(vf x, vi *integer) {
    vf shifted = x + 12582912.0f;
    *integer = (vi)shifted - 0x4b400000;
    return shifted - 12582912.0f;
}
INLINE v16i round16(v16f x) {
    vf parts[PARTS];
    for (int i = 0; i < PARTS; i++) {
        vi integers;
        round_part(part_of(x, i), &integers);
        parts[i] = (vf)integers;
    }
    return (v16i)join(parts);
}

/* e^x to about 2 ulp; arguments are held within [-87, 88], so there is neither 0 nor infinity. */
INLINE vf exp_part(vf x) {
    x = max_part(x, (vf){0} - 87.0f);
    x = -max_part(-x, (vf){0} - 88.0f);
    vi n;
    vf whole = round_part(x * 1.44269504f, &n);
    vf r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    vf p = (vf){0} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (vf)((vi)p + (n << 23));
}
INLINE v16f exp16(v16f x) {
    vf parts[PARTS];
    for (int i = 0; i < PARTS; i++) parts[i] = exp_part(part_of(x, i));
    return join(parts);
}
INLINE v16f silu16(v16f x) {
    vf parts[PARTS];
    for (int i = 0; i < PARTS; i++) {
        vf part = part_of(x, i);
        parts[i] = part / (1.0f + exp_part(-part));
    }
    return join(parts);
}

#endif
