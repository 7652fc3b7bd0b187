// Copying the records of pages out of the pool and into it, a block a record; the spec is reference/packing.py.
//
// A packed record is the record less its block list. All lengths are multiples of kAlign but the list's, of 4.
#pragma once

#include "headers.cuh"

namespace leankv::cuda {

struct PackShape {
    static constexpr int threads = 256;
};

struct PackArgs {
    ShrinkArgs store;
    char *far, *near;                          // the packed records; in main memory where the device reaches it
    long long *far_bytes, *near_bytes, *held;  // [n, layers], [n, layers], [n]: measured, or of what is taken in
    const long long *far_at, *near_at;         // [n, layers]: where each begins
    const long long* taken;                    // [layers, n]: blocks that records before this one take, to take in
    long long far_room, near_room;             // bytes that there are
};

// A record's parts, packed.
struct PackedRecord {
    long long at;     // page by page, and in each layer by layer
    int far, length;  // words as they lie in a record, block list included: at the far level, and with the near part
    int *far_words, *near_words;

    __device__ __forceinline__ PackedRecord(const PackArgs& p, long long page, long long layer) {
        at = page * p.store.layers + layer;
        far = (int)(p.far_bytes[at] >> 2) + list_words(p.store.shape);
        length = far + (int)(p.near_bytes[at] >> 2);
        far_words = (int*)(p.far + p.far_at[at]);
        near_words = (int*)(p.near + p.near_at[at]);
    }
    static __device__ __forceinline__ int list_words(const RecordShape& s) { return (int)s.max_blocks; }
    // Whether there is room for it; a host that was wrong about that finds the sums of lengths larger.
    __device__ __forceinline__ bool fits(const PackArgs& p) const {
        return p.far_at[at] + p.far_bytes[at] <= p.far_room && p.near_at[at] + p.near_bytes[at] <= p.near_room;
    }
    // Where a word of the record is that is not of its list.
    __device__ __forceinline__ int* word(const RecordShape& s, int i) const {
        if (i >= far) return near_words + (i - far);
        return far_words + (i < s.list_word ? i : i - list_words(s));
    }
};

// Grid: as many blocks as cover the records.
template <class S>
__device__ __forceinline__ void measure_packed(const PackArgs& p) {
    const ShrinkArgs& a = p.store;
    const long long i = (long long)blockIdx.x * S::threads + threadIdx.x;
    if (i >= a.n * a.layers) return;
    const long long page = i / a.layers, layer = i % a.layers;
    const HeaderWords header(a, layer, page);
    if (!header.words) {
        p.far_bytes[i] = p.near_bytes[i] = 0;
        if (layer == 0) p.held[page] = kLevelFar;
        return;
    }
    const int wanted = (int)ldg(a.level + page), has = header.words[kWordLevel], level = wanted < has ? wanted : has;
    const int far = header.bytes_at(a.shape, level < kLevelFar ? level : kLevelFar);
    p.far_bytes[i] = far - 4 * PackedRecord::list_words(a.shape);
    p.near_bytes[i] = header.bytes_at(a.shape, level) - far;
    if (layer == 0) p.held[page] = level;
}

// Grid: layers x pages.
template <class S>
__device__ __forceinline__ void gather_pages(const PackArgs& p) {
    const ShrinkArgs& a = p.store;
    const HeaderWords header(a, blockIdx.x, blockIdx.y);
    const PackedRecord packed(p, blockIdx.y, blockIdx.x);
    if (!header.words || !packed.fits(p)) return;
    const int list = (int)a.shape.list_word, list_end = list + PackedRecord::list_words(a.shape);
    const int shift = (int)a.shape.block_shift - 2, mask = (1 << shift) - 1;
    for (int i = threadIdx.x; i < packed.length; i += S::threads) {
        if (i >= list && i < list_end) continue;
        int word =
            ldg((const int*)(a.blocks + ldg(header.words + list + (i >> shift)) * a.shape.block_bytes) + (i & mask));
        if (i == kWordPage || i == kWordLayer || i == kWordBlocks) word = 0;  // where it lies, not what it holds
        if (i == kWordLevel) word = kLevelFar;
        if (i == kWordBytes) word = 4 * packed.far;
        *packed.word(a.shape, i) = word;
    }
}

// Grid: layers x pages. The ring's head stays where it is until all blocks have read it.
template <class S>
__device__ __forceinline__ void scatter_pages(const PackArgs& p) {
    const ShrinkArgs& a = p.store;
    const long long layer = blockIdx.x, page = blockIdx.y, id = ldg(a.pages + page);
    const PackedRecord packed(p, page, layer);
    const int list = (int)a.shape.list_word, list_end = list + PackedRecord::list_words(a.shape);
    const int shift = (int)a.shape.block_shift - 2, mask = (1 << shift) - 1;
    const int count = (packed.length + mask) >> shift, level = (int)p.held[page];
    const long long begin = (*a.ring_head + ldg(p.taken + layer * a.n + page)) % a.num_blocks;
    auto block = [&](int b) {
        const long long at = begin + b;
        return b < count ? ldg(a.ring + (at < a.num_blocks ? at : at - a.num_blocks)) : 0;
    };
    for (int i = threadIdx.x; i < count << shift; i += S::threads) {
        int word = 0;
        if (i >= list && i < list_end)
            word = block(i - list);
        else if (i < packed.length)
            word = *packed.word(a.shape, i);
        if (i == kWordPage) word = (int)id;
        if (i == kWordLayer) word = (int)layer;
        if (i == kWordBlocks) word = count;
        if (i == kWordLevel) word = level;
        if (i == kWordBytes) word = 4 * packed.length;
        *((int*)(a.blocks + block(i >> shift) * a.shape.block_bytes) + (i & mask)) = word;
    }
    if (threadIdx.x >= 32) return;
    UsageChange change;
    if (threadIdx.x == 0) {
        a.page_table[layer * a.table_stride + id] = block(0);
        const Counts c = tokens_of(a.shape, packed.word(a.shape, (int)a.shape.head_word));
        change.add({a.shape, c.high, c.mid, c.low, level, count}, 1);
    }
    change.apply(a.usage, threadIdx.x);
}

}  // namespace leankv::cuda

#ifdef LEANKV_KERNEL
using S = leankv::cuda::PackShape;
LEANKV_KERNEL(measure_packed, PackArgs, S::threads, 1, 0)
LEANKV_KERNEL(gather_pages, PackArgs, S::threads, 1, 0)
LEANKV_KERNEL(scatter_pages, PackArgs, S::threads, 1, 0)
#endif
