// How long the parts of a KV head's data are in a record, by its counts; kernels/layout/sizes.py and places.py.
#pragma once

#include "device.cuh"
#include "record_format.h"

namespace leankv::cuda {

__device__ __forceinline__ int aligned(int bytes) { return (bytes + (kAlign - 1)) & ~(kAlign - 1); }

// Tokens of each tier but the pruned.
struct Counts {
    int high, mid, low;

    static __device__ __forceinline__ Counts of(int word) {
        return {word & kCountMask, word >> kCountBits & kCountMask, (int)((unsigned)word >> 2 * kCountBits)};
    }
    __device__ __forceinline__ int far() const { return high + mid + low; }
};

// A KV head's runs: tokens of each, and the bytes of what comes before one in its section.
struct HeadSizes {
    int far, fine_keys, fine_values, pruned;
    int far_keys, far_values, base;  // of the base: where keys and values begin, and its length
    int fine_values_at, refine;      // of the refinement: where values begin, and its length
    int low_values, pruned_scales, pruned_keys, pruned_values, near;  // of the near part

    __device__ __forceinline__ HeadSizes(const RecordShape& s, const Counts& counts) {
        const int page = (int)s.page_size, dim = (int)s.head_dim, value_dim = (int)s.v_head_dim;
        const int key_base = (int)s.key_base_bits, key_refine = (int)s.key_refine_bits;
        const int value_base = (int)s.value_base_bits, value_refine = (int)s.value_refine_bits;
        auto keys = [&](int bits, int n) { return aligned(bits * n * dim / 8); };
        auto values = [&](int bits, int first, int stop) {
            const int quads = (stop + kValueQuad - 1) / kValueQuad - first / kValueQuad;
            return stop > first ? bits / kValuePlaneBits * quads * value_dim : 0;
        };
        far = counts.far();
        fine_keys = counts.high + counts.mid * (int)s.mid_keys_fine;
        fine_values = counts.high + counts.mid * (int)s.mid_values_fine;
        pruned = page - far;
        far_keys = aligned(kScaleBytes * far);
        far_values = far_keys + keys(key_base, far);
        base = far_values + values(value_base, 0, far);
        fine_values_at = keys(key_refine, fine_keys);
        refine = fine_values_at + values(value_refine, 0, fine_values);
        low_values = keys(key_refine, far - fine_keys);
        pruned_scales = low_values + values(value_refine, fine_values, far);
        pruned_keys = pruned_scales + aligned(kScaleBytes * pruned);
        pruned_values = pruned_keys + keys(key_base + key_refine, pruned);
        near = s.near ? pruned_values + values(value_base, 0, pruned) + values(value_refine, 0, pruned) : 0;
    }
};

// What a record of so many blocks holds at a level, as the store's running usage counts it (Usage in store.py); behind
// that are two counts that only grow.
constexpr int kUsageCounts = 12, kUsageSaturated = 12, kUsageNotFinite = 13;

struct RecordUsage {
    long long parts[kUsageCounts];

    __device__ __forceinline__ RecordUsage(const RecordShape& s, long long high, long long mid, long long low,
                                           int level, long long blocks) {
        const long long base = kScaleBytes + (s.key_base_bits * s.head_dim + s.value_base_bits * s.v_head_dim) / 8;
        const long long fine_key = s.key_refine_bits * s.head_dim / 8;
        const long long fine_value = s.value_refine_bits * s.v_head_dim / 8, refine = fine_key + fine_value;
        const long long fine_mid = fine_key * s.mid_keys_fine + fine_value * s.mid_values_fine;
        const long long pruned = s.heads * s.page_size - high - mid - low, far = level >= kLevelFar;
        parts[0] = s.header_bytes;
        parts[1] = high * (base + far * refine);
        parts[2] = mid * (base + far * fine_mid);
        parts[3] = low * base;
        parts[4] = level >= kLevelNear ? low * refine + mid * (refine - fine_mid) + pruned * (base + refine) : 0;
        parts[5] = blocks * s.block_bytes - parts[0] - parts[1] - parts[2] - parts[3] - parts[4];
        parts[6] = 1;
        parts[7] = blocks;
        parts[8] = high;
        parts[9] = mid;
        parts[10] = low;
        parts[11] = pruned;
    }
};

// A thread's share of a change of the usage.
struct UsageChange {
    long long parts[kUsageCounts];

    __device__ __forceinline__ UsageChange() {
#pragma unroll
        for (int i = 0; i < kUsageCounts; i++) parts[i] = 0;
    }
    __device__ __forceinline__ void add(const RecordUsage& u, int sign) {
#pragma unroll
        for (int i = 0; i < kUsageCounts; i++) parts[i] += sign * u.parts[i];
    }
    // All lanes' together, to memory.
    __device__ __forceinline__ void apply(long long* usage, int lane) {
#pragma unroll
        for (int i = 0; i < kUsageCounts; i++) {
            for (int m = 1; m < 32; m *= 2) parts[i] += shfl_xor(parts[i], m);
            if (lane == 0 && parts[i]) atomic_add(usage + i, parts[i]);
        }
    }
};

// Sums over the threads of a block before this one; `shared` has 4 bytes a warp, and is free afterwards.
template <int WARPS>
__device__ __forceinline__ int sum_before(int n, char* shared, int& all) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int upto = n;
    for (int m = 1; m < 32; m *= 2) {
        const int other = shfl(upto, lane >= m ? lane - m : lane);
        if (lane >= m) upto += other;
    }
    if (lane == 31) sts<int>(shared + 4 * warp, upto);
    __syncthreads();
    int before = 0;
    all = 0;
    for (int w = 0; w < WARPS; w++) {
        const int of_warp = lds<int>(shared + 4 * w);
        if (w < warp) before += of_warp;
        all += of_warp;
    }
    __syncthreads();
    return before + upto - n;
}

}  // namespace leankv::cuda
