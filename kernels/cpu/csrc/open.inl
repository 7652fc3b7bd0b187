// Causal attention inside each tile's raw own page, with column scores (see reference/attention.py).
//
// Every sum runs in an order fixed by positions alone: channels of a dot product in W lanes folded by halves, keys one
// after the other. Column scores are integers.
#pragma once

#include "kernels.h"
#include "planes.inl"
#include "query.inl"
#include "simd.inl"
#include "softmax.inl"

namespace leankv::LEANKV_NS {
namespace {

constexpr int kOpenRows = 4;
constexpr int kOpenAhead = 16;            // tokens that are asked of memory before they are read
constexpr float kColumnOne = 4194304.0f;  // 2^22, COLUMN_SCORE_ONE

struct OpenScratch {
    alignas(64) float key[(kMaxPage + W) * kMaxDim];
    alignas(64) float value[kMaxPage * kMaxDim];
    alignas(64) float query[kMaxDim];
    alignas(64) float weights[kOpenRows][kMaxPage];
    int32_t columns[kMaxGroup][kMaxPage];
};

// Lane i of the result is the sum of all lanes of x[i].
LEANKV_INLINE vf sum_each(vf* x) {
    vi even, odd;
    for (int i = 0; i < W; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
    for (int n = W; n > 1; n /= 2)
        for (int i = 0; i < n / 2; i++)
            x[i] = __builtin_shuffle(x[2 * i], x[2 * i + 1], even) + __builtin_shuffle(x[2 * i], x[2 * i + 1], odd);
    return x[0];
}

template <int ROWS, int VECTORS>
LEANKV_INLINE void weigh_values(const OpenScratch& s, int keys, int dim, int channel, float* const* out) {
    vf sum[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) sum[r][v] = vf{};
    for (int k = 0; k < keys; k++)
        for (int v = 0; v < VECTORS; v++) {
            const vf x = load(s.value + size_t(k) * dim + channel + v * W);
            for (int r = 0; r < ROWS; r++) sum[r][v] = fma(splat(s.weights[r][k]), x, sum[r][v]);
        }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) store(out[r] + channel + v * W, sum[r][v]);
}

template <int ROWS>
LEANKV_INLINE void weigh_all_values(const OpenScratch& s, int keys, int dim, float* const* out) {
    int c = 0;
    for (; c + 2 * W <= dim; c += 2 * W) weigh_values<ROWS, 2>(s, keys, dim, c, out);
    for (; c < dim; c += W) weigh_values<ROWS, 1>(s, keys, dim, c, out);
}

// Numbers of a row brought into float16's range; whether all of them were finite.
LEANKV_INLINE bool saturate_row(const void* raw, size_t row, int dim, int dtype, float* to) {
    const vf least = splat(-float(kHalfMax));
    vf off{};
    for (int c = 0; c < dim; c += W) {
        const vf x = load_as_float(raw, row + c, dtype);
        off = off + (x - x);
        store(to + c, -max(-max(x, least), least));
    }
    return sum_lanes(off) == 0.0f;
}

// Sizes as bits, which are in the order of sizes; those of NaN are the largest.
LEANKV_INLINE vi max_size(vi most, vf x) {
    const vi size = as_int(x) & splati(0x7fffffff);
    return size > most ? size : most;
}

// Reads the tokens of a raw page, rows `first`, `first` + heads, ...; returns how many are before the first that is not
// finite.
LEANKV_INLINE int read_open(const AttendOpenArgs& a, size_t first, int tokens, OpenScratch& s) {
    const size_t item = a.raw_dtype == kFloat32 ? 4 : 2, heads = size_t(a.heads);
    vi largest{};
    auto read = [&](const void* raw, size_t row, size_t dim, float* to) {
        for (size_t c = 0; c < dim; c += W) {
            if (c * item % 64 == 0)
                __builtin_prefetch(static_cast<const uint8_t*>(raw) + ((row + kOpenAhead * heads) * dim + c) * item);
            const vf x = load_as_float(raw, row * dim + c, a.raw_dtype);
            largest = max_size(largest, x);
            store(to + c, x);
        }
    };
    const size_t key_dim = size_t(a.head_dim), value_dim = size_t(a.value_dim);
    for (size_t t = 0; t < size_t(tokens); t++) {
        read(a.key, first + t * heads, key_dim, s.key + t * key_dim);
        read(a.value, first + t * heads, value_dim, s.value + t * value_dim);
    }
    const vf most = splat(float(kHalfMax));
    if (all_zero(largest > as_int(most))) return tokens;
    int finite = tokens;
    for (size_t t = 0; t < size_t(tokens); t++) {
        const size_t row = first + t * heads;
        const bool key = saturate_row(a.key, row * key_dim, int(key_dim), a.raw_dtype, s.key + t * key_dim);
        const bool value = saturate_row(a.value, row * value_dim, int(value_dim), a.raw_dtype, s.value + t * value_dim);
        if (finite == tokens && !(key && value)) finite = int(t);
    }
    return finite;
}

// Scores, capped (`cap`, in base 2) unless that is 0, and softmax of one row over the first `keys` keys; returns
// 1 / sum.
static float weigh_keys(OpenScratch& s, int keys, int dim, float cap, float* weights, float* lse) {
    vf peak = splat(-__builtin_inff());
    for (int k = 0; k < keys; k += W) {
        vf dots[W];
        for (int i = 0; i < W; i++) {
            const float* key = s.key + size_t(k + i) * dim;
            vf sum = load(s.query) * load(key);
            for (int c = W; c < dim; c += W) sum = fma(load(s.query + c), load(key + c), sum);
            dots[i] = sum;
        }
        vf sums = sum_each(dots);
        if (cap != 0.0f) sums = capped(sums, cap);
        const vf score = lane_ids() + k < keys ? sums : splat(-__builtin_inff());
        store(weights + k, score);
        peak = max(peak, score);
    }
    const float most = max_lanes(peak);
    vf total{};
    for (int k = 0; k < keys; k += W) {
        const vf p = exp2(load(weights + k) - most);
        store(weights + k, p);
        total = total + p;
    }
    const float sum = sum_lanes(total);
    *lse = (most + __builtin_log2f(sum)) * kLn2;
    return 1.0f / sum;
}

static void open_tile(const AttendOpenArgs& a, int64_t u, int head) {
    OpenScratch& s = *thread_scratch<OpenScratch>();
    const Tile tile = tile_at(a.tiles, u);
    const int offset = int(tile.offset), queries = int(tile.queries), written = offset + queries;
    const int dim = int(a.head_dim), value_dim = int(a.value_dim), group = int(a.group);
    const int page = int(a.page_size), rows = queries * group;
    const int64_t raw = a.at[u];
    const int finite = read_open(a, size_t(raw) * page * a.heads + head, written, s);
    std::memset(s.key + size_t(written) * dim, 0, sizeof(float) * W * dim);
    for (int j = 0; j < group; j++) std::memset(s.columns[j], 0, sizeof(int32_t) * page);

    for (int r0 = 0; r0 < rows; r0 += kOpenRows) {
        const int n = rows - r0 < kOpenRows ? rows - r0 : kOpenRows;
        float inverse[kOpenRows];
        float* out[kOpenRows];
        const int longest = offset + (r0 + n - 1) / group + 1;
        for (int i = 0; i < n; i++) {
            const int query = (r0 + i) / group, j = (r0 + i) % group, keys = offset + query + 1;
            const int64_t at = (tile.first_query + query) * a.query_heads + head * group + j;
            vf off{};
            for (int c = 0; c < dim; c += W) {
                const vf x = load_as_float(a.q, size_t(at) * dim + c, a.dtype) * (a.scale * kLog2E);
                off = off + (x - x);
                store(s.query + c, x);
            }
            inverse[i] = weigh_keys(s, keys, dim, a.cap * kLog2E, s.weights[i], a.lse + at);
            const bool readable = keys <= finite && sum_lanes(off) == 0.0f;
            if (!readable) a.lse[at] = inverse[i] = __builtin_nanf("");
            for (int k = round_up(keys, W); k < longest; k++) s.weights[i][k] = 0.0f;
            for (int k = 0; readable && k < keys; k += W) {
                const vi column = round_to_int(load(s.weights[i] + k) * (inverse[i] * kColumnOne));
                storei(s.columns[j] + k, loadi(s.columns[j] + k) + column);
            }
            out[i] = a.out + at * value_dim;
        }
        switch (n) {
            case 1:
                weigh_all_values<1>(s, longest, value_dim, out);
                break;
            case 2:
                weigh_all_values<2>(s, longest, value_dim, out);
                break;
            case 3:
                weigh_all_values<3>(s, longest, value_dim, out);
                break;
            case 4:
                weigh_all_values<4>(s, longest, value_dim, out);
                break;
        }
        for (int i = 0; i < n; i++)
            for (int c = 0; c < value_dim; c += W) store(out[i] + c, load(out[i] + c) * inverse[i]);
    }
    for (int j = 0; j < group; j++) {
        int32_t* to = a.scores + (raw * a.query_heads + head * group + j) * page;
        if (offset == 0)
            std::memcpy(to, s.columns[j], sizeof(int32_t) * page);
        else
            for (int t = 0; t < written; t++) to[t] += s.columns[j][t];
    }
}

}  // namespace

static void attend_open(const AttendOpenArgs& a) {
    double work = 0;
    for (int64_t u = 0; u < a.num_tiles; u++) {
        const Tile tile = tile_at(a.tiles, u);
        work += double(tile.offset + tile.queries) * double(a.query_heads) * double(tile.queries + 1);
    }
    const int threads = work < 2e4 ? 1 : a.threads;
    const int64_t tasks = a.num_tiles * a.heads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (int64_t i = 0; i < tasks; i++) open_tile(a, i / a.heads, int(i % a.heads));
}

static void merge_states(const MergeArgs& a) {
    const int threads = a.rows * a.head_dim < (1 << 17) ? 1 : a.threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < a.rows; i++) {
        const float sink = a.sinks[uint32_t(i) % uint32_t(a.heads)],
                    higher = a.lse_a[i] > a.lse_b[i] ? a.lse_a[i] : a.lse_b[i];
        const float peak = higher > sink ? higher : sink;
        const bool empty = peak == -__builtin_inff();
        const float weight_a = empty ? 0.0f : exp2_one((a.lse_a[i] - peak) * kLog2E);
        const float weight_b = empty ? 0.0f : exp2_one((a.lse_b[i] - peak) * kLog2E);
        const float of_sink = sink == -__builtin_inff() ? 0.0f : exp2_one((sink - peak) * kLog2E);
        const float total = weight_a + weight_b + of_sink, inverse = empty ? 0.0f : 1.0f / total;
        const float share_a = weight_a * inverse, share_b = weight_b * inverse;
        const size_t row = size_t(i) * size_t(a.head_dim);
        for (int64_t c = 0; c < a.head_dim; c += W)
            store(a.out + row + c, fma(load(a.out_a + row + c), splat(share_a), load(a.out_b + row + c) * share_b));
        const bool readable = a.lse_a[i] == a.lse_a[i] && a.lse_b[i] == a.lse_b[i] && sink == sink;
        a.lse[i] = !readable ? __builtin_nanf("") : empty ? peak : peak + __builtin_log2f(total) * kLn2;
    }
}

}  // namespace leankv::LEANKV_NS
