// Records of pages in all layers by their headers: what they hold, and how long they are at a level.
#pragma once

#include "sizes.cuh"

namespace leankv::cuda {

// What is asked of the pool, and for which pages.
struct ShrinkArgs {
    RecordShape shape;
    char* blocks;
    int* page_table;  // [layers, table_stride]
    int* ring;
    long long *ring_head, *ring_free, *usage;
    const long long *pages, *level;  // [n], no two pages alike; levels only to cut
    int* counts;                     // [n, 6], only to count: blocks by level, tokens by tier
    long long num_blocks, n, layers, table_stride;
};

// Tokens of all heads, from where a record's words of heads begin.
__device__ __forceinline__ Counts tokens_of(const RecordShape& s, const int* heads) {
    Counts sum{0, 0, 0};
    for (int h = 0; h < s.heads; h++) {
        const Counts c = Counts::of(heads[kHeadWords * h + kHeadCounts]);
        sum.high += c.high, sum.mid += c.mid, sum.low += c.low;
    }
    return sum;
}

// A record by its first block; nothing where that is 0.
struct HeaderWords {
    int* words;

    __device__ __forceinline__ HeaderWords(const ShrinkArgs& a, long long layer, long long page) {
        const int first = a.page_table[layer * a.table_stride + ldg(a.pages + page)];
        words = first ? (int*)(a.blocks + first * a.shape.block_bytes) : nullptr;
    }
    __device__ __forceinline__ int bytes_at(const RecordShape& s, int level) const {
        if (level >= words[kWordLevel]) return words[kWordBytes];
        return words[s.head_word + (level == kLevelBase ? kHeadRefine : kHeadNear)];
    }
    __device__ __forceinline__ int blocks_at(const RecordShape& s, int level) const {
        return (int)((bytes_at(s, level) + s.block_bytes - 1) >> s.block_shift);
    }
    __device__ __forceinline__ Counts tokens(const RecordShape& s) const { return tokens_of(s, words + s.head_word); }
    __device__ __forceinline__ RecordUsage usage(const RecordShape& s, int level, int blocks) const {
        const Counts c = tokens(s);
        return {s, c.high, c.mid, c.low, level, blocks};
    }
};

}  // namespace leankv::cuda
