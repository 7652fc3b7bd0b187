// Numbers of a model's dtype, and small reductions.
#pragma once

#include "device.cuh"

namespace leankv::cuda {

constexpr double kHalfMax = 65504.0;  // at which keys and values saturate

// Whether a number is neither infinite nor none.
__device__ __forceinline__ bool is_finite(float x) { return (float_bits(x) & 0x7F800000) != 0x7F800000; }

enum Dtype : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };  // DTYPES in attend.py

__device__ __forceinline__ float number_of(uint32_t bits, int dtype) {
    return dtype == kBfloat16 ? bits_float(bits << 16) : half_float((uint16_t)bits);
}

// Rounded to the nearest, to even; what is no number stays none.
__device__ __forceinline__ uint16_t nearest_bfloat(float x) {
    const uint32_t bits = float_bits(x);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FC0;
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

__device__ __forceinline__ float number_at(const void* p, long long at, int dtype) {
    if (dtype == kFloat32) return ((const float*)p)[at];
    return number_of(((const uint16_t*)p)[at], dtype);
}

// A score drawn into (-cap, cap): cap tanh(x / cap) to 4e-7 of the cap. What is no number stays none.
__device__ __forceinline__ float capped(float x, float cap) {
    const float e = ex2(x * (2.88539008f * rcp(cap)));  // e to the power of 2 x / cap
    return fma_(-2.0f * cap, rcp(e + 1.0f), cap);
}

// `N` neighbouring numbers, 4 or more, from an address at a multiple of 16 bytes or of their own length.
template <int N>
__device__ __forceinline__ void numbers_at(float (&x)[N], const void* p, long long at, int dtype) {
    if (dtype == kFloat32) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const uint4 w = ldg((const uint4*)((const float*)p + at + i));
            x[i] = bits_float(w.x), x[i + 1] = bits_float(w.y);
            x[i + 2] = bits_float(w.z), x[i + 3] = bits_float(w.w);
        }
        return;
    }
    const uint16_t* from = (const uint16_t*)p + at;
    uint32_t words[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i += 2) {
        const uint2 w = ldg((const uint2*)(from + 2 * i));
        words[i] = w.x, words[i + 1] = w.y;
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        x[2 * i] = number_of(words[i] & 0xFFFF, dtype);
        x[2 * i + 1] = number_of(words[i] >> 16, dtype);
    }
}

}  // namespace leankv::cuda
