// From what was observed of full pages to the tier of each of their tokens (kernels/reference/tiers.py).
#pragma once

#include "numbers.cuh"
#include "record_format.h"

namespace leankv::cuda {

enum Score : int { kAttention = 0, kNone = 1, kPredictor = 2 };  // SCORES in tier_rule.py

struct TierArgs {
    const void *key, *value;      // [layers, rows, page, heads, dim], the same of value_dim
    const int* scores;            // [layers, rows, heads * group, page]
    const long long* at;          // [n]: which of the rows
    const long long* page_index;  // [n]
    const long long* weights;     // of a predictor: [layers, heads, features], in steps
    const double* uniform;        // [page]: column scores of uniform attention
    const double* alphas;         // [layers, n or 1, 3, heads]
    uint8_t* tiers;               // [layers, n, heads, page]
    double feature_steps, all_steps, least_attention, least_energy, largest, never;
    long long n, rows, keep_first;
    int heads, group, score, dtype, least, sinks, of_pages;
};

// The score, the same in all lanes; a feature is a whole number of steps, so that the order of their sum is free.
template <class S>
__device__ __forceinline__ double predicted_cost(const TierArgs& a, long long row, double attention,
                                                 const long long* weights, int lane) {
    constexpr int half = S::dim / 2;
    auto part = [&](double x, int feature) { return rounded(times(x, a.feature_steps)) * ldg(weights + feature); };
    long long total = 0;
    double of_value = 0.0, of_key = 0.0;
    for (int c = lane; c < S::value_dim; c += 32) {
        const double x = number_at(a.value, row * S::value_dim + c, a.dtype);
        total += part(x, c);
        of_value = add(of_value, times(x, x));
    }
    for (int c = lane; c < half; c += 32) {
        const double x = number_at(a.key, row * S::dim + c, a.dtype);
        const double y = number_at(a.key, row * S::dim + half + c, a.dtype);
        const double energy = add(times(x, x), times(y, y));
        total += part(natural_log(energy > a.least_energy ? energy : a.least_energy), S::value_dim + c);
        of_key = add(of_key, energy);
    }
    for (int m = 1; m < 32; m *= 2) {
        total += shfl_xor(total, m);
        of_value = add(of_value, shfl_xor(of_value, m));
        of_key = add(of_key, shfl_xor(of_key, m));
    }
    constexpr int rest = S::value_dim + half;
    total += part(natural_log(attention > a.least_attention ? attention : a.least_attention), rest);
    total += part(natural_log(of_value > a.least_energy ? of_value : a.least_energy), rest + 1);
    total += part(natural_log(of_key > a.least_energy ? of_key : a.least_energy), rest + 2);
    total += part(1.0, rest + 3);
    const double logarithm = over((double)total, a.all_steps);
    return natural_exp(logarithm < a.largest ? logarithm : a.largest);
}

// Grid: KV heads, pages, layers.
template <class S>
__device__ __forceinline__ void tier_pages(const TierArgs& a) {
    const int head = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const long long record = blockIdx.z * a.n + blockIdx.y;
    const long long raw = blockIdx.z * a.rows + ldg(a.at + blockIdx.y), index = ldg(a.page_index + blockIdx.y);
    const double* alphas = a.alphas + (a.of_pages ? record : (long long)blockIdx.z) * 3 * a.heads + head;
    const double high = ldg(alphas), mid = ldg(alphas + a.heads), low = ldg(alphas + 2 * a.heads);
    const int kept = index < a.keep_first && (high < a.never || mid < a.never || low < a.never) ? a.least : kPruned;
    const int* scores = a.scores + (raw * a.heads + head) * a.group * S::page;
    const long long* weights = a.weights + ((long long)blockIdx.z * a.heads + head) * (S::value_dim + S::dim / 2 + 4);
    for (int t = warp; t < S::page; t += S::warps) {
        double significance = 0.0;
        if (a.score != kNone) {
            const double uniform = ldg(a.uniform + t);
            for (int g = lane; g < a.group; g += 32) {
                const double relative = over((double)ldg(scores + g * S::page + t), uniform);
                significance = relative > significance ? relative : significance;
            }
            for (int m = 1; m < 32; m *= 2) {
                const double other = shfl_xor(significance, m);
                significance = other > significance ? other : significance;
            }
        }
        if (a.score == kPredictor) {
            const long long row = (raw * S::page + t) * a.heads + head;
            significance = predicted_cost<S>(a, row, significance, weights, lane);
        }
        int tier = significance > high ? kHigh : significance > mid ? kMid : significance >= low ? kLow : kPruned;
        if (tier <= kLow && tier < kept) tier = kept;
        if (index == 0 && t < a.sinks) tier = kHigh;
        if (lane == 0) a.tiers[(record * a.heads + head) * S::page + t] = (uint8_t)tier;
    }
}

}  // namespace leankv::cuda
