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

// The rows of a block: queries by their heads of one group.
template <class S>
struct BlockRows {
    const int* queries;  // of the work list, two numbers each
    int heads, head, count;

    __device__ __forceinline__ int query(int r) const { return ldg(queries + 2 * (r / S::group)); }

    // In the model's order.
    __device__ __forceinline__ long long operator()(int r) const {
        return ((long long)query(r) * heads + head) * S::group + r % S::group;
    }

    // Where the state of one split goes.
    __device__ __forceinline__ long long part(int r, int split) const {
        return ((long long)(ldg(queries + 2 * (r / S::group) + 1) + split) * heads + head) * S::group + r % S::group;
    }
};

// Of rows that have nothing to read.
template <class S>
__device__ __forceinline__ void write_nothing(const AttendArgs& a, const BlockRows<S>& rows) {
    for (int at = threadIdx.x; at < rows.count * S::value_dim; at += 32 * S::warps) {
        const long long row = rows(at / S::value_dim);
        a.out[row * S::value_dim + at % S::value_dim] = 0;
        if (at % S::value_dim == 0) a.lse[row] = -INFINITY;
    }
}

template <class S>
struct Finish {
    static constexpr int row_bytes = (S::value_dim + 2) * 4;
    const AttendArgs& a;
    const BlockRows<S>& rows;
    char* const shared;  // a warp's region each
    char* const sums;    // 8 bytes a row: peak and sum of what is merged, thrice, as `fold` wants it
    char* const flags;   // 4 bytes a query
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

    // Of a block that reads several splits: one more of them, the i-th, in order. What is merged so far is kept where
    // the output goes. Each thread reads what it has written itself, but for sums, of which there are two in turn.
    __device__ __forceinline__ void fold(int i) const {
        char *from = folded(i), *to_sums = folded(i + 1);
        each([&](int r, int channel, char* to) {
            float* out = a.out + rows(r) * S::value_dim + channel;
            Merged m;
            if (i) m = {lds<float>(from + 8 * r), lds<float>(from + 8 * r + 4), *out};
            m.add(lds<float>(sums + 8 * r), lds<float>(sums + 8 * r + 4), lds<float>(to));
            sts<float>(to, *out = m.value);
            if (channel) return;
            sts<float>(to_sums + 8 * r, m.top);
            sts<float>(to_sums + 8 * r + 4, m.sum);
        });
    }

    // Of all that a query reads.
    __device__ __forceinline__ int splits_of(int query) const {
        const int before = (int)ldg(a.tiles + 5 * ldg(a.token_tile + query) + 3);
        return before > S::split_pages ? (before + S::split_pages - 1) / S::split_pages : 1;
    }

    // All that `fold` has merged, of so many splits.
    __device__ __forceinline__ void write_folded(int splits) const { write(folded(splits), false); }

    // The block's share of rows of several splits goes to memory; which of its queries, if any, it was the last of.
    __device__ __forceinline__ bool leave(int split) const {
        each([&](int r, int channel, char* to) {
            const long long at = rows.part(r, split);
            a.part[at * S::value_dim + channel] = lds<float>(to);
            if (channel == 0) {
                a.state[2 * at] = lds<float>(sums + 8 * r);
                a.state[2 * at + 1] = lds<float>(sums + 8 * r + 4);
            }
        });
        fence();
        __syncthreads();
        const int queries = rows.count / S::group;
        if ((int)threadIdx.x < queries) {
            const int query = rows.query(threadIdx.x * S::group);
            int* arrivals = a.arrivals + (long long)query * rows.heads + rows.head;
            const bool last = atomic_add(arrivals, 1) == splits_of(query) - 1;
            if (last) *arrivals = 0;
            sts<int>(flags + 4 * threadIdx.x, last);
        }
        __syncthreads();
        bool any = false;
        for (int i = 0; i < queries; i++) any |= lds<int>(flags + 4 * i) != 0;
        return any;
    }

    // All splits of rows that the block was the last of, in order.
    __device__ __forceinline__ void merge_splits() const {
        fence();
        each([&](int r, int channel, char* to) {
            if (!lds<int>(flags + 4 * (r / S::group))) return;
            const int splits = splits_of(rows.query(r));
            Merged m;
            for (int s = 0; s < splits; s++) {
                const long long at = rows.part(r, s);
                m.add(load_shared_by_blocks(a.state + 2 * at), load_shared_by_blocks(a.state + 2 * at + 1),
                      load_shared_by_blocks(a.part + at * S::value_dim + channel));
            }
            put(r, channel, to, m);
        });
        write(sums, true);
    }

    // Of all rows.
    __device__ __forceinline__ void write() const { write(sums, false); }

  private:
    // Peaks and sums of what the first so many splits have come to.
    __device__ __forceinline__ char* folded(int splits) const { return sums + (1 + (splits & 1)) * 8 * S::rows; }

    // Normalized, rotated back, and written: all rows, or those that the block was the last of.
    __device__ __forceinline__ void write(const char* from, bool flagged) const {
        for (int r = warp; r < rows.count; r += S::warps) {
            if (flagged && !lds<int>(flags + 4 * (r / S::group))) continue;
            const float top = lds<float>(from + 8 * r), sum = lds<float>(from + 8 * r + 4);
            const float factor = sum == 0.0f ? 0.0f : a.back / sum;
            float x[S::value_steps];
#pragma unroll
            for (int k = 0; k < S::value_steps; k++) {
                const int channel = lane + 32 * k;
                const bool inside = S::value_aligned || channel < S::value_dim;
                x[k] = inside ? lds<float>(shared + r * row_bytes + 8 + 4 * channel) : 0.0f;
            }
            rotate_row<S::value_steps>(x, a.value_rotation_block, lane);
#pragma unroll
            for (int k = 0; k < S::value_steps; k++) {
                const int channel = lane + 32 * k;
                if (S::value_aligned || channel < S::value_dim) a.out[rows(r) * S::value_dim + channel] = x[k] * factor;
            }
            if (lane == 0) a.lse[rows(r)] = sum == 0.0f ? -INFINITY : (top + lg2(sum)) * 0.69314718f;
        }
    }

    // One thread for one channel of a row: what it writes nobody else has read but itself.
    template <class F>
    __device__ __forceinline__ void each(F f) const {
        for (int at = threadIdx.x; at < rows.count * S::value_dim; at += 32 * S::warps) {
            const int r = at / S::value_dim, channel = at % S::value_dim;
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
