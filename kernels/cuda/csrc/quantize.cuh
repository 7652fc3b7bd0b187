// A row of a warp to 8-bit codes: rotated and quantized in float64, bit for bit as the reference does
// (kernels/reference/codec.py). Channel lane + 32 k is in x[k].
#pragma once

#include "numbers.cuh"

namespace leankv::cuda {

constexpr double kHalfMax = 65504.0;

__device__ __forceinline__ double within_halves(double x) {
    return x > kHalfMax ? kHalfMax : x < -kHalfMax ? -kHalfMax : x;
}

// The largest half that is at most x, as bits; |x| <= 65504.
__device__ __forceinline__ uint32_t half_floor(double x) {
    if (x == 0.0) return double_bits(x) >> 63 ? 0x8000 : 0;
    const bool negative = x < 0.0;
    const double magnitude = negative ? -x : x;
    uint32_t bits;
    bool exact;
    if (magnitude < 6.103515625e-05) {  // 2^-14
        const double steps = magnitude * 16777216.0;
        bits = (uint32_t)steps, exact = (double)bits == steps;
    } else {
        const uint64_t u = double_bits(magnitude);
        bits = (uint32_t)((((u >> 52) - 1008) << 10) | ((u >> 42) & 0x3ff));
        exact = (u & (((uint64_t)1 << 42) - 1)) == 0;
    }
    return negative ? (bits + (exact ? 0 : 1)) | 0x8000 : bits;
}

__device__ __forceinline__ double half_value(uint32_t h) { return (double)half_float((uint16_t)h); }

template <int K>
__device__ __forceinline__ void rotate_exactly(double (&x)[K], int block, double norm, int lane) {
#pragma unroll
    for (int span = 1; span < 32; span *= 2) {
        if (span >= block) break;
#pragma unroll
        for (int k = 0; k < K; k++) {
            const double other = shfl_xor(x[k], span);
            x[k] = lane & span ? less(other, x[k]) : add(x[k], other);
        }
    }
#pragma unroll
    for (int span = 1; span < K; span *= 2) {
        if (32 * span >= block) break;
#pragma unroll
        for (int k = 0; k < K; k++)
            if (!(k & span) && k + span < K) {
                const double low = x[k], high = x[k + span];
                x[k] = add(low, high);
                x[k + span] = less(low, high);
            }
    }
    if (block > 1)
#pragma unroll
        for (int k = 0; k < K; k++) x[k] = times(x[k], norm);
}

// Codes of a rotated row, and its scale and zero as halves.
template <int DIM, int K>
__device__ __forceinline__ uint2 quantize(double (&x)[K], uint32_t (&codes)[K], int lane) {
    double low = kHalfMax, high = -kHalfMax;
#pragma unroll
    for (int k = 0; k < K; k++) {
        x[k] = add(within_halves(x[k]), 0.0);  // no negative zeros: one value, one code
        if (DIM % 32 && lane + 32 * k >= DIM) continue;
        low = x[k] < low ? x[k] : low;
        high = x[k] > high ? x[k] : high;
    }
    for (int m = 1; m < 32; m *= 2) {
        const double lower = shfl_xor(low, m), higher = shfl_xor(high, m);
        low = lower < low ? lower : low;
        high = higher > high ? higher : high;
    }
    const uint32_t zero = half_floor(low);
    const double from = half_value(zero), wanted = over(less(high, from), 255.0);
    const uint32_t scale = wanted == 0.0 ? 0 : half_floor(-wanted) ^ 0x8000;
    const double given = half_value(scale), step = given > 0.0 ? given : 1.0;
#pragma unroll
    for (int k = 0; k < K; k++) codes[k] = (uint32_t)rounded(over(less(x[k], from), step)) & 255;
    return uint2{scale, zero};
}

}  // namespace leankv::cuda
