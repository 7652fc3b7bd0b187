// Freeing and cutting the records of pages in all layers, and counting what they hold, in one launch each.
//
// One block goes through the headers, so that blocks come back in the order of the reference and the ring ends up the
// same: layer by layer, page by page.
#pragma once

#include "headers.cuh"

namespace leankv::cuda {

struct ShrinkShape {
    static constexpr int threads = 512, warps = 16, shared_bytes = 4 * (warps + 3 * threads);
};

// `f` changes a record and says which entries of its list, and how many, go back to the ring; with CLEAR they leave it.
template <class S, bool CLEAR, class F>
__device__ __forceinline__ void give_back(const ShrinkArgs& a, F f) {
    char *shared = shared_memory(), *lists = shared + 4 * S::warps;
    const int me = threadIdx.x, lane = me & 31, warp = me >> 5;
    const long long records = a.n * a.layers, tail = *a.ring_head + *a.ring_free;
    long long given = 0;
    UsageChange change;
    for (long long begin = 0; begin < records; begin += S::threads) {
        const long long i = begin + me;
        int first = 0, count = 0, block = 0;
        if (i < records) {
            const HeaderWords header(a, i / a.n, i % a.n);
            if (header.words) {
                block = a.page_table[i / a.n * a.table_stride + ldg(a.pages + i % a.n)];
                f(header, i % a.n, change, first, count);
            }
        }
        int all;
        const int before = sum_before<S::warps>(count, shared, all);
        sts<int>(lists + 12 * me, block);
        sts<int>(lists + 12 * me + 4, first | count << 16);
        sts<int>(lists + 12 * me + 8, before);
        __syncthreads();
        for (int r = warp; r < S::threads; r += S::warps) {
            const int packed = lds<int>(lists + 12 * r + 4), from = packed & 0xFFFF, n = packed >> 16;
            int* list = (int*)(a.blocks + lds<int>(lists + 12 * r) * a.shape.block_bytes) + a.shape.list_word + from;
            const long long to = tail + given + lds<int>(lists + 12 * r + 8);
            for (int e = lane; e < n; e += 32) {
                a.ring[(to + e) % a.num_blocks] = list[e];
                if (CLEAR) list[e] = 0;
            }
        }
        given += all;
        __syncthreads();
    }
    change.apply(a.usage, lane);
    if (me == 0) *a.ring_free += given;
}

// Grid: one block, as for all but count_pages.
template <class S>
__device__ __forceinline__ void free_pages(const ShrinkArgs& a) {
    give_back<S, false>(a, [&](const HeaderWords& header, long long, UsageChange& change, int& first, int& count) {
        first = 0, count = header.words[kWordBlocks];
        change.add(header.usage(a.shape, header.words[kWordLevel], count), -1);
    });
    __syncthreads();
    for (long long i = threadIdx.x; i < a.n * a.layers; i += S::threads)
        a.page_table[i / a.n * a.table_stride + ldg(a.pages + i % a.n)] = 0;
}

template <class S>
__device__ __forceinline__ void cut_pages(const ShrinkArgs& a) {
    give_back<S, true>(a, [&](const HeaderWords& header, long long page, UsageChange& change, int& first, int& count) {
        const int level = (int)ldg(a.level + page), held = header.words[kWordLevel];
        if (held <= level) return;
        const int bytes = header.bytes_at(a.shape, level), had = header.words[kWordBlocks];
        const int kept = header.blocks_at(a.shape, level);
        change.add(header.usage(a.shape, held, had), -1);
        change.add(header.usage(a.shape, level, kept), 1);
        header.words[kWordBlocks] = kept;
        header.words[kWordBytes] = bytes;
        header.words[kWordLevel] = level;
        first = kept, count = had - kept;
    });
}

// Grid: as many blocks as cover the pages.
template <class S>
__device__ __forceinline__ void count_pages(const ShrinkArgs& a) {
    const long long page = (long long)blockIdx.x * S::threads + threadIdx.x;
    if (page >= a.n) return;
    int counts[6] = {0, 0, 0, 0, 0, 0};
    for (long long layer = 0; layer < a.layers; layer++) {
        const HeaderWords header(a, layer, page);
        if (!header.words) continue;
#pragma unroll
        for (int i = 0; i < 3; i++) counts[i] += header.blocks_at(a.shape, kLevelBase + i);
        const Counts tokens = header.tokens(a.shape);
        counts[3] += tokens.high, counts[4] += tokens.mid, counts[5] += tokens.low;
    }
#pragma unroll
    for (int i = 0; i < 6; i++) a.counts[6 * page + i] = counts[i];
}

}  // namespace leankv::cuda

#ifdef LEANKV_KERNEL
using S = leankv::cuda::ShrinkShape;
LEANKV_KERNEL(free_pages, ShrinkArgs, S::threads, 1, S::shared_bytes)
LEANKV_KERNEL(cut_pages, ShrinkArgs, S::threads, 1, S::shared_bytes)
LEANKV_KERNEL(count_pages, ShrinkArgs, S::threads, 1, 0)
#endif
