// Merge of two partial attentions over disjoint keys.
#pragma once

#include "device.cuh"

namespace leankv::cuda {

struct StatesShape {
    static constexpr int threads = 256;
};

struct StatesArgs {
    const float *out_a, *lse_a, *out_b, *lse_b;  // [rows, dim], [rows]
    float *out, *lse;
    long long rows;
    int dim;
};

// Grid: as many blocks as cover rows * dim.
template <class S>
__device__ __forceinline__ void merge_states(const StatesArgs& a) {
    const long long at = (long long)blockIdx.x * S::threads + threadIdx.x, row = at / a.dim;
    if (row >= a.rows) return;
    const float x = ldg(a.lse_a + row), y = ldg(a.lse_b + row), peak = fmaxf(x, y);
    const float base = peak == -INFINITY ? 0.0f : peak;
    const float up = ex2((x - base) * 1.44269504f), down = ex2((y - base) * 1.44269504f), total = up + down;
    const float safe = total > 0 ? total : 1.0f;
    a.out[at] = fma_(ldg(a.out_a + at), up / safe, ldg(a.out_b + at) * (down / safe));
    if (at % a.dim == 0) a.lse[row] = total > 0 ? fma_(lg2(safe), 0.69314718f, base) : peak;
}

}  // namespace leankv::cuda

#ifdef LEANKV_KERNEL
using S = leankv::cuda::StatesShape;
LEANKV_KERNEL(merge_states, StatesArgs, S::threads, 1, 0)
#endif
