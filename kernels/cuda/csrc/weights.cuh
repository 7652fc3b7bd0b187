// Softmax weights of a page as bytes: rounded to 16 bits over the page's largest weight times value scale.
#pragma once

#include "keys.cuh"

namespace leankv::cuda {

template <class S>
struct Weights {
    static constexpr int N = S::row_tiles, T = S::steps;
    uint32_t bytes[N][S::halves][4][2];        // of token j of every quad, as columns of value products
    float peak[N], sum[N], zeros[N], step[N];  // of the page: largest score, sums of weights, worth of a weight's step

    // From scores to weights. `centre` is the page's score of what its keys share; `row_step` turns integers to scores.
    __device__ __forceinline__ void of_scores(float (&x)[N][T][4], float (&centre)[N], const float (&row_step)[N],
                                              const Keys<S>& keys, const Pass& p) {
        float top[N], bound[N];
        if (keys.a.cap != 0.0f) cap(x, centre, row_step, keys.a.cap);
#pragma unroll
        for (int n = 0; n < N; n++) {
            top[n] = -INFINITY;
#pragma unroll
            for (int i = 0; i < T; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) top[n] = fmaxf(top[n], x[n][i][e]);
            for (int m = 4; m < 32; m *= 2) top[n] = fmaxf(top[n], shfl_xor(top[n], m));
            top[n] *= row_step[n];
            peak[n] = fma_(centre[n], row_step[n], top[n]);
            sum[n] = zeros[n] = bound[n] = 0;
        }
#pragma unroll
        for (int i = 0; i < T; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const uint2 h = keys.scales(i, e);
                const int token = 32 * i + 4 * quad_of(i, keys.g) + e;
                const bool fine = !S::refined || token < p.fine_values;
                const float scale = half_float(h.y & 0xFFFF);
                const float zero =
                    fma_(scale, fine ? keys.a.value_centre_high : keys.a.value_centre_low, half_float(h.y >> 16));
#pragma unroll
                for (int n = 0; n < N; n++) {
                    const float weight = ex2(fma_(x[n][i][e], row_step[n], -top[n]));
                    sum[n] += weight;
                    zeros[n] = fma_(weight, zero, zeros[n]);
                    x[n][i][e] = weight * scale;
                    bound[n] = fmaxf(bound[n], x[n][i][e]);
                }
            }
#pragma unroll
        for (int n = 0; n < N; n++) {
            for (int m = 4; m < 32; m *= 2) bound[n] = fmaxf(bound[n], shfl_xor(bound[n], m));
            const bool some = bound[n] > 1e-30f;
            step[n] = some ? bound[n] * (1.0f / 65534.0f) : 0.0f;
            const float inverse = some ? 65534.0f * rcp(bound[n]) : 0.0f;
#pragma unroll
            for (int h = 0; h < S::halves; h++) exchange(bytes[n][h], x[n], 4 * h, inverse, keys);
        }
    }

  private:
    // Caps scores, cap * tanh(score / cap), to 4e-7 of the cap. They then hold the centre's share, and stay in steps of
    // their rows.
    static __device__ __forceinline__ void cap(float (&x)[N][T][4], float (&centre)[N], const float (&row_step)[N],
                                               float most) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float twice = 2.88539008f * rcp(most) * row_step[n], in_steps = most * rcp(row_step[n]);
            const float before = centre[n] * twice;
            centre[n] = 0;
#pragma unroll
            for (int i = 0; i < T; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float share = rcp(ex2(fma_(x[n][i][e], twice, before)) + 1.0f);
                    x[n][i][e] = x[n][i][e] == -INFINITY ? x[n][i][e] : fma_(-2.0f * in_steps, share, in_steps);
                }
        }
    }

    // A lane holds row t of set g; a fragment wants sets t and t + 4 of column g, a row's upper or lower bytes.
    static __device__ __forceinline__ void exchange(uint32_t (&out)[4][2], const float (&x)[T][4], int first,
                                                    float inverse, const Keys<S>& keys) {
        const int g = keys.g, t = keys.t;
        const bool lower = g & 1;
        const int near_lane = t * 4 + (g >> 1), far_lane = near_lane + 16;
        const int from1 = lower ? far_lane : near_lane, from2 = lower ? near_lane : far_lane;
        const uint32_t pick1 = g < 4 ? 0x7531 : 0x6420, pick2 = g < 4 ? 0x6420 : 0x7531;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            uint32_t w[4];
#pragma unroll
            for (int i = 0; i < 4; i++)  // the integer in its mantissa
                w[i] = i < T ? float_bits(fma_(x[i < T ? first + i : 0][e], inverse, 8388608.0f)) : 0;
            const uint32_t low = prmt(w[0], w[1], 0x5410), high = prmt(w[2], w[3], 0x5410);
            const uint32_t r1 = shfl(prmt(low, high, pick1), from1), r2 = shfl(prmt(low, high, pick2), from2);
            out[e][0] = lower ? r2 : r1;
            out[e][1] = lower ? r1 : r2;
        }
    }
};

}  // namespace leankv::cuda
