// Vectors of the instruction set this file is compiled for, and the few operations the language does not have.
// W lanes of 32 bits; code that is written against W works at every width.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

#ifndef LEANKV_NS
#define LEANKV_NS portable  // where an editor opens one part alone; isa_*.cpp say which they are
#endif

#define LEANKV_INLINE static inline __attribute__((always_inline))
#define LEANKV_MEMBER inline __attribute__((always_inline))

namespace leankv::LEANKV_NS {
namespace {

#if defined(__AVX512VNNI__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef double vd __attribute__((vector_size(4 * W)));
typedef int64_t vl __attribute__((vector_size(4 * W)));
typedef float vf_any __attribute__((vector_size(4 * W), aligned(1), may_alias));
typedef double vd_any __attribute__((vector_size(4 * W), aligned(1), may_alias));
typedef int32_t vi_any __attribute__((vector_size(4 * W), aligned(1), may_alias));

LEANKV_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
LEANKV_INLINE vi loadi(const void* p) { return *static_cast<const vi_any*>(p); }
LEANKV_INLINE void store(float* p, vf x) { *reinterpret_cast<vf_any*>(p) = x; }
LEANKV_INLINE vd load(const double* p) { return *reinterpret_cast<const vd_any*>(p); }
LEANKV_INLINE void store(double* p, vd x) { *reinterpret_cast<vd_any*>(p) = x; }
LEANKV_INLINE void storei(void* p, vi x) { *static_cast<vi_any*>(p) = x; }
LEANKV_INLINE vf splat(float x) { return x - vf{}; }
LEANKV_INLINE vi splati(int32_t x) { return x - vi{}; }
LEANKV_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
LEANKV_INLINE vf as_float(vi x) { return (vf)x; }
LEANKV_INLINE vi as_int(vf x) { return (vi)x; }
LEANKV_INLINE vi shift_right(vi x, int n) { return (vi)((vu)x >> n); }

// Bits of x where the mask has ones, bits of y elsewhere.
LEANKV_INLINE vi select(int32_t mask, vi x, vi y) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_ternarylogic_epi32(_mm512_set1_epi32(mask), (__m512i)x, (__m512i)y, 0xca);
#else
    return (x & splati(mask)) | (y & splati(~mask));
#endif
}

LEANKV_INLINE vi lane_ids() {
    vi ids;
    for (int i = 0; i < W; i++) ids[i] = i;
    return ids;
}

#if defined(__AVX512VNNI__)
LEANKV_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
LEANKV_INLINE vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
LEANKV_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
LEANKV_INLINE vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
#else
LEANKV_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
LEANKV_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
#endif

// Nearest integer, ties to even, for |x| < 2^22.
LEANKV_INLINE vi round_to_int(vf x) {
    const vf magic = splat(12582912.0f);
    return as_int(x + magic) - as_int(magic);
}

// Sums and maxima over lanes by halves, always in the same order.
LEANKV_INLINE float sum_lanes(vf x) {
    const vi lane = lane_ids();
    for (int n = W / 2; n; n /= 2) x = x + __builtin_shuffle(x, lane ^ n);
    return x[0];
}

LEANKV_INLINE int32_t sum_lanes(vi x) {
    const vi lane = lane_ids();
    for (int n = W / 2; n; n /= 2) x = x + __builtin_shuffle(x, lane ^ n);
    return x[0];
}

LEANKV_INLINE float max_lanes(vf x) {
    const vi lane = lane_ids();
    for (int n = W / 2; n; n /= 2) x = max(x, __builtin_shuffle(x, lane ^ n));
    return x[0];
}

LEANKV_INLINE bool all_zero(vi x) {
#if defined(__AVX512VNNI__)
    return !_mm512_test_epi32_mask((__m512i)x, (__m512i)x);
#else
    const vi lane = lane_ids();
    for (int n = W / 2; n; n /= 2) x |= __builtin_shuffle(x, lane ^ n);
    return !x[0];
#endif
}

// 2^x for x <= 0 (and small positive x); -inf gives 0. Relative error below 2e-7; 2^0 is 1.
LEANKV_INLINE vf exp2(vf x) {
#if defined(__AVX512VNNI__)
    const vf clipped = max(x, splat(-200.0f));
    const vf whole = (vf)_mm512_roundscale_ps((__m512)clipped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vf f = clipped - whole;  // -0.5 .. 0.5
#else
    const vf low = splat(-126.0f);
    const vf clipped = max(x, low);
    const vf magic = splat(12582912.0f);
    const vf whole = clipped + magic;
    const vf f = clipped - (whole - magic);
#endif
    vf p = splat(1.534580606e-4f);
    p = fma(p, f, splat(1.339993117e-3f));
    p = fma(p, f, splat(9.618488979e-3f));
    p = fma(p, f, splat(5.550328777e-2f));
    p = fma(p, f, splat(2.402264689e-1f));
    p = fma(p, f, splat(6.931472057e-1f));
    p = fma(p, f, splat(1.0f));
#if defined(__AVX512VNNI__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    const vi exponent = (as_int(whole) - as_int(magic)) << 23;
    return as_float((as_int(p) + exponent) & (x >= low));
#endif
}

// 2^x for x < 100, to 3e-6: for weights that are rounded next. Far below it gives next to nothing, at -inf too.
LEANKV_INLINE vf exp2_weight(vf x) {
    const vf clipped = max(x, splat(-126.0f)), whole = clipped + 12582912.0f;  // in the lowest bits
    const vf f = clipped - (whole - 12582912.0f);                              // -0.5 .. 0.5
    vf p = splat(9.57010221e-3f);
    p = fma(p, f, splat(5.59178628e-2f));
    p = fma(p, f, splat(2.40247443e-1f));
    p = fma(p, f, splat(6.93121791e-1f));
    p = fma(p, f, splat(9.99999285e-1f));
    return as_float((vi)((vu)as_int(p) + ((vu)as_int(whole) << 23)));
}

// floor(log2(x)) of a positive normal number; of 0 something below -100.
LEANKV_INLINE vf exponent(vf x) {
#if defined(__AVX512VNNI__)
    return (vf)_mm512_getexp_ps((__m512)x);
#else
    return to_float(shift_right(as_int(x), 23) - 127);
#endif
}

LEANKV_INLINE float exp2_one(float x) { return exp2(splat(x))[0]; }

// W halves at p to floats.
LEANKV_INLINE vf half_to_float(const uint16_t* p) {
#if defined(__AVX512VNNI__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    vf out;
    for (int i = 0; i < W; i++) {
        uint16_t h;
        std::memcpy(&h, reinterpret_cast<const char*>(p) + 2 * i, 2);
        const uint32_t magnitude = uint32_t(h & 0x7fff) << 13, sign = uint32_t(h & 0x8000) << 16;
        float f;
        std::memcpy(&f, &magnitude, 4);
        f *= 0x1p112f;
        uint32_t bits;
        std::memcpy(&bits, &f, 4);
        if ((h & 0x7c00) == 0x7c00) bits |= 0x7f800000;  // infinite, or no number
        bits |= sign;
        std::memcpy(&f, &bits, 4);
        out[i] = f;
    }
    return out;
#endif
}

LEANKV_INLINE vf load_as_float(const void* base, size_t index, int dtype) {
    if (dtype == kFloat32) return load(static_cast<const float*>(base) + index);
    const uint16_t* p = static_cast<const uint16_t*>(base) + index;
    if (dtype == kFloat16) return half_to_float(p);
#if defined(__AVX512VNNI__)
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return (vf)_mm512_slli_epi32(wide, 16);
#elif defined(__AVX2__)
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return (vf)_mm256_slli_epi32(wide, 16);
#else
    vi wide;
    for (int i = 0; i < W; i++) wide[i] = int32_t(uint32_t(p[i]) << 16);
    return as_float(wide);
#endif
}

// Walsh-Hadamard transform of n numbers (a power of two, at least 16), not normalized, in place: the butterflies of
// reference/codec.py in their order, so in float64 the same bits. V holds numbers, L whole numbers of their size.
template <class V, class L, class T>
LEANKV_INLINE void butterflies(T* x, int n) {
    constexpr int lanes = sizeof(V) / sizeof(T);
    L lane;
    for (int i = 0; i < lanes; i++) lane[i] = i;
    for (int i = 0; i < n; i += lanes) {
        V v = load(x + i);
        for (int s = 1; s < lanes; s *= 2) {
            const V partner = __builtin_shuffle(v, lane ^ s);
            v = ((lane & s) != 0) ? partner - v : v + partner;
        }
        store(x + i, v);
    }
    for (int s = lanes; s < n; s *= 2)
        for (int i = 0; i < n; i += 2 * s)
            for (int j = i; j < i + s; j += lanes) {
                const V low = load(x + j), high = load(x + j + s);
                store(x + j, low + high);
                store(x + j + s, low - high);
            }
}

LEANKV_INLINE void hadamard(float* x, int n) { butterflies<vf, vi>(x, n); }
LEANKV_INLINE void hadamard(double* x, int n) { butterflies<vd, vl>(x, n); }

// Rotates a row in place, block by block (reference/codec.py), but for a factor, which it returns.
template <class T>
LEANKV_INLINE T rotate(T* x, int head_dim) {
    const int block = head_dim & -head_dim;
    for (int c = 0; c < head_dim; c += block) hadamard(x + c, block);
    return T(1) / T(__builtin_sqrt(double(block)));
}

// Calls f<N>(at) for all from `first` to `last`, TILE at a time, then for the rest together.
template <int TILE, class I, class F>
LEANKV_INLINE void by_tiles(I first, I last, F f) {
    for (; first + TILE <= last; first += TILE) f.template operator()<TILE>(first);
    if constexpr (TILE > 1)
        if (first < last) by_tiles<TILE - 1>(first, last, f);
}

// Memory of a thread's own for what one task needs, kept from task to task.
template <class T>
T* thread_scratch() {
    static thread_local T* scratch = nullptr;
    if (!scratch) scratch = static_cast<T*>(aligned_alloc(64, (sizeof(T) + 63) / 64 * 64));
    return scratch;
}

}  // namespace
}  // namespace leankv::LEANKV_NS
