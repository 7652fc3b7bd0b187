// Queries of a KV head's group as integers of 16 bits, rotated, in the order in which fragments of products want them.
#pragma once

#include "numbers.cuh"
#include "shape.cuh"

namespace leankv::cuda {

struct QueryMemory {
    char* bytes;     // upper and lower bytes, as fragments
    char* integers;  // int16 [rows, dim], padded rows
    char* steps;     // per row the float by which an integer stands for a score, and the sum of the integers
};

// Hadamard butterflies over one row, channel lane + 32 k in x[k]; unnormalized.
template <int K>
__device__ __forceinline__ void rotate_row(float (&x)[K], int block, int lane) {
#pragma unroll
    for (int span = 1; span < 32; span *= 2) {
        if (span >= block) break;
#pragma unroll
        for (int k = 0; k < K; k++) {
            const float other = shfl_xor(x[k], span);
            x[k] = lane & span ? other - x[k] : x[k] + other;
        }
    }
#pragma unroll
    for (int span = 1; span < K; span *= 2) {
        if (32 * span >= block) break;
#pragma unroll
        for (int k = 0; k < K; k++)
            if (!(k & span) && k + span < K) {
                const float low = x[k], high = x[k + span];
                x[k] = low + high;
                x[k + span] = low - high;
            }
    }
}

// Of a block's first rows, which are `rows_at(r)` in the model's order; the others are zeros.
template <class S, class F>
__device__ __forceinline__ void prepare_queries(const AttendArgs& a, F rows_at, int rows, const QueryMemory& to,
                                                int lane, int warp) {
    constexpr int K = S::key_steps;
    // Its upper byte, of a number less its signed lower byte, is below 128. 512 products with codes of 8 bits fit 32
    // bits with half of it.
    constexpr float largest = S::dim > 256 && S::key_planes > 1 ? 16256.0f : 32512.0f;
    for (int r = warp; r < S::rows; r += S::warps) {
        float x[K];
#pragma unroll
        for (int k = 0; k < K; k++) {
            const int channel = lane + 32 * k;
            const bool inside = r < rows && (S::aligned || channel < S::dim);
            x[k] = inside ? number_at(a.q, rows_at(r) * S::dim + channel, a.q_dtype) : 0.0f;
        }
        rotate_row<K>(x, a.rotation_block, lane);
        float top = 0, none = 0;
#pragma unroll
        for (int k = 0; k < K; k++) {
            x[k] *= a.factor;
            none = fma_(x[k], 0.0f, none);  // NaN, of which maxima and integers tell nothing
            top = fmaxf(top, fabsf(x[k]));
        }
        for (int m = 1; m < 32; m *= 2) top = fmaxf(top, shfl_xor(top, m));
        const float inverse = top > 1e-30f ? largest / top : 0.0f;
        const float step = top > 1e-30f ? top / largest : 1e-30f;  // not 0: it meets scores of -inf
        int sum = 0;
#pragma unroll
        for (int k = 0; k < K; k++) {
            const int channel = lane + 32 * k, c = channel % kKeyWord, n = round_int(x[k] * inverse);
            const int low = (int)(int8_t)(n & 255), high = (n - low) >> 8;
            sum += n;
            // Byte c / 2 of the fragment of word channel / 8, columns 2 r and 2 r + 1.
            const int fragment = (r / 4 * K + k) * 2 + (c & 1);
            char* byte = to.bytes + (fragment * 32 + r % 4 * 8 + (channel / kKeyWord & 3)) * 4 + c / 2;
            sts<char>(byte, (char)high);
            sts<char>(byte + 16, (char)low);
            if (S::aligned || channel < S::dim) sts<int16_t>(to.integers + r * S::query_row + 2 * channel, (int16_t)n);
        }
        for (int m = 1; m < 32; m *= 2) {
            sum += shfl_xor(sum, m);
            none += shfl_xor(none, m);
        }
        if (lane == 0) {
            sts<float>(to.steps + 8 * r, step + none);
            sts<float>(to.steps + 8 * r + 4, (float)sum);
        }
    }
}

}  // namespace leankv::cuda
