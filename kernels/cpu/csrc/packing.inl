// Copying pages out of the pool and into it; the spec is kernels/reference/packing.py, the layout kernels/layout/.
//
// A packed record is the record less its block list. Pages are packed one after the other with all their layers,
// blocks taken layer by layer, as the reference takes them.
#pragma once

#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "record.inl"
#include "shrink.inl"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

LEANKV_INLINE int64_t list_begin(const RecordShape& shape) { return 4 * shape.list_word; }
LEANKV_INLINE int64_t list_end(const RecordShape& shape) { return list_begin(shape) + 4 * shape.max_blocks; }

// Copies bytes of a record that lies over blocks, from `begin` up to `end`, to `data` or from it.
template <bool kOut>
LEANKV_INLINE void move_bytes(const ShrinkArgs& a, const int32_t* list, int64_t begin, int64_t end, uint8_t* data) {
    const int64_t size = a.shape.block_bytes;
    for (int64_t at = begin; at < end;) {
        const int64_t block = at / size, stop = (block + 1) * size < end ? (block + 1) * size : end;
        uint8_t* place = a.blocks + list[block] * size + at % size;
        std::memcpy(kOut ? data : place, kOut ? place : data, size_t(stop - at));
        data += stop - at;
        at = stop;
    }
}

// Where each packed record begins, for pages one after the other: sums of their lengths.
LEANKV_INLINE int64_t* starts_of(const int64_t* lengths, int64_t count) {
    auto* starts = static_cast<int64_t*>(std::malloc(size_t(count + 1) * sizeof(int64_t)));
    starts[0] = 0;
    for (int64_t i = 0; i < count; i++) starts[i + 1] = starts[i] + lengths[i];
    return starts;
}

}  // namespace

static void measure_packed(const PackArgs& p) {
    const ShrinkArgs& a = p.store;
    const int64_t list = list_end(a.shape) - list_begin(a.shape);
    for (int64_t i = 0; i < a.n * a.layers; i++) {
        prefetch_record(a, i);
        const int32_t* words = first_words(a, i);
        const int64_t page = i % a.n, at = page * a.layers + i / a.n;
        if (!words) {
            p.far_bytes[at] = p.near_bytes[at] = 0;
            continue;
        }
        const int level = a.level[page] < words[kWordLevel] ? int(a.level[page]) : words[kWordLevel];
        const int64_t far = bytes_at(a.shape, words, level < kLevelFar ? level : kLevelFar);
        p.far_bytes[at] = far - list;
        p.near_bytes[at] = bytes_at(a.shape, words, level) - far;
        if (i < a.n) p.held[page] = level;
    }
}

static void pack_pages(const PackArgs& p) {
    const ShrinkArgs& a = p.store;
    const int64_t count = a.n * a.layers, begin = list_begin(a.shape), end = list_end(a.shape);
    int64_t *far = starts_of(p.far_bytes, count), *near = starts_of(p.near_bytes, count);
    for (int64_t at = 0; at < count; at++) {
        const int32_t* words = first_words(a, at % a.layers * a.n + at / a.layers);
        if (!words) continue;
        const int64_t length = p.far_bytes[at] + end - begin;
        const int32_t* list = words + a.shape.list_word;
        uint8_t* out = p.far + far[at];
        move_bytes<true>(a, list, 0, begin, out);
        move_bytes<true>(a, list, end, length, out + begin);
        move_bytes<true>(a, list, length, length + p.near_bytes[at], p.near + near[at]);
        auto* header = reinterpret_cast<uint8_t*>(out);
        const int32_t said[] = {0, 0, 0, int32_t(kLevelFar), int32_t(length)};
        const int which[] = {kWordPage, kWordLayer, kWordBlocks, kWordLevel, kWordBytes};
        // Packed records begin at any byte.
        for (int i = 0; i < 5; i++) std::memcpy(header + 4 * which[i], said + i, 4);
    }
    std::free(far);
    std::free(near);
}

static void unpack_pages(const PackArgs& p) {
    const ShrinkArgs& a = p.store;
    const int64_t count = a.n * a.layers, begin = list_begin(a.shape), end = list_end(a.shape);
    int64_t *far = starts_of(p.far_bytes, count), *near = starts_of(p.near_bytes, count);
    auto* list = static_cast<int32_t*>(std::malloc(size_t(a.shape.max_blocks) * sizeof(int32_t)));
    for (int64_t i = 0; i < count; i++) {
        const int64_t page = i % a.n, layer = i / a.n, at = page * a.layers + layer;
        const int64_t length = p.far_bytes[at] + end - begin, total = length + p.near_bytes[at];
        const int64_t blocks = (total + a.shape.block_bytes - 1) / a.shape.block_bytes;
        for (int64_t b = 0; b < a.shape.max_blocks; b++) {
            list[b] = b < blocks ? a.ring[*a.ring_head] : 0;
            if (b < blocks && ++*a.ring_head == a.num_blocks) *a.ring_head = 0;
        }
        *a.ring_free -= blocks;
        uint8_t* in = p.far + far[at];
        move_bytes<false>(a, list, 0, begin, in);
        move_bytes<false>(a, list, begin, end, reinterpret_cast<uint8_t*>(list));
        move_bytes<false>(a, list, end, length, in + begin);
        move_bytes<false>(a, list, length, total, p.near + near[at]);
        const int64_t used = total - (blocks - 1) * a.shape.block_bytes;
        std::memset(a.blocks + list[blocks - 1] * a.shape.block_bytes + used, 0, size_t(a.shape.block_bytes - used));
        auto* words = reinterpret_cast<int32_t*>(a.blocks + list[0] * a.shape.block_bytes);
        words[kWordPage] = int32_t(a.pages[page]);
        words[kWordLayer] = int32_t(layer);
        words[kWordBlocks] = int32_t(blocks);
        words[kWordLevel] = int32_t(p.held[page]);
        words[kWordBytes] = int32_t(total);
        a.page_table[layer * a.table_stride + a.pages[page]] = list[0];
        count_record(a, words, words[kWordLevel], blocks, 1);
    }
    std::free(list);
    std::free(far);
    std::free(near);
}

}  // namespace leankv::LEANKV_NS
