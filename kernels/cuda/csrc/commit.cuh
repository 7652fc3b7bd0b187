// Full pages to records, straight into blocks, byte for byte as the reference does: lengths and blocks of all pages,
// then every KV head of every page at once.
#pragma once

#include "tiers.cuh"
#include "write.cuh"

namespace leankv::cuda {

// Lengths, blocks and usage; records are numbered through all layers. Grid: blocks that share the counting of tiers,
// the last of which to end goes on alone.
template <class S>
__device__ __forceinline__ void plan_commit(const CommitArgs& a) {
    char* shared = shared_memory();
    const RecordShape& shape = a.shape;
    const int me = threadIdx.x, lane = me & 31, warp = me >> 5, heads = (int)shape.heads;
    const long long records = a.layers * a.n, step = (long long)gridDim.x * S::warps;
    for (long long pair = (long long)blockIdx.x * S::warps + warp; pair < records * heads; pair += step) {
        int word = 0;
        for (int t = lane; t < S::page; t += 32) {
            const int tier = ldg(a.tiers + pair * S::page + t);
            word += tier == kHigh ? 1 : tier == kMid ? 1 << kCountBits : tier == kLow ? 1 << 2 * kCountBits : 0;
        }
        for (int m = 1; m < 32; m *= 2) word += shfl_xor(word, m);
        if (lane == 0) a.heads[4 * pair] = word;
    }
    fence();
    __syncthreads();
    if (me == 0) {
        const bool last = atomic_add(a.arrivals, 1) == (int)gridDim.x - 1;
        if (last) *a.arrivals = 0;
        sts<int>(shared, last);
    }
    __syncthreads();
    if (!lds<int>(shared)) return;
    fence();
    __syncthreads();
    const long long head = *a.ring_head;
    long long taken = 0;
    UsageChange change;
    for (long long begin = 0; begin < records; begin += S::threads) {
        const long long n = begin + me;
        int blocks = 0;
        if (n < records) {
            int* words = a.heads + 4 * n * heads;
            long long high = 0, mid = 0, low = 0;
            int end = (int)shape.header_bytes;
            for (int section = kHeadBase; section <= kHeadNear; section++)
                for (int h = 0; h < heads; h++) {
                    const Counts counts = Counts::of(load_shared_by_blocks(words + 4 * h));
                    const HeadSizes sizes(shape, counts);
                    if (section == kHeadBase) high += counts.high, mid += counts.mid, low += counts.low;
                    words[4 * h + section] = end;
                    end += section == kHeadBase ? sizes.base : section == kHeadRefine ? sizes.refine : sizes.near;
                }
            blocks = (int)((end + shape.block_bytes - 1) >> shape.block_shift);
            a.records[3 * n + 1] = blocks;
            a.records[3 * n + 2] = end;
            change.add(RecordUsage(shape, high, mid, low, shape.near ? kLevelNear : kLevelFar, blocks), 1);
        }
        int all;
        const int before = sum_before<S::warps>(blocks, shared, all);
        if (n < records) a.records[3 * n] = (int)((head + taken + before) % a.num_blocks);
        taken += all;
    }
    change.apply(a.usage, lane);
    if (me == 0) {
        *a.ring_head = (head + taken) % a.num_blocks;
        *a.ring_free -= taken;
    }
}

// A page's keys of one KV head in common: their mean, in steps of 2^-16 so that the order of the sum does not matter.
// What is not finite counts as 0, and has NaN written where the centre goes. `flags`: a byte a channel.
template <class S>
__device__ __forceinline__ void find_centre(const CommitArgs& a, long long raw, int head, char* to, char* flags,
                                            const Writer& record) {
    const int me = threadIdx.x, lane = me & 31, heads = (int)a.shape.heads;
    constexpr double steps = 65536.0;
    for (int c = me; c < S::widest; c += S::threads) {
        long long sum = 0;
        bool finite = true;
        for (int t = 0; t < S::page; t++) {
            const long long row = (raw * S::page + t) * heads + head;
            const float x = c < S::dim ? number_at(a.key, row * S::dim + c, a.dtype) : 0.0f;
            const float y = c < S::value_dim ? number_at(a.value, row * S::value_dim + c, a.dtype) : 0.0f;
            if (is_finite(x)) sum += rounded(times(within_halves(x), steps));
            finite &= is_finite(x) && is_finite(y);
        }
        sts<uint8_t>(flags + c, finite);
        if (c < S::dim) sts<double>(to + 8 * c, over((double)sum, times(steps, (double)S::page)));
    }
    __syncthreads();
    if (me < 32) {
        double x[S::K];
#pragma unroll
        for (int k = 0; k < S::K; k++) {
            const int channel = lane + 32 * k;
            x[k] = channel < S::dim ? lds<double>(to + 8 * channel) : 0.0;
        }
        rotate_exactly<S::K>(x, a.rotation_block, a.norm, lane);
        __syncwarp();
#pragma unroll
        for (int k = 0; k < S::K; k++) {
            const int channel = lane + 32 * k;
            if (channel >= S::dim) continue;
            const uint16_t half = nearest_half((float)within_halves(x[k]));
            sts<double>(to + 8 * channel, half_value(half & 0x7FFF ? half : 0));
        }
    }
    __syncthreads();
    bool readable = true;
    for (int c = 0; c < S::widest; c += 4) readable &= lds<uint32_t>(flags + c) == 0x01010101;
    record.run((int)a.shape.centre_start + 2 * S::dim * head, 2 * S::dim, [&](int w) {
        if (!readable) return kHalfNaN << 16 | kHalfNaN;
        const double low = lds<double>(to + 16 * w), high = lds<double>(to + 16 * w + 8);
        return (uint32_t)nearest_half((float)low) | (uint32_t)nearest_half((float)high) << 16;
    });
}

// What belongs to no KV head: the record's words and block list, zeros between parts and behind the last.
template <class S>
__device__ __forceinline__ void write_header(const CommitArgs& a, long long n, const Writer& record) {
    const RecordShape& s = a.shape;
    const int me = threadIdx.x, blocks = a.records[3 * n + 1], bytes = a.records[3 * n + 2];
    const long long id = ldg(a.pages + blockIdx.y);
    const int maps = (int)s.tier_map_start + (int)(s.heads * s.page_size) * kTierBits / 8;
    const int centres = (int)s.centre_start + (int)(2 * s.heads * s.head_dim);
    if (me < kHeaderWords) {
        const int level = s.near ? kLevelNear : kLevelFar;
        const uint32_t word = me == kWordPage     ? (uint32_t)id
                              : me == kWordLayer  ? (uint32_t)(a.layer + blockIdx.z)
                              : me == kWordBlocks ? (uint32_t)blocks
                              : me == kWordBytes  ? (uint32_t)bytes
                              : me == kWordLevel  ? (uint32_t)level
                              : me == kWordMagic  ? (uint32_t)kMagic
                                                  : 0;
        record.word(4 * me, word);
    }
    for (int i = me; i < s.max_blocks; i += S::threads)
        record.word(4 * (int)(s.list_word + i), i < blocks ? (uint32_t)record.block(i) : 0);
    for (int at = maps + 4 * me; at < s.centre_start; at += 4 * S::threads) record.word(at, 0);
    for (int at = centres + 4 * me; at < s.header_bytes; at += 4 * S::threads) record.word(at, 0);
    for (int at = bytes + 4 * me; at < blocks * s.block_bytes; at += 4 * S::threads) record.word(at, 0);
    if (me == 0) a.page_table[blockIdx.z * a.table_stride + id] = record.block(0);
}

// Keys or values of one KV head's tokens as codes and scales in shared memory, in the order of the record.
template <class S, int DIM>
__device__ __forceinline__ void code_rows(const CommitArgs& a, int kind, long long raw, int head, int far, char* codes,
                                          char* scales, const char* centre, const char* places) {
    constexpr int K = (DIM + 31) / 32;
    const RecordShape& s = a.shape;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5,
              block = kind ? a.value_rotation_block : a.rotation_block;
    const int fewest = (int)(kind ? s.value_base_bits : s.key_base_bits);
    const Bits bits{fewest, fewest + (int)(kind ? s.value_refine_bits : s.key_refine_bits)};
    const double norm = kind ? a.value_norm : a.norm;
    for (int t = warp; t < S::page; t += S::warps) {
        double x[K];
        bool finite = true, saturated = false;
        const long long row = ((raw * S::page + t) * a.shape.heads + head) * DIM;
#pragma unroll
        for (int k = 0; k < K; k++) {
            const int channel = lane + 32 * k;
            const float number = channel < DIM ? number_at(kind ? a.value : a.key, row + channel, a.dtype) : 0.0f;
            finite &= is_finite(number);
            x[k] = is_finite(number) ? (double)number : 0.0;
        }
        rotate_exactly<K>(x, block, norm, lane);
        if (!kind)
#pragma unroll
            for (int k = 0; k < K; k++)
                if (lane + 32 * k < DIM) x[k] = less(x[k], lds<double>(centre + 8 * (lane + 32 * k)));

        const int place = lds<uint16_t>(places + 2 * t);
        const Row<DIM, K> coded = quantize<DIM, K>(x, bits, lane, saturated);
#pragma unroll
        for (int k = 0; k < K; k++)
            if (lane + 32 * k < DIM) sts<uint8_t>(codes + place * DIM + lane + 32 * k, (uint8_t)coded.codes[k]);
        int odd = saturated | !finite << 1;
        for (int m = 1; m < 32; m *= 2) odd |= shfl_xor(odd, m);
        if (odd && lane == 0 && (place < far || a.shape.near)) {
            atomic_add(a.usage + kUsageSaturated, (long long)(odd & 1));
            atomic_add(a.usage + kUsageNotFinite, (long long)(odd >> 1));
        }
        if (lane == 0) {
            sts<uint16_t>(scales + 4 * place, (uint16_t)coded.scale);
            sts<uint16_t>(scales + 4 * place + 2, (uint16_t)coded.zero);
        }
    }
}

// Grid: KV heads, pages, layers.
template <class S>
__device__ __forceinline__ void pack_pages(const CommitArgs& a) {
    const RecordShape& s = a.shape;
    const int head = blockIdx.x, me = threadIdx.x, lane = me & 31, warp = me >> 5, heads = (int)s.heads;
    const long long n = blockIdx.z * a.n + blockIdx.y, pair = n * heads + head;
    const long long raw = blockIdx.z * a.rows + ldg(a.at + blockIdx.y);
    char *codes = shared_memory(), *scales = codes + S::code_bytes, *centre = scales + S::scale_bytes;
    char *places = centre + S::centre_bytes, *tiers = places + S::place_bytes;
    const int* words = a.heads + 4 * pair;
    const Counts counts = Counts::of(words[kHeadCounts]);
    const HeadSizes sizes(s, counts);
    const Writer record{a, a.records[3 * n]};

    // Tokens in the order of the record: high, mid, low, pruned, each by position.
    if (me < S::page) sts<uint8_t>(tiers + me, ldg(a.tiers + pair * S::page + me));
    __syncthreads();
    if (me < S::page) {
        const int tier = lds<uint8_t>(tiers + me);
        int place = tier == kHigh  ? 0
                    : tier == kMid ? counts.high
                    : tier == kLow ? counts.high + counts.mid
                                   : sizes.far;
        for (int t = 0; t < me; t++) place += lds<uint8_t>(tiers + t) == tier;
        sts<uint16_t>(places + 2 * me, (uint16_t)place);
    }
    record.run((int)s.tier_map_start + head * S::page * kTierBits / 8, S::page * kTierBits / 8, [&](int w) {
        uint32_t map = 0;
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++)
                map |= (uint32_t)lds<uint8_t>(tiers + j * (S::page / 4) + 4 * w + i) << (8 * i + 2 * j);
        return map;
    });
    if (me < kHeadWords) record.word(4 * (int)(s.head_word + kHeadWords * head + me), (uint32_t)words[me]);
    if (head == 0) write_header<S>(a, n, record);
    find_centre<S>(a, raw, head, centre, scales, record);
    __syncthreads();

    const int key_base = (int)s.key_base_bits, key_refine = (int)s.key_refine_bits;
    const int value_base = (int)s.value_base_bits, value_refine = (int)s.value_refine_bits;
    const int base = words[kHeadBase], refine = words[kHeadRefine], near = words[kHeadNear];
    const int far = sizes.far, pruned = sizes.pruned, pruned_scales = near + sizes.pruned_scales;
    const Codes<S> put{codes, scales, record};
    for (int kind = 0; kind < 2; kind++) {
        if (S::value_dim == S::dim || !kind)
            code_rows<S, S::dim>(a, kind, raw, head, sizes.far, codes, scales, centre, places);
        else
            code_rows<S, S::value_dim>(a, kind, raw, head, sizes.far, codes, scales, centre, places);
        __syncthreads();
        put.halves(base, 2 * kind, 0, far);
        if (s.near) put.halves(pruned_scales, 2 * kind, far, pruned);
        if (kind == 0) {
            int at = base + sizes.far_keys;
            pad<S>(record, at, put.keys(at, 0, key_base, 0, 0, far) - at);
            pad<S>(record, refine, put.keys(refine, key_base, key_refine, 0, 0, sizes.fine_keys) - refine);
            if (s.near) {
                pad<S>(record, near, put.keys(near, key_base, key_refine, 0, sizes.fine_keys, far) - near);
                at = near + sizes.pruned_keys;
                const int fine = put.keys(at, 0, key_base, far, 0, pruned);
                pad<S>(record, at, put.keys(fine, key_base, key_refine, far, 0, pruned) - at);
            }
        } else {
            put.values(base + sizes.far_values, 0, value_base, 0, 0, far);
            put.values(refine + sizes.fine_values_at, value_base, value_refine, 0, 0, sizes.fine_values);
            if (s.near) {
                put.values(near + sizes.low_values, value_base, value_refine, 0, sizes.fine_values, far);
                const int fine = put.values(near + sizes.pruned_values, 0, value_base, far, 0, pruned);
                put.values(fine, value_base, value_refine, far, 0, pruned);
            }
            pad<S>(record, base, kScaleBytes * far);
            if (s.near) pad<S>(record, pruned_scales, kScaleBytes * pruned);
        }
        __syncthreads();
    }
}

}  // namespace leankv::cuda

#ifdef LEANKV_KERNEL
using S = leankv::cuda::CommitShape<LEANKV_SHAPE>;
LEANKV_KERNEL(tier_pages, TierArgs, S::threads, 1, 0)
LEANKV_KERNEL(plan_commit, CommitArgs, S::threads, 1, 4 * S::warps)
LEANKV_KERNEL(pack_pages, CommitArgs, S::threads, 1, S::shared_bytes)
#endif
