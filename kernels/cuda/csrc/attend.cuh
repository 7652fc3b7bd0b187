// Decode attention over committed pages: one warp a page, records as they lie.
//
// A block of four warps reads one split of eight pages of one tile and KV head, warp w pages w and w + 4, by absolute
// number; so the order in which anything is added depends on positions alone. Keys and values of a page have a buffer
// each: the next page's keys are asked for when this one's weights are known, its values when this one's are
// multiplied.
#pragma once

#include "values.cuh"

namespace leankv::cuda {

// What a warp reads one after the other: far tokens of its two pages, and where a page is near its pruned ones.
template <class S>
struct Queue {
    const Records<S>& records;
    const AttendArgs& a;
    const int before, end;  // pages of the tile before its own, and the page behind this split
    int number, later_number;
    Record now, later;
    bool near, pruned, last;
    Pass pass;

    __device__ __forceinline__ void begin(const long long* pages, int first, int head) {
        number = first;
        later_number = first + S::warps;
        // Both headers are on their way before anything is waited for.
        const int block = first_block(pages, number), later_block = first_block(pages, later_number);
        now = records.open(block, head);
        later = records.open(later_block, head);
        records.lists(now);
        records.lists(later);
        last = false;
        turn_to_page();
    }

    // Whether there is another pass; if so it is the current one.
    __device__ __forceinline__ bool next() {
        if (S::near && near && !pruned) {
            pruned = true;
            pass = records.pruned_tokens(now);
            return true;
        }
        if (last) return false;
        last = true;
        now = later;
        number = later_number;
        turn_to_page();
        return true;
    }

  private:
    __device__ __forceinline__ int first_block(const long long* pages, int page) const {
        return page < end ? ldg(a.page_table + ldg(pages + page)) : 0;
    }

    __device__ __forceinline__ void turn_to_page() {
        pruned = false;
        // A page whose near part was cut, or that has no record, is read far.
        near = S::near && number >= before - a.near_pages && number < end && now.level >= kLevelNear;
        pass = records.far_tokens(now, near);
        if (number >= end) pass.tokens = 0;
    }
};

// States of the four warps, merged in order, and written for the merge over splits.
template <class S>
__device__ __forceinline__ void finish(const AttendArgs& a, State<S>& state, char* shared, long long first_row,
                                       int split, int warp, int g, int t) {
    constexpr int row_bytes = (S::dim + 2) * 4;
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
    for (int at = threadIdx.x; at < S::group * S::dim; at += 32 * S::warps) {
        const int r = at / S::dim, channel = at % S::dim;
        float top = -INFINITY, sum = 0, value = 0;
#pragma unroll
        for (int w = 0; w < S::warps; w++) {
            const char* row = shared + w * S::warp_bytes + r * row_bytes;
            const float peak = lds<float>(row), higher = fmaxf(top, peak), base = higher == -INFINITY ? 0.0f : higher;
            const float down = ex2(top - base), up = ex2(peak - base);
            sum = fma_(sum, down, lds<float>(row + 4) * up);
            value = fma_(value, down, lds<float>(row + 8 + 4 * channel) * up);
            top = higher;
        }
        const long long to = (first_row + r) * a.splits + split;
        a.out[to * S::dim + channel] = value;
        if (channel == 0) {
            a.state[2 * to] = top;
            a.state[2 * to + 1] = sum;
        }
    }
}

// Grid: splits, KV heads, queries. A block behind its tile's pages leaves at once.
template <class S>
__device__ __forceinline__ void attend_committed(const AttendArgs& a) {
    constexpr int N = S::row_tiles;
    const int split = blockIdx.x, head = blockIdx.y;
    const long long* tile = a.tiles + 5 * ldg(a.token_tile + blockIdx.z);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int before = (int)ldg(tile + 3), begin = split * S::split_pages;
    const int end = begin + S::split_pages < before ? begin + S::split_pages : before;
    if (begin >= end) return;
    const long long first_row = ((long long)blockIdx.z * a.heads + head) * S::group;

    char* shared = shared_memory();
    char *mine = shared + warp * S::warp_bytes, *common = shared + S::warps * S::warp_bytes;
    char* steps = common + S::query_bytes + S::query_words;
    const QueryMemory query{common, common + S::query_bytes, steps};
    const PageMemory memory{mine, mine + S::key_region, mine + S::key_region + S::value_region, steps + 8 * S::rows};
    if (threadIdx.x < 4) sts<uint32_t>(steps + 8 * S::rows + 4 * threadIdx.x, 0);

    const Records<S> records{a, lane};
    const Copier<S> copy{records, memory};
    Queue<S> queue{records, a, before, end};
    queue.begin(a.pages + ldg(tile + 4), begin + warp, head);
    copy.keys(queue.now, queue.pass, false, head);
    cp_commit();
    copy.values(queue.now, queue.pass, false);
    cp_commit();

    prepare_queries<S>(a, first_row, query, lane, warp);
    __syncthreads();
    const Keys<S> keys{memory, query, a, lane, g, t};
    const Values<S> values{memory, lane, g};
    float step[N], total[N];
#pragma unroll
    for (int n = 0; n < N; n++) {
        step[n] = lds<float>(steps + 8 * (4 * n + t));
        total[n] = lds<float>(steps + 8 * (4 * n + t) + 4);
    }
    State<S> state;
    state.begin();

    for (bool more = true; more;) {
        const Pass pass = queue.pass;
        Weights<S> weights;
        cp_wait<1>();
        __syncwarp();
        if (pass.tokens) {
            float centre[N], x[N][S::page / 32][4];
            keys.order_scales(pass);
            keys.centre_scores(centre);
            __syncwarp();
            keys.scores(x, total, pass);
            weights.of_scores(x, centre, step, keys, pass);
        }
        more = queue.next();
        __syncwarp();
        if (more) copy.keys(queue.now, queue.pass, queue.pruned, head);
        cp_commit();
        cp_wait<1>();
        __syncwarp();
        if (pass.tokens) {
            state.take(weights);
            values.add(state, weights, pass);
        }
        __syncwarp();
        if (more) copy.values(queue.now, queue.pass, queue.pruned);
        cp_commit();
    }
    cp_wait<0>();
    __syncthreads();
    finish<S>(a, state, shared, first_row, split, warp, g, t);
}

}  // namespace leankv::cuda

#ifdef LEANKV_KERNEL
using S = leankv::cuda::Shape<LEANKV_SHAPE>;
LEANKV_KERNEL(attend_committed, AttendArgs, 32 * S::warps, S::blocks, S::shared_bytes)
#endif
