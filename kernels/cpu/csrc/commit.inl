// Full pages to records, byte for byte as the reference does (reference/record.py). The layout is kernels/layout/.
#pragma once

#include "committed.inl"
#include "gemm.inl"
#include "kernels.h"
#include "planes.inl"
#include "quantize.inl"
#include "record.inl"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

struct CommitScratch {
    alignas(64) uint8_t key[kPanel][kMaxDim], value[kPanel][kMaxDim];
    alignas(64) double centre[kMaxDim];
    uint16_t centre_halves[kMaxDim];
    uint16_t scales[4][kPanel];
    int order[kMaxPage];
    alignas(64) uint8_t section[3][kMaxPage * (2 * kMaxDim + kScaleBytes) + 8192];
};

struct HeadPlan {
    Counts counts;
    int base, refine, near, end;
};

// A record being written, through its blocks.
struct Writer {
    const RecordShape& shape;
    uint8_t* blocks;
    const int32_t* list;

    void put(int offset, const uint8_t* from, int bytes) const {
        const int block = int(shape.block_bytes);
        while (bytes > 0) {
            const int here = block - (offset & (block - 1)), n = bytes < here ? bytes : here;
            uint8_t* to = blocks + int64_t(list[offset >> shape.block_shift]) * block + (offset & (block - 1));
            std::memcpy(to, from, size_t(n));
            from += n, offset += n, bytes -= n;
        }
    }
};

// Takes the blocks of one page and writes its header; returns where its heads' sections go.
static void open_record(const CommitArgs& a, int64_t n, int32_t* list, HeadPlan* plans) {
    const RecordShape& shape = a.shape;
    const int heads = int(shape.heads), page = int(shape.page_size), words = int(shape.header_bytes / 4);
    const uint8_t* tiers = a.tiers + n * heads * page;
    Counts all{};
    for (int h = 0; h < heads; h++) {
        int of[1 << kTierBits] = {};
        for (int t = 0; t < page; t++) of[tiers[h * page + t]]++;
        plans[h].counts = {of[kHigh], of[kMid], of[kLow]};
        all.high += of[kHigh], all.mid += of[kMid], all.low += of[kLow];
    }
    int end = int(shape.header_bytes);
    for (int h = 0; h < heads; h++) plans[h].base = end, end += sizes_of(shape, plans[h].counts).base;
    for (int h = 0; h < heads; h++) plans[h].refine = end, end += sizes_of(shape, plans[h].counts).refine;
    for (int h = 0; h < heads; h++) plans[h].near = end, end += sizes_of(shape, plans[h].counts).near;
    const int count = int((end + shape.block_bytes - 1) >> shape.block_shift);
    for (int i = 0; i < count; i++) list[i] = a.ring[(*a.ring_head + i) % a.num_blocks];
    *a.ring_head = (*a.ring_head + count) % a.num_blocks;
    *a.ring_free -= count;
    for (int i = count; i < int(shape.max_blocks); i++) list[i] = 0;
    plans[0].end = end;

    int32_t* header = static_cast<int32_t*>(calloc(size_t(words), 4));
    const int level = shape.near ? kLevelNear : kLevelFar;
    const int64_t layer = n / a.n, id = a.pages[n % a.n];
    header[kWordPage] = int32_t(id);
    header[kWordLayer] = int32_t(a.layer + layer);
    header[kWordBlocks] = count;
    header[kWordBytes] = end;
    header[kWordLevel] = level;
    header[kWordMagic] = kMagic;
    std::memcpy(header + shape.list_word, list, 4 * size_t(shape.max_blocks));
    for (int h = 0; h < heads; h++) {
        const HeadPlan& p = plans[h];
        int32_t* head = header + shape.head_word + kHeadWords * h;
        head[kHeadCounts] = p.counts.word(), head[kHeadBase] = p.base;
        head[kHeadRefine] = p.refine, head[kHeadNear] = p.near;
    }
    uint8_t* maps = reinterpret_cast<uint8_t*>(header) + shape.tier_map_start;
    for (int h = 0; h < heads; h++)
        for (int t = 0; t < page; t++)
            maps[h * page / 4 + t % (page / 4)] |= uint8_t((tiers[h * page + t] & 3) << (2 * (t / (page / 4))));
    const Writer writer{shape, a.blocks, list};
    writer.put(0, reinterpret_cast<const uint8_t*>(header), words * 4);
    free(header);
    // The last block is zero behind the record.
    const int behind = int(count * shape.block_bytes) - end;
    if (behind) {
        uint8_t* zeros = static_cast<uint8_t*>(calloc(size_t(behind), 1));
        writer.put(end, zeros, behind);
        free(zeros);
    }
    a.page_table[layer * a.table_stride + id] = list[0];
    count_usage(shape, a.usage, all.high, all.mid, all.low, level, count, 1);
}

static void pack_head(const CommitArgs& a, int64_t n, int h, const int32_t* list, const HeadPlan& plan) {
    CommitScratch& s = *thread_scratch<CommitScratch>();
    const RecordShape& shape = a.shape;
    const int heads = int(shape.heads), page = int(shape.page_size);
    const int key_dim = int(shape.head_dim), value_dim = int(shape.v_head_dim);
    const int key_base = int(shape.key_base_bits), key_refine = int(shape.key_refine_bits);
    const int value_base = int(shape.value_base_bits), value_refine = int(shape.value_refine_bits);
    const Counts& counts = plan.counts;
    const int far = counts.far(), pruned = page - far, fine_keys = counts.keys(shape),
              fine_values = counts.values(shape);
    const Sizes sizes = sizes_of(shape, counts);
    const uint8_t* tiers = a.tiers + (n * heads + h) * page;
    int at[1 << kTierBits];
    at[kHigh] = 0, at[kMid] = counts.high, at[kLow] = counts.high + counts.mid, at[kPruned] = far;
    for (int t = 0; t < page; t++) s.order[at[tiers[t]]++] = t;
    uint8_t *base = s.section[0], *refine = s.section[1], *near = s.section[2];
    std::memset(base, 0, size_t(sizes.base));
    std::memset(refine, 0, size_t(sizes.refine));
    std::memset(near, 0, size_t(sizes.near));

    const int64_t source = a.source(n);
    auto largest_of = [&](const void* raw, int dim) {
        return largest_size(raw, (size_t(source) * page * heads + h) * dim, size_t(heads) * dim, page, dim, a.dtype);
    };
    const uint32_t largest = largest_of(a.key, key_dim);
    const bool readable = largest < infinite(a.dtype) && largest_of(a.value, value_dim) < infinite(a.dtype);
    find_centre(a, source, h, largest, s.centre_halves, s.centre);
    int64_t saturated = 0, not_finite = 0;
    const Bits key_bits{key_base, key_base + key_refine}, value_bits{value_base, value_base + value_refine};
    auto read = [&](int first, int tokens) {
        for (int i = 0; i < tokens; i++) {
            const size_t row = (size_t(source) * page + s.order[first + i]) * heads + h;
            Row key{s.key[i]}, value{s.value[i]};
            quantize(a, a.key, row * key_dim, key_dim, s.centre, key_bits, readable, key);
            quantize(a, a.value, row * value_dim, value_dim, nullptr, value_bits, readable, value);
            s.scales[0][i] = key.scale, s.scales[1][i] = key.zero;
            s.scales[2][i] = value.scale, s.scales[3][i] = value.zero;
            saturated += key.saturated + value.saturated, not_finite += !key.finite + !value.finite;
        }
    };
    auto put_scales = [&](uint8_t* run, int count, int first, int tokens) {
        for (int k = 0; k < 4; k++) std::memcpy(run + 2 * (k * count + first), s.scales[k], 2 * size_t(tokens));
    };

    uint8_t *far_keys = base + sizes.base_scales, *far_values = far_keys + sizes.base_keys;
    for (int t = 0; t < far; t += kPanel) {
        const int m = far - t < kPanel ? far - t : kPanel;
        const int in_keys = clamp(fine_keys - t, 0, m), in_values = clamp(fine_values - t, 0, m);
        read(t, m);
        put_scales(base, far, t, m);
        put_keys(s.key, key_dim, 0, key_base, 0, m, far_keys, far, t);
        put_values(s.value, value_dim, 0, value_base, 0, m, far_values, 0, far, t);
        if (in_keys) put_keys(s.key, key_dim, key_base, key_refine, 0, in_keys, refine, fine_keys, t);
        if (in_values)
            put_values(s.value, value_dim, value_base, value_refine, 0, in_values, refine + sizes.refine_keys, 0,
                       fine_values, t);
        if (in_keys < m && shape.near)
            put_keys(s.key, key_dim, key_base, key_refine, in_keys, m - in_keys, near, far - fine_keys,
                     t < fine_keys ? 0 : t - fine_keys);
        if (in_values < m && shape.near)
            put_values(s.value, value_dim, value_base, value_refine, in_values, m - in_values, near + sizes.low_keys,
                       fine_values, far, t);
    }
    uint8_t *run = near + sizes.low, *keys = run + sizes.pruned_scales, *values = keys + sizes.pruned_keys;
    for (int t = 0; shape.near && t < pruned; t += kPanel) {
        const int m = pruned - t < kPanel ? pruned - t : kPanel;
        read(far + t, m);
        put_scales(run, pruned, t, m);
        // Planes as of far tokens: those of a base code, then those of refinement.
        put_keys(s.key, key_dim, 0, key_base, 0, m, keys, pruned, t);
        put_keys(s.key, key_dim, key_base, key_refine, 0, m, keys + key_bytes(key_base, pruned, key_dim), pruned, t);
        put_values(s.value, value_dim, 0, value_base, 0, m, values, 0, pruned, t);
        put_values(s.value, value_dim, value_base, value_refine, 0, m,
                   values + value_bytes(value_base, 0, pruned, value_dim), 0, pruned, t);
    }
    const Writer writer{shape, a.blocks, list};
    // A centre of NaN makes all that reads it NaN.
    if (!readable)
        for (int c = 0; c < key_dim; c++) s.centre_halves[c] = kHalfNaN;
    const uint8_t* halves = reinterpret_cast<const uint8_t*>(s.centre_halves);
    writer.put(int(shape.centre_start) + 2 * key_dim * h, halves, 2 * key_dim);
    writer.put(plan.base, base, sizes.base);
    writer.put(plan.refine, refine, sizes.refine);
    writer.put(plan.near, near, sizes.near);
    if (saturated) __atomic_fetch_add(a.usage + kUsageSaturated, saturated, __ATOMIC_RELAXED);
    if (not_finite) __atomic_fetch_add(a.usage + kUsageNotFinite, not_finite, __ATOMIC_RELAXED);
}

}  // namespace

static void commit_pages(const CommitArgs& a) {
    const int64_t heads = a.shape.heads, width = a.shape.max_blocks, records = a.layers * a.n;
    int32_t* lists = static_cast<int32_t*>(malloc(sizeof(int32_t) * size_t(records * width)));
    HeadPlan* plans = static_cast<HeadPlan*>(malloc(sizeof(HeadPlan) * size_t(records * heads)));
    for (int64_t n = 0; n < records; n++) open_record(a, n, lists + n * width, plans + n * heads);
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < records * heads; i++)
        pack_head(a, i / heads, int(i % heads), lists + i / heads * width, plans[i]);
    free(plans);
    free(lists);
}

}  // namespace leankv::LEANKV_NS
