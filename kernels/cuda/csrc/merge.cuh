// From the states of a block's warps to outputs: merged in order, over splits by the last block of a row, in the same
// launch.
#pragma once

#include "values.cuh"

namespace leankv::cuda {

// One channel of a row: what has been merged so far.
struct Merged {
    float top = -INFINITY, sum = 0, value = 0;

    __device__ __forceinline__ void add(float peak, float other_sum, float other_value) {
        const float higher = fmaxf(top, peak), base = higher == -INFINITY ? 0.0f : higher;
        const float down = ex2(top - base), up = ex2(peak - base);
        sum = fma_(sum, down, other_sum * up);
        value = fma_(value, down, other_value * up);
        top = higher;
    }
};

// The rows of a block in the model's order: a tile's queries by their heads of one group.
template <class S>
struct BlockRows {
    long long first_query;
    int heads, head, count;

    __device__ __forceinline__ long long operator()(int r) const {
        return ((first_query + r / S::group) * heads + head) * S::group + r % S::group;
    }
};

template <class S>
struct Finish {
    static constexpr int row_bytes = (S::dim + 2) * 4;
    const AttendArgs& a;
    const BlockRows<S>& rows;
    char* const shared;  // a warp's region each
    char* const sums;    // 8 bytes a row: peak and sum of what is merged; where the steps of the queries were
    char* const flag;    // 4 bytes
    const int warp, lane;

    // The states of the four warps become one row each where the first warp's were.
    __device__ __forceinline__ void merge_warps(State<S>& state) const {
        const int g = lane >> 2, t = lane & 3;
        char* mine = shared + warp * S::warp_bytes;
#pragma unroll
        for (int n = 0; n < State<S>::N; n++) {
            for (int m = 4; m < 32; m *= 2) {
                state.sum[n] += shfl_xor(state.sum[n], m);
                state.zeros[n] += shfl_xor(state.zeros[n], m);
            }
            char* row = mine + (4 * n + t) * row_bytes;
            if (g == 0) {
                sts<float>(row, state.peak[n]);
                sts<float>(row + 4, state.sum[n]);
            }
#pragma unroll
            for (int c = 0; c < State<S>::C; c++) {
                sts<float>(row + 8 + 4 * (16 * c + 2 * g), state.out[n][c][0] + state.zeros[n]);
                sts<float>(row + 12 + 4 * (16 * c + 2 * g), state.out[n][c][1] + state.zeros[n]);
            }
        }
        __syncthreads();
        each([&](int r, int channel, char* to) {
            Merged m;
#pragma unroll
            for (int w = 0; w < S::warps; w++) {
                const char* row = shared + w * S::warp_bytes + r * row_bytes;
                m.add(lds<float>(row), lds<float>(row + 4), lds<float>(row + 8 + 4 * channel));
            }
            put(r, channel, to, m);
        });
    }

    // The block's share of a row of several splits goes to memory; whether it was the last.
    __device__ __forceinline__ bool leave(int split, int live) const {
        each([&](int r, int channel, char* to) {
            const long long at = rows(r) * a.splits + split;
            a.part[at * S::dim + channel] = lds<float>(to);
            if (channel == 0) {
                a.state[2 * at] = lds<float>(sums + 8 * r);
                a.state[2 * at + 1] = lds<float>(sums + 8 * r + 4);
            }
        });
        fence();
        __syncthreads();
        if (threadIdx.x == 0) {
            int* arrivals = a.arrivals + rows.first_query * rows.heads + rows.head;
            const bool last = atomic_add(arrivals, 1) == live - 1;
            if (last) *arrivals = 0;
            sts<int>(flag, last);
        }
        __syncthreads();
        return lds<int>(flag);
    }

    // All splits of the block's rows, in order.
    __device__ __forceinline__ void merge_splits(int live) const {
        fence();
        each([&](int r, int channel, char* to) {
            const long long at = rows(r) * a.splits;
            Merged m;
            for (int s = 0; s < live; s++)
                m.add(load_shared_by_blocks(a.state + 2 * (at + s)), load_shared_by_blocks(a.state + 2 * (at + s) + 1),
                      load_shared_by_blocks(a.part + (at + s) * S::dim + channel));
            put(r, channel, to, m);
        });
    }

    // Normalized, rotated back, and written.
    __device__ __forceinline__ void write() const {
        for (int r = warp; r < rows.count; r += S::warps) {
            const float top = lds<float>(sums + 8 * r), sum = lds<float>(sums + 8 * r + 4);
            const float factor = sum > 0 ? a.back / sum : 0.0f;
            float x[S::key_steps];
#pragma unroll
            for (int k = 0; k < S::key_steps; k++) {
                const int channel = lane + 32 * k;
                const bool inside = S::aligned || channel < S::dim;
                x[k] = inside ? lds<float>(shared + r * row_bytes + 8 + 4 * channel) : 0.0f;
            }
            rotate_row<S>(x, a.rotation_block, lane);
#pragma unroll
            for (int k = 0; k < S::key_steps; k++) {
                const int channel = lane + 32 * k;
                if (S::aligned || channel < S::dim) a.out[rows(r) * S::dim + channel] = x[k] * factor;
            }
            if (lane == 0) a.lse[rows(r)] = sum > 0 ? (top + lg2(sum)) * 0.69314718f : -INFINITY;
        }
    }

    // Of rows that have nothing to read.
    __device__ __forceinline__ void write_nothing() const {
        for (int at = threadIdx.x; at < rows.count * S::dim; at += 32 * S::warps) {
            const long long row = rows(at / S::dim);
            a.out[row * S::dim + at % S::dim] = 0;
            if (at % S::dim == 0) a.lse[row] = -INFINITY;
        }
    }

  private:
    // One thread for one channel of a row: what it writes nobody else has read but itself.
    template <class F>
    __device__ __forceinline__ void each(F f) const {
        for (int at = threadIdx.x; at < rows.count * S::dim; at += 32 * S::warps) {
            const int r = at / S::dim, channel = at % S::dim;
            f(r, channel, shared + r * row_bytes + 8 + 4 * channel);
        }
        __syncthreads();
    }

    __device__ __forceinline__ void put(int r, int channel, char* to, const Merged& m) const {
        sts<float>(to, m.value);
        if (channel) return;
        sts<float>(sums + 8 * r, m.top);
        sts<float>(sums + 8 * r + 4, m.sum);
    }
};

}  // namespace leankv::cuda
