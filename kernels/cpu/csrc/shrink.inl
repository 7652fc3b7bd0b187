// Freeing and cutting records of many pages in all layers, and counting what they hold. The layout is
// kernels/layout/.
//
// One pass over headers, in the order in which the reference gives blocks back, so that the ring ends up the same. It
// is not worth a second thread: a record costs a cache line or two.
#pragma once

#include "kernels.h"
#include "record.inl"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

constexpr int kPrefetchRecords = 8;

LEANKV_INLINE int32_t* first_words(const ShrinkArgs& a, int64_t i) {
    const int64_t page = a.pages[i % a.n];
    const int64_t first = a.page_table[i / a.n * a.table_stride + page];
    return first ? reinterpret_cast<int32_t*>(a.blocks + first * a.shape.block_bytes) : nullptr;
}

LEANKV_INLINE void prefetch_record(const ShrinkArgs& a, int64_t i) {
    if (i + kPrefetchRecords >= a.n * a.layers) return;
    if (const int32_t* words = first_words(a, i + kPrefetchRecords))
        for (int b = 0; b < a.shape.tier_map_start; b += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(words) + b);
}

// Bytes of a record that is cut to a level, at most what it holds.
LEANKV_INLINE int64_t bytes_at(const RecordShape& shape, const int32_t* words, int level) {
    const int32_t* head = words + shape.head_word;
    if (level >= words[kWordLevel]) return words[kWordBytes];
    return level == kLevelBase ? head[kHeadRefine] : head[kHeadNear];
}

// Tokens of all heads by tier.
LEANKV_INLINE Counts tokens_of(const RecordShape& shape, const int32_t* words) {
    Counts sum{0, 0, 0};
    for (int h = 0; h < shape.heads; h++) {
        const Counts counts = Counts::of(words[shape.head_word + kHeadWords * h + kHeadCounts]);
        sum.high += counts.high, sum.mid += counts.mid, sum.low += counts.low;
    }
    return sum;
}

// Takes a record that is cut to a level, with so many blocks, into the running usage, or out of it (`sign`).
static void count_record(const ShrinkArgs& a, const int32_t* words, int level, int64_t blocks, int sign) {
    const Counts tokens = tokens_of(a.shape, words);
    count_usage(a.shape, a.usage, tokens.high, tokens.mid, tokens.low, level, blocks, sign);
}

LEANKV_INLINE void give_back(const ShrinkArgs& a, const int32_t* list, int64_t begin, int64_t end) {
    int64_t tail = (*a.ring_head + *a.ring_free) % a.num_blocks;
    for (int64_t i = begin; i < end; i++) {
        a.ring[tail] = list[i];
        if (++tail == a.num_blocks) tail = 0;
    }
    *a.ring_free += end - begin;
}

}  // namespace

static void free_pages(const ShrinkArgs& a) {
    for (int64_t i = 0; i < a.n * a.layers; i++) {
        prefetch_record(a, i);
        const int32_t* words = first_words(a, i);
        if (!words) continue;
        count_record(a, words, words[kWordLevel], words[kWordBlocks], -1);
        give_back(a, words + a.shape.list_word, 0, words[kWordBlocks]);
    }
    for (int64_t i = 0; i < a.n * a.layers; i++) a.page_table[i / a.n * a.table_stride + a.pages[i % a.n]] = 0;
}

static void cut_pages(const ShrinkArgs& a) {
    for (int64_t i = 0; i < a.n * a.layers; i++) {
        prefetch_record(a, i);
        int32_t* words = first_words(a, i);
        const int level = int(a.level[i % a.n]);
        if (!words || words[kWordLevel] <= level) continue;
        const int64_t bytes = bytes_at(a.shape, words, level), had = words[kWordBlocks];
        const int64_t kept = (bytes + a.shape.block_bytes - 1) / a.shape.block_bytes;
        count_record(a, words, words[kWordLevel], had, -1);
        count_record(a, words, level, kept, 1);
        int32_t* list = words + a.shape.list_word;
        give_back(a, list, kept, had);
        for (int64_t b = kept; b < had; b++) list[b] = 0;
        words[kWordBlocks] = int32_t(kept);
        words[kWordBytes] = int32_t(bytes);
        words[kWordLevel] = level;
    }
}

static void count_pages(const ShrinkArgs& a) {
    for (int64_t i = 0; i < a.n * a.layers; i++) {
        prefetch_record(a, i);
        const int32_t* words = first_words(a, i);
        if (!words) continue;
        int32_t* counts = a.counts + kPageCounts * (i % a.n);
        for (int level = kLevelBase; level <= kLevelNear; level++)
            counts[level - kLevelBase] +=
                int32_t((bytes_at(a.shape, words, level) + a.shape.block_bytes - 1) / a.shape.block_bytes);
        const Counts tokens = tokens_of(a.shape, words);
        counts[3] += int32_t(tokens.high), counts[4] += int32_t(tokens.mid), counts[5] += int32_t(tokens.low);
    }
}

// Bytes (with the 16-bit centre of its keys) and tokens of every head, by where its sections begin and the next one's
// do.
static void count_heads(const ShrinkArgs& a) {
    const RecordShape& shape = a.shape;
    for (int64_t i = 0; i < a.n * a.layers; i++) {
        prefetch_record(a, i);
        const int32_t* words = first_words(a, i);
        if (!words) continue;
        const int32_t* head = words + shape.head_word;
        int64_t* counts = a.head_counts + i / a.n * shape.heads * kHeadTotals;
        for (int h = 0; h < shape.heads; h++, head += kHeadWords, counts += kHeadTotals) {
            const bool last = h + 1 == shape.heads;
            const int32_t* first = words + shape.head_word;
            const int32_t* next = head + kHeadWords;
            counts[0] += 2 * shape.head_dim + (last ? first[kHeadRefine] : next[kHeadBase]) - head[kHeadBase];
            if (words[kWordLevel] >= kLevelFar)
                counts[0] += (last ? first[kHeadNear] : next[kHeadRefine]) - head[kHeadRefine];
            if (words[kWordLevel] >= kLevelNear)
                counts[0] += (last ? words[kWordBytes] : next[kHeadNear]) - head[kHeadNear];
            const Counts tokens = Counts::of(head[kHeadCounts]);
            counts[1] += tokens.high, counts[2] += tokens.mid, counts[3] += tokens.low;
            counts[4] += shape.page_size - tokens.high - tokens.mid - tokens.low;
        }
    }
}

}  // namespace leankv::LEANKV_NS
