// What begins and ends a layer: tokens to their open pages; merge of two partial attentions over disjoint keys.
#pragma once

#include "numbers.cuh"

namespace leankv::cuda {

struct StatesShape {
    static constexpr int threads = 256;
};

struct StatesArgs {
    const float *out_a, *lse_a, *out_b, *lse_b;  // [rows, dim], [rows]
    void* out;
    float* lse;
    const float* sinks;  // [heads], or null
    long long rows;
    int dim, heads, out_dtype;
};

struct WriteArgs {
    const char *key, *value;      // [T] tokens, `token` bytes from one to the next
    char *raw_key, *raw_value;    // [R, page] tokens
    const long long* at;          // [U]: which of the R
    const long long *tile, *pos;  // [T]
    long long key_token, value_token, tokens;
    int key_bytes, value_bytes, page;  // of a token, multiples of 16; tokens of a page
};

// Grid: as many blocks as cover all tokens, 16 bytes of a key or a value a thread.
template <class S>
__device__ __forceinline__ void write_tokens(const WriteArgs& a) {
    const int parts = (a.key_bytes + a.value_bytes) / 16;
    const long long i = (long long)blockIdx.x * S::threads + threadIdx.x, token = i / parts;
    if (token >= a.tokens) return;
    const int at = (int)(i % parts) * 16, place = at < a.key_bytes ? at : at - a.key_bytes;
    const long long to = ldg(a.at + ldg(a.tile + token)) * a.page + ldg(a.pos + token);
    const char* from = at < a.key_bytes ? a.key + token * a.key_token : a.value + token * a.value_token;
    char* raw = at < a.key_bytes ? a.raw_key + to * a.key_bytes : a.raw_value + to * a.value_bytes;
    *(uint4*)(raw + place) = ldg((const uint4*)(from + place));
}

// Grid: as many blocks as cover rows * dim.
template <class S>
__device__ __forceinline__ void merge_states(const StatesArgs& a) {
    const long long at = (long long)blockIdx.x * S::threads + threadIdx.x, row = at / a.dim;
    if (row >= a.rows) return;
    const float x = ldg(a.lse_a + row), y = ldg(a.lse_b + row);
    const float sink = a.sinks ? ldg(a.sinks + row % a.heads) : -INFINITY, peak = fmaxf(fmaxf(x, y), sink);
    const float base = peak == -INFINITY ? 0.0f : peak;
    const float up = ex2((x - base) * 1.44269504f), down = ex2((y - base) * 1.44269504f);
    const float total = up + down + ex2((sink - base) * 1.44269504f);
    const float safe = total > 0 ? total : 1.0f;
    const float out = fma_(ldg(a.out_a + at), up / safe, ldg(a.out_b + at) * (down / safe));
    if (a.out_dtype == kFloat32)
        ((float*)a.out)[at] = out;
    else
        ((uint16_t*)a.out)[at] = a.out_dtype == kBfloat16 ? nearest_bfloat(out) : nearest_half(out);
    if (at % a.dim == 0) a.lse[row] = total == 0.0f ? peak : fma_(lg2(total), 0.69314718f, base);
}

}  // namespace leankv::cuda

#ifdef LEANKV_KERNEL
using S = leankv::cuda::StatesShape;
LEANKV_KERNEL(write_tokens, WriteArgs, S::threads, 1, 0)
LEANKV_KERNEL(merge_states, StatesArgs, S::threads, 1, 0)
#endif
