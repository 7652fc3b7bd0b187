// What the compressed cache is measured against: decode attention over a plain bf16 cache, at the speed of memory.
//
// A split is part of one kv head's context. Its rows are loaded once for the whole group of query heads and go
// through an online softmax in blocks. The splits' size is fixed: the result depends on no number of threads.
//
// Memory is busy all the time only if lines are asked for in the order of addresses and at an even pace. So every row
// asks for the one kAhead bytes further on, and a block's values take turns with the next block's keys, a few each.
//
// Rows of sums are kept per vector of 2W channels, W of them first and then the other W; position() says which.
#pragma once

#include "kernels.h"
#include "simd.inl"

namespace leankv::LEANKV_NS::dense {
namespace {

constexpr int kBlock = 16;    // tokens
constexpr int kTurn = 1024;   // bytes
constexpr int kAhead = 3072;  // bytes
constexpr int kRegisters = W == 16 ? 32 : 16;

constexpr int power_of_two_within(int limit, int most) {
    int n = 1;
    while (2 * n <= limit && 2 * n <= most) n *= 2;
    return n;
}

using Lanes = float[kBlock][W];

struct alignas(64) Split {  // whole lines first: a vector across two of them costs double
    uint16_t query[kDenseGroup][kDenseDim];
    float query_split[kDenseGroup][kDenseDim];
    float sums[kDenseGroup][kDenseDim];
    float weights[kDenseGroup][kBlock];
    uint32_t pairs[kDenseGroup][kBlock / 2];
    Lanes lanes[kDenseGroup];
    float total[kDenseGroup][W];
    float highest[kDenseGroup], rescale[kDenseGroup];
    float scale;          // of scores, to the base of 2
    int dim, full, half;  // channels; vectors of them, and a half one
};

// A word of two bf16 holds two floats without their low halves.
LEANKV_INLINE vf even(vi words) { return as_float(words << 16); }
LEANKV_INLINE vf odd(vi words) { return as_float(words & splati(int32_t(0xffff0000u))); }

LEANKV_INLINE vf round_to_bf16(vf x) {
    const vi bits = as_int(x);
    return odd(bits + 0x7fff + (shift_right(bits, 16) & 1));
}

// Where channel d of 2W is among the sums, by how a kernel unpacks words.
LEANKV_INLINE int position(int d, bool bf16) { return bf16 ? d / 8 * 4 + d % 4 + d / 4 % 2 * W : d / 2 + d % 2 * W; }

// Vector j of a row of bf16. A row may end in half a vector: zeros fill the other half.
template <bool Half>
LEANKV_INLINE vi row_words(const uint16_t* row, int j) {
#if defined(__AVX512VNNI__)
    if constexpr (Half) return (vi)_mm512_maskz_loadu_epi32(0xff, row + 2 * W * j);
#endif
    return loadi(row + 2 * W * j);
}

// Asks for a row further on, and for what comes after this row's first channels in the order of addresses.
LEANKV_INLINE void prefetch(const uint16_t* row, int dim, int first) {
    for (int i = 0; i < dim; i += 32) __builtin_prefetch(reinterpret_cast<const char*>(row + i) + kAhead);
    for (int i = first; i < dim; i += 32) __builtin_prefetch(row + i);
}

// Lane i of the result is the sum over x[i]'s lanes.
LEANKV_INLINE vf sum_each(const float (*x)[W]) {
    vf sums[W];
    for (int i = 0; i < W; i++) sums[i] = load(x[i]);
    const vi lane = lane_ids();
#pragma GCC unroll 8
    for (int n = W / 2; n; n /= 2) {
        // Of every 2n lanes the first n go to one sum, the others to the one that is n further on.
        const vi low = (lane & (n - 1)) + (lane & ~(2 * n - 1)) + ((lane & n) != 0 ? splati(W) : splati(0));
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            const vf a = sums[i], b = sums[i + n];
            sums[i] = __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, low + n);
        }
    }
    return sums[0];
}

// Products of a key's vector j with the group's queries, added to sums.
template <int G, bool Half>
LEANKV_INLINE void product(const float (*query)[kDenseDim], const uint16_t* key, int j, vf (&sums)[G]) {
    const vi words = row_words<Half>(key, j);
    for (int g = 0; g < G; g++) {
        sums[g] = fma(even(words), load(query[g] + 2 * W * j), sums[g]);
        sums[g] = fma(odd(words), load(query[g] + 2 * W * j + W), sums[g]);
    }
}

// Products of a block's keys from first to last with the group's queries, each left as W terms.
template <int G, int Dim>
static void products(const Split& u, const uint16_t* keys, int first, int last, Lanes* __restrict lanes) {
    const int full = Dim ? Dim / (2 * W) : u.full, dim = Dim ? Dim : u.dim;
    for (int t = first; t < last; t++) {
        const uint16_t* key = keys + t * dim;
        prefetch(key, dim, dim);
        vf sums[G] = {};
        for (int j = 0; j < full; j++) product<G, false>(u.query_split, key, j, sums);
        if (!Dim && u.half) product<G, true>(u.query_split, key, full, sums);
        for (int g = 0; g < G; g++) store(lanes[g][t], sums[g]);
    }
}

// What a block's values are added to: the sums of all before, under the highest score that the block brought.
LEANKV_INLINE vf sums_so_far(const Split& u, int g, int vector, int first) {
    return load(u.sums[g] + vector * W) * (first ? 1.0f : u.rescale[g]);
}

// Adds a block's weighted values from first to last to the sums, for C vectors of channels from vector j on.
template <int G, int C, bool Half>
LEANKV_INLINE void add_values(Split& u, const uint16_t* values, int dim, int first, int last, int j) {
    vf acc[C][2][G];
    for (int c = 0; c < C; c++)
        for (int half = 0; half < 2; half++)
            for (int g = 0; g < G; g++) acc[c][half][g] = sums_so_far(u, g, 2 * (j + c) + half, first);
    for (int t = first; t < last; t++) {
        const uint16_t* value = values + t * dim;
        if (j == 0) prefetch(value, dim, C * 2 * W);
        vf p[G];
        for (int g = 0; g < G; g++) p[g] = splat(u.weights[g][t]);
        for (int c = 0; c < C; c++) {
            const vi words = row_words<Half>(value, j + c);
            for (int g = 0; g < G; g++) acc[c][0][g] = fma(even(words), p[g], acc[c][0][g]);
            for (int g = 0; g < G; g++) acc[c][1][g] = fma(odd(words), p[g], acc[c][1][g]);
        }
    }
    for (int c = 0; c < C; c++)
        for (int half = 0; half < 2; half++)
            for (int g = 0; g < G; g++) store(u.sums[g] + (2 * (j + c) + half) * W, acc[c][half][g]);
}

template <int G, int C>
LEANKV_INLINE void add_strips(Split& u, const uint16_t* values, int dim, int first, int last, int j, int full) {
    for (; j + C <= full; j += C) add_values<G, C, false>(u, values, dim, first, last, j);
    if constexpr (C > 1) add_strips<G, C / 2>(u, values, dim, first, last, j, full);
}

template <int G, int Dim>
static void values(Split& u, const uint16_t* values, int first, int last) {
    constexpr int C = power_of_two_within(kRegisters * 3 / 4 / (2 * G), 4);
    const int full = Dim ? Dim / (2 * W) : u.full, dim = Dim ? Dim : u.dim;
    add_strips<G, C>(u, values, dim, first, last, 0, full);
    if (!Dim && u.half) add_values<G, 1, true>(u, values, dim, first, last, full);
}

}  // namespace
}  // namespace leankv::LEANKV_NS::dense

#include "dense_bf16.inl"

namespace leankv::LEANKV_NS::dense {
namespace {

// A block's scores to weights under the highest score so far, and by what all that came before shrinks.
template <int G>
LEANKV_INLINE void weigh_block(Split& u, int n, bool bf16) {
    for (int g = 0; g < G; g++) {
        vf score[kBlock / W], top = splat(-__builtin_inff());
        for (int i = 0; i < kBlock / W; i++) {
            score[i] = lane_ids() + i * W < n ? sum_each(u.lanes[g] + i * W) * u.scale : splat(-__builtin_inff());
            top = max(top, score[i]);
        }
        const float before = u.highest[g], block = max_lanes(top);
        vf total = load(u.total[g]);
        u.rescale[g] = 1;
        if (block > before) {  // seldom, once some tokens have been seen
            u.highest[g] = block;
            u.rescale[g] = exp2_one(before - block);
            total *= u.rescale[g];
        }
        for (int i = 0; i < kBlock / W; i++) {
            vf p = exp2(score[i] - u.highest[g]);
            if (bf16) p = round_to_bf16(p);
            store(u.weights[g] + i * W, p);
            total += p;
        }
        store(u.total[g], total);
    }
}

// One split of one kv head; leaves per query head the sums, the highest score and the weight.
template <int G, int Dim>
static void run_split(const DenseArgs& a, int64_t head, int64_t split, float* out, bool bf16) {
    Split u;
    u.dim = a.dim;
    u.full = a.dim / (2 * W);
    u.half = a.dim % (2 * W) != 0;
    u.scale = a.scale * 1.44269504f;
    const int vectors = u.full + u.half, row = vectors * 2 * W;
    for (int g = 0; g < G; g++) {
        __builtin_memset(u.query[g], 0, sizeof u.query[g]);
        __builtin_memcpy(u.query[g], a.q + (head * G + g) * a.dim, 2 * size_t(a.dim));
        for (int j = 0; j < vectors; j++) {
            const vi words = loadi(u.query[g] + 2 * W * j);
            store(u.query_split[g] + 2 * W * j, even(words));
            store(u.query_split[g] + 2 * W * j + W, odd(words));
        }
        __builtin_memset(u.sums[g], 0, sizeof u.sums[g]);
        __builtin_memset(u.total[g], 0, sizeof u.total[g]);
        u.highest[g] = -__builtin_inff();
    }
    const int64_t start = split * kDenseSplit, stop = start + kDenseSplit < a.tokens ? start + kDenseSplit : a.tokens;
    const uint16_t* keys = a.k + head * a.tokens * a.dim;
    const uint16_t* vals = a.v + head * a.tokens * a.dim;
    const auto multiply = bf16 ? products_bf16<G, Dim> : products<G, Dim>;
    const auto add = bf16 ? values_bf16<G, Dim> : values<G, Dim>;
    const auto length = [&](int64_t t) { return stop - t < kBlock ? int(stop - t) : kBlock; };
    const int turn = power_of_two_within(kTurn / 2 / a.dim, kBlock);
    multiply(u, keys + start * a.dim, 0, length(start), u.lanes);
    for (int64_t t = start; t < stop; t += kBlock) {
        const int now = length(t), next = t + kBlock < stop ? length(t + kBlock) : 0;
        weigh_block<G>(u, now, bf16);
        for (int first = 0; first < kBlock; first += turn) {
            const int last = first + turn;
            multiply(u, keys + (t + kBlock) * a.dim, first, last < next ? last : next, u.lanes);
            if (first < now) add(u, vals + t * a.dim, first, last < now ? last : now);
        }
    }
    for (int g = 0; g < G; g++, out += row + 2) {
        __builtin_memcpy(out, u.sums[g], sizeof(float) * size_t(row));
        out[row] = u.highest[g];
        out[row + 1] = sum_lanes(load(u.total[g]));
    }
}

// Joins a query head's splits by their highest scores, and puts its channels in order.
static void join(const float* parts, int64_t stride, int splits, int row, int dim, bool bf16, float* out) {
    float highest = parts[row], weight = 0;
    for (int s = 1; s < splits; s++) highest = highest > parts[s * stride + row] ? highest : parts[s * stride + row];
    for (int d = 0; d < dim; d++) out[d] = 0;
    for (int s = 0; s < splits; s++) {
        const float* part = parts + s * stride;
        const float share = exp2_one(part[row] - highest);
        weight += share * part[row + 1];
        for (int d = 0; d < dim; d++) {
            const int lane = d % (2 * W);
            out[d] += share * part[d - lane + position(lane, bf16)];
        }
    }
    for (int d = 0; d < dim; d++) out[d] /= weight;
}

using SplitFunction = void (*)(const DenseArgs&, int64_t, int64_t, float*, bool);

template <int Dim>
static SplitFunction split_for(int64_t group) {
    static const SplitFunction by_group[kDenseGroup] = {
        run_split<1, Dim>, run_split<2, Dim>, run_split<3, Dim>, run_split<4, Dim>,
        run_split<5, Dim>, run_split<6, Dim>, run_split<7, Dim>, run_split<8, Dim>,
    };
    return by_group[group - 1];
}

static void decode(const DenseArgs& a) {
    const SplitFunction run = a.dim == 64    ? split_for<64>(a.group)
                              : a.dim == 128 ? split_for<128>(a.group)
                                             : split_for<0>(a.group);
    const bool bf16 = a.cpu_bf16 && has_bf16();
    const int row = (a.dim + 2 * W - 1) / (2 * W) * 2 * W;
    const int64_t heads = a.batch * a.kv_heads, splits = (a.tokens + kDenseSplit - 1) / kDenseSplit;
    const int64_t part = row + 2, parts = a.group * part;
#pragma omp parallel num_threads(a.threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < heads * splits; i++) run(a, i / splits, i % splits, a.workspace + i * parts, bf16);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < heads * a.group; i++)
            join(a.workspace + i / a.group * splits * parts + i % a.group * part, parts, int(splits), row, a.dim, bf16,
                 a.out + i * a.dim);
    }
}

// The speed of memory: what reading alone takes. The sum keeps the loads from being dropped.
static void read_bandwidth(const ReadArgs& a) {
    const char* base = static_cast<const char*>(a.data);
    const int64_t chunk = 1 << 16, chunks = a.bytes / chunk;
    uint64_t total = 0;
#pragma omp parallel for num_threads(a.threads) schedule(static) reduction(+ : total)
    for (int64_t c = 0; c < chunks; c++) {
        vu sums[4] = {};
        for (int64_t i = 0; i < chunk; i += 4 * sizeof(vu))
            for (int s = 0; s < 4; s++) sums[s] += (vu)loadi(base + c * chunk + i + s * sizeof(vu));
        const vu sum = sums[0] + sums[1] + sums[2] + sums[3];
        for (int i = 0; i < W; i++) total += sum[i];
    }
    *a.sum = total;
}

}  // namespace
}  // namespace leankv::LEANKV_NS::dense
