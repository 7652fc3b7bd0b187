// Reads one KV head of one record: where it lies, codes into panels, scales into plain floats. The layout is
// kernels/layout/.
#pragma once

#include "kernels.h"
#include "gemm.inl"
#include "planes.inl"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

// Tokens of one record and KV head that are stored alike.
struct Run {
    KeySource key;
    ValueSource value;
    int first_group;
};

// One KV head of one record as the attention reads it.
struct HeadView {
    int groups;  // groups of 16 tokens, the last of each run padded
    int runs;
    Run run[2];
    alignas(64) float centre[kMaxDim];        // of the keys
    alignas(64) float key_scale[kMaxTokens];  // still without the layout's step
    alignas(64) float key_zero[kMaxTokens];
    alignas(64) float value_scale[kMaxTokens];                  // of one step of a code, times kWeightOne
    alignas(64) float value_middle[kMaxTokens];                 // what the middle of the range of codes stands for
    alignas(64) float lift[kMaxTokens];                         // log2 of what a step of a value is less than
    alignas(64) float bias[kMaxTokens];                         // 0 for a token, -inf for padding
    alignas(64) uint8_t keys[kMaxGroups * kPanel * kMaxDim];    // a panel per group, a step per 4 channels
    alignas(64) uint8_t values[kMaxGroups * kPanel * kMaxDim];  // a panel per 16 channels, a step per 4 tokens
    alignas(64) uint8_t staged[kMaxTokens * (2 * kMaxDim + kScaleBytes) + 4096];
};

// Bytes of one KV head's sections and of what precedes the last run in each.
struct Sizes {
    int base_scales, base_keys, base, refine_keys, refine, low_keys, low, pruned_scales, pruned_keys, near;
};

// Tokens of each tier but the pruned, as a KV head's first header word has them.
struct Counts {
    int high, mid, low;

    LEANKV_MEMBER static Counts of(int32_t word) {
        return {word & kCountMask, word >> kCountBits & kCountMask, word >> 2 * kCountBits};
    }
    LEANKV_MEMBER int32_t word() const { return high | mid << kCountBits | low << 2 * kCountBits; }
    LEANKV_MEMBER int far() const { return high + mid + low; }
    // How many keys and values of the far tokens, in their order, have refinement.
    LEANKV_MEMBER int keys(const RecordShape& shape) const { return high + mid * int(shape.mid_keys_fine); }
    LEANKV_MEMBER int values(const RecordShape& shape) const { return high + mid * int(shape.mid_values_fine); }
};

LEANKV_INLINE Sizes sizes_of(const RecordShape& shape, const Counts& counts) {
    const int fine_keys = counts.keys(shape), fine_values = counts.values(shape);
    const int key_dim = int(shape.head_dim), value_dim = int(shape.v_head_dim);
    const int far = counts.far(), pruned = int(shape.page_size) - far;
    const int key_base = int(shape.key_base_bits), key_refine = int(shape.key_refine_bits);
    const int value_base = int(shape.value_base_bits), value_refine = int(shape.value_refine_bits);
    auto scales = [&](int n) { return round_up(kScaleBytes * n, kAlign); };
    auto keys = [&](int bits, int n) { return round_up(key_bytes(bits, n, key_dim), kAlign); };
    auto values = [&](int bits, int first, int stop) { return value_bytes(bits, first, stop, value_dim); };
    Sizes s{};
    s.base_scales = scales(far);
    s.base_keys = keys(key_base, far);
    s.base = s.base_scales + s.base_keys + values(value_base, 0, far);
    s.refine_keys = keys(key_refine, fine_keys);
    s.refine = s.refine_keys + values(value_refine, 0, fine_values);
    if (!shape.near) return s;
    s.low_keys = keys(key_refine, far - fine_keys);
    s.low = s.low_keys + values(value_refine, fine_values, far);
    s.pruned_scales = scales(pruned);
    s.pruned_keys = keys(key_base + key_refine, pruned);
    s.near = s.low + s.pruned_scales + s.pruned_keys + values(value_base, 0, pruned) + values(value_refine, 0, pruned);
    return s;
}

struct Record {
    const RecordShape& shape;
    const uint8_t* blocks;
    const int32_t* words;  // the first block

    Record(const RecordShape& shape, const uint8_t* blocks, int32_t first)
        : shape(shape), blocks(blocks), words(reinterpret_cast<const int32_t*>(blocks + first * shape.block_bytes)) {}

    bool held() const { return words[kWordMagic] == kMagic; }
    int level() const { return words[kWordLevel]; }
    const int32_t* head(int h) const { return words + shape.head_word + kHeadWords * h; }
    const uint8_t* at(int offset) const {
        return blocks + (int64_t(words[shape.list_word + (offset >> shape.block_shift)]) << shape.block_shift) +
               (offset & (shape.block_bytes - 1));
    }
    // Of a head's keys from a channel on, as far as 16 channels go: they lie in one block.
    const uint8_t* centre(int h, int channel) const {
        return at(int(shape.centre_start + 2 * (shape.head_dim * h + channel)));
    }
    // Whether the blocks of a stretch lie one behind the other in the pool, as they do until it is fragmented.
    bool in_one_piece(int offset, int bytes) const {
        const int first = offset >> shape.block_shift, steps = ((offset + bytes - 1) >> shape.block_shift) - first;
        const int32_t* list = words + shape.list_word + first;
        int32_t apart = 0;
        if (steps >= W) {
            vi some{};
            for (int i = 0; i < steps; i += W) {
                const int32_t* at = list + (i < steps - W ? i : steps - W);
                some |= loadi(at + 1) - loadi(at) - 1;
            }
            return all_zero(some);
        }
        for (int i = 0; i < steps; i++) apart |= list[i + 1] - list[i] - 1;
        return apart == 0;
    }
};

// Adds `sign` times what a record of so many blocks holds at a level to the running usage (see store.py).
static void count_usage(const RecordShape& shape, int64_t* usage, int64_t high, int64_t mid, int64_t low, int level,
                        int64_t blocks, int sign) {
    const int64_t base =
        kScaleBytes + (shape.key_base_bits * shape.head_dim + shape.value_base_bits * shape.v_head_dim) / 8;
    const int64_t fine_key = shape.key_refine_bits * shape.head_dim / 8;
    const int64_t fine_value = shape.value_refine_bits * shape.v_head_dim / 8, refine = fine_key + fine_value;
    const int64_t fine_mid = fine_key * shape.mid_keys_fine + fine_value * shape.mid_values_fine;
    const int64_t pruned = shape.heads * shape.page_size - high - mid - low, far = level >= kLevelFar;
    const int64_t near = level >= kLevelNear ? low * refine + mid * (refine - fine_mid) + pruned * (base + refine) : 0;
    const int64_t held[5] = {shape.header_bytes, high * (base + far * refine), mid * (base + far * fine_mid),
                             low * base, near};
    int64_t padding = blocks * shape.block_bytes;
    for (const int64_t bytes : held) padding -= bytes;
    const int64_t parts[kUsageCounts] = {held[0], held[1], held[2], held[3], held[4], padding,
                                         1,       blocks,  high,    mid,     low,     pruned};
    for (int i = 0; i < kUsageCounts; i++) usage[i] += sign * parts[i];
}

// Where a head's far sections lie, if in one piece each.
struct HeadPlace {
    Counts counts;
    Sizes sizes;
    const uint8_t *base, *refine;
};

LEANKV_INLINE HeadPlace find_head(const Record& record, int h) {
    const int32_t* head = record.head(h);
    HeadPlace place{Counts::of(head[kHeadCounts]), {}, nullptr, nullptr};
    place.sizes = sizes_of(record.shape, place.counts);
    auto find = [&](int offset, int bytes) {
        return bytes && record.in_one_piece(offset, bytes) ? record.at(offset) : nullptr;
    };
    place.base = find(head[kHeadBase], place.sizes.base);
    if (record.level() >= kLevelFar) place.refine = find(head[kHeadRefine], place.sizes.refine);
    return place;
}

LEANKV_INLINE void copy64(uint8_t* to, const uint8_t* from) {
    for (int i = 0; i < 64; i += 4 * W) storei(to + i, loadi(from + i));
}

// Copies a stretch of a record out of its blocks; writes up to 63 bytes more than asked.
LEANKV_INLINE void stage(const Record& record, int offset, int bytes, uint8_t* to) {
    const int block = int(record.shape.block_bytes);
    while (bytes > 0) {
        const int here = block - (offset & (block - 1));
        const int n = bytes < here ? bytes : here;
        const uint8_t* from = record.at(offset);
        for (int i = 0; i < n; i += 64) copy64(to + i, from + i);
        to += n, offset += n, bytes -= n;
    }
}

// The middle of the range of value codes, in units of the high tier.
LEANKV_INLINE double value_middle(const RecordShape& shape) {
    return ((1 << (shape.value_base_bits + shape.value_refine_bits)) - 1) * 0.5;
}

// Scales of a run's tokens, of which the first few keys and values are read at the high tier's bin centres.
LEANKV_INLINE void decode_scales(const uint8_t* staged, int tokens, int fine_keys, int fine_values,
                                 const RecordShape& shape, HeadView& view, int first) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(staged);
    const float value_step = float(shape.value_step);
    const double middle = shape.value_step * value_middle(shape);
    const float key_high = float(shape.key_centre_high), key_low = float(shape.key_centre_low);
    const float value_high = float(shape.value_centre_high + middle),
                value_low = float(shape.value_centre_low + middle);
    auto vector = [&]<bool WHOLE>(int t) {
        const vi lane = lane_ids() + t;
        const vi valid = lane < tokens, fine_key = lane < fine_keys, fine_value = lane < fine_values;
        auto array = [&](int which) {
            const vf x = half_to_float(halves + which * tokens + t);
            return WHOLE ? x : as_float(as_int(x) & valid);
        };
        const vf key_scale = array(0), key_zero = array(1), zero = array(3), scale = array(2),
                 step = scale * value_step;
        const int at = first + t;
        store(view.key_scale + at, key_scale);
        store(view.key_zero + at, fma(key_scale, fine_key ? splat(key_high) : splat(key_low), key_zero));
        store(view.value_scale + at, step * float(kWeightOne));
        store(view.value_middle + at, fma(scale, fine_value ? splat(value_high) : splat(value_low), zero));
        store(view.lift + at, max(exponent(step) + 1.0f, splat(-40.0f)));
        store(view.bias + at, WHOLE ? vf{} : valid ? vf{} : splat(-__builtin_inff()));
    };
    int t = 0;
    for (; t + W <= tokens; t += W) vector.template operator()<true>(t);
    for (; t < round_up(tokens, kPanel); t += W) vector.template operator()<false>(t);
}

// Decodes a view to panels, for more rows than are worth decoding for on the fly; keys only where asked.
static void decode_panels(HeadView& view, const RecordShape& shape, bool keys) {
    const int dim = int(shape.head_dim), value_dim = int(shape.v_head_dim);
    for (int i = 0; i < view.runs; i++) {
        const Run& run = view.run[i];
        if (keys)
            with_key_planes(shape, [&]<int PLANES>() {
                decode_keys<PLANES>(run.key, dim, view.keys + size_t(run.first_group) * kPanel * dim);
            });
        with_value_planes(shape, run.value.bits, [&]<int PLANES, int BASE>() {
            decode_values<PLANES, BASE>(run.value, value_dim, 4 * view.groups, run.first_group, view.values);
        });
    }
}

// Finds a head of a record at its near view (every token high) or its far view (tiers as committed).
static inline void read_head(const Record& record, int h, const HeadPlace& place, bool near, HeadView& view) {
    const RecordShape& shape = record.shape;
    const int32_t* head = record.head(h);
    const int far = place.counts.far(), fine_keys = place.counts.keys(shape), fine_values = place.counts.values(shape);
    const int pruned = near ? int(shape.page_size) - far : 0;
    const bool fine = near || record.level() >= kLevelFar;
    const int dim = int(shape.head_dim), value_dim = int(shape.v_head_dim);
    const int key_base = int(shape.key_base_bits), key_refine = int(shape.key_refine_bits);
    const int value_base = int(shape.value_base_bits), value_refine = int(shape.value_refine_bits);
    const int far_groups = (far + kPanel - 1) / kPanel;
    view.groups = far_groups + (pruned + kPanel - 1) / kPanel;
    view.runs = 0;
    const Sizes& sizes = place.sizes;

    uint8_t* staged = view.staged;
    auto fetch = [&](const uint8_t* found, int offset, int bytes) {
        if (found) return found;
        uint8_t* to = staged;
        stage(record, offset, bytes, to);
        staged += round_up(bytes, 64) + 64;
        return static_cast<const uint8_t*>(to);
    };
    for (int c = 0; c < dim; c += W)
        store(view.centre + c, half_to_float(reinterpret_cast<const uint16_t*>(record.centre(h, c))));
    if (far) {
        const uint8_t* base = fetch(place.base, head[kHeadBase], sizes.base);
        KeySource key = KeySource::of(base + sizes.base_scales, key_base, 0, far, fine_keys, dim);
        ValueSource value = ValueSource::of(base + sizes.base_scales + sizes.base_keys, value_base, 0, far, value_dim);
        if (fine && sizes.refine) {
            const uint8_t* refine = fetch(near ? nullptr : place.refine, head[kHeadRefine], sizes.refine);
            if (sizes.refine_keys) key.refine_first(refine);
            value.refine_first(refine + sizes.refine_keys, fine_values, value_dim);
        }
        if (near && sizes.low) {
            const uint8_t* low = fetch(nullptr, head[kHeadNear], sizes.low);
            if (sizes.low_keys) key.refine_rest(low);
            value.refine_rest(low + sizes.low_keys, value_refine, fine_values, far, value_dim);
        }
        decode_scales(base, far,
                      near   ? far
                      : fine ? fine_keys
                             : 0,
                      near   ? far
                      : fine ? fine_values
                             : 0,
                      shape, view, 0);
        view.run[view.runs++] = {key, value, 0};
    }
    if (pruned) {
        const uint8_t* all = fetch(nullptr, head[kHeadNear] + sizes.low, sizes.near - sizes.low);
        decode_scales(all, pruned, pruned, pruned, shape, view, far_groups * kPanel);
        const uint8_t* keys = all + sizes.pruned_scales;
        view.run[view.runs++] = {KeySource::of(keys, key_base, key_refine, pruned, pruned, dim),
                                 ValueSource::of(keys + sizes.pruned_keys, value_base, value_refine, pruned, value_dim),
                                 far_groups};
    }
}

}  // namespace
}  // namespace leankv::LEANKV_NS
