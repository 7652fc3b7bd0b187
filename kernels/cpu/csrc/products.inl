// Products of codes with queries and with weights, for a few rows: codes are read once, in registers, for all of them.
//
// Most groups of 16 tokens are whole and their tokens alike in tier; they go through loops without a branch. The rest,
// at the border of the tiers and at the end of a run, are put together by KeyGroup and ValueGroup.
#pragma once

#include "gemm.inl"
#include "planes.inl"
#include "prefetch.inl"
#include "query.inl"
#include "record.inl"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

// What whole groups have to read: one plane that is all there is, both planes, or the top one of two.
enum class Read { kOne, kBoth, kTop };

template <Read READ>
struct WholeKeys {
    const uint8_t *top, *second;

    LEANKV_MEMBER vi word(int j, int sub) const { return loadi(top + size_t(j) * kStepBytes + size_t(sub) * (4 * W)); }

    LEANKV_MEMBER void read(int j, int sub, vi& even, vi& odd) const {
        const vi w = word(j, sub);
        const int32_t low = 0x0f0f0f0f, high = int32_t(0xf0f0f0f0);
        if (READ == Read::kOne) {
            even = w & splati(low), odd = shift_right(w, 4) & splati(low);
        } else if (READ == Read::kTop) {
            even = (w << 4) & splati(high), odd = w & splati(high);
        } else {
            const vi r = loadi(second + size_t(j) * kStepBytes + size_t(sub) * (4 * W));
            even = select(low, r, w << 4), odd = select(low, shift_right(r, 4), w);
        }
    }
};

// Products of N neighbouring groups with a few rows.
template <int ROWS, int N, class Group>
LEANKV_INLINE void multiply_key_groups(const Group* group, int dim, const Query* queries, int32_t* out,
                                       Prefetch& ahead) {
    Pace pace = ahead.take();
    for (int sub = 0; sub < kPanelVectors; sub++) {
        vi a[ROWS][N] = {}, b[ROWS][N] = {};
        for (int j = 0; j < dim / 8; j++) {
            if (j % 2 == 0) pace.during(2 * N * kKeyWork / kPanelVectors);
            vi even[N], odd[N];
            for (int n = 0; n < N; n++) group[n].read(j, sub, even[n], odd[n]);
            accumulate<ROWS, N>(even, queries->quads + 2 * j, kQueryStride, a, b);
            accumulate<ROWS, N>(odd, queries->quads + 2 * j + 1, kQueryStride, a, b);
        }
        for (int r = 0; r < ROWS; r++)
            for (int n = 0; n < N; n++) storei(out + r * kMaxTokens + n * kPanel + sub * W, combine(a[r][n], b[r][n]));
    }
    ahead.pace = pace;
}

// The same where all codes have four bits, see nibble_pair.
template <int ROWS, int N>
LEANKV_INLINE void multiply_nibble_groups(const WholeKeys<Read::kOne>* group, int dim, const Query* queries,
                                          int32_t* out, Prefetch& ahead) {
    vi a[ROWS][N] = {}, b[ROWS][N] = {}, c[ROWS][N] = {};
    Pace pace = ahead.take();
    constexpr bool apart = ROWS <= 2;  // more rows hide the latency of two dots into one sum
    for (int j = 0; j < dim / 8; j++) {
        if (j % 2 == 0) pace.during(2 * N * kKeyWork);
        vi word[N], even[N], odd[N];
        for (int n = 0; n < N; n++) {
            word[n] = group[n].word(j, 0);
            group[n].read(j, 0, even[n], odd[n]);
        }
        for (int r = 0; r < ROWS; r++) {
            const Quad q = queries[r].quads[2 * j];
            const int32_t q_odd = queries[r].odd[j];
            for (int n = 0; n < N; n++) a[r][n] = dot(a[r][n], even[n], q.a);
            for (int n = 0; n < N; n++) b[r][n] = dot(b[r][n], word[n], q.b);
            vi(*to)[N] = apart ? c : a;
            for (int n = 0; n < N; n++) to[r][n] = dot(to[r][n], odd[n], q_odd);
        }
    }
    ahead.pace = pace;
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < N; n++) {
            const vi x = combine(apart ? a[r][n] + c[r][n] : a[r][n], b[r][n]);
            storei(out + r * kMaxTokens + n * kPanel, x);
        }
}

template <int ROWS, int N, Read READ>
LEANKV_INLINE void multiply_groups(const WholeKeys<READ>* group, int dim, const Query* queries, int32_t* out,
                                   Prefetch& ahead) {
    if constexpr (kBytes && READ == Read::kOne)
        multiply_nibble_groups<ROWS, N>(group, dim, queries, out, ahead);
    else
        multiply_key_groups<ROWS, N>(group, dim, queries, out, ahead);
}

// Whole groups from token t to `stop`, alike in tier.
template <int ROWS, Read READ>
LEANKV_INLINE void multiply_whole_keys(const uint8_t* top, const uint8_t* second, int t, int stop, int dim,
                                       const Query* queries, int32_t* out, Prefetch& ahead) {
    const size_t step = key_plane(kPanel, dim);
    for (; t + 2 * kPanel <= stop; t += 2 * kPanel) {
        const WholeKeys<READ> group[2] = {{top, second}, {top + step, second + step}};
        multiply_groups<ROWS, 2>(group, dim, queries, out + t, ahead);
        top += 2 * step, second += 2 * step;
    }
    if (t >= stop) return;
    const WholeKeys<READ> group{top, second};
    multiply_groups<ROWS, 1>(&group, dim, queries, out + t, ahead);
}

template <int ROWS, int PLANES>
LEANKV_INLINE void multiply_keys(const KeySource& key, int dim, const Query* queries, int32_t* out, Prefetch& ahead) {
    const int whole = key.tokens / kPanel * kPanel;
    auto plane = [&](const uint8_t* p, int t) { return p + key_plane(t, dim); };
    auto one_tier = [&](const uint8_t* second, int t, int stop) {
        if (PLANES == 1)
            multiply_whole_keys<ROWS, Read::kOne>(plane(key.top, t), key.top, t, stop, dim, queries, out, ahead);
        else if (second)
            multiply_whole_keys<ROWS, Read::kBoth>(plane(key.top, t), second, t, stop, dim, queries, out, ahead);
        else
            multiply_whole_keys<ROWS, Read::kTop>(plane(key.top, t), key.top, t, stop, dim, queries, out, ahead);
    };
    auto mixed = [&](int t) {
        KeyGroup<PLANES> group;
        group.find(key, t, dim);
        multiply_key_groups<ROWS, 1>(&group, dim, queries, out + t, ahead);
    };
    int t = 0;
    if (PLANES == 2 && !key.second && (key.first_part || key.rest)) {
        t = key.split / kPanel * kPanel;
        one_tier(key.first_part, 0, t);
        if (t < whole && t < key.split) mixed(t), t += kPanel;
        if (t < whole) one_tier(key.rest ? plane(key.rest, t - key.split) : nullptr, t, whole);
    } else {
        one_tier(key.second, 0, whole);
    }
    if (whole < key.tokens) mixed(whole);
}

// The rows of bytes of whole groups of quads, from a first one on.
template <Read READ>
struct WholeValues {
    const uint8_t *top, *second;

    LEANKV_MEMBER void find(int offset, int half, int dim, vi (*words)[2]) const {
        auto rows = [&](const uint8_t* p, vi out[2]) {
            const uint8_t* const row[4] = {p, p + dim, p + 2 * size_t(dim), p + 3 * size_t(dim)};
            interleave(row, offset, half, out);
        };
        rows(top, words[0]);
        if (READ != Read::kBoth) return;
        rows(second, words[1]);
        // Codes of tokens 0 and 2 of each quad in the nibbles of one word, those of 1 and 3 in another.
        for (int r = 0; r < 2; r++) {
            const vi p = words[0][r], q = words[1][r];
            words[0][r] = select(0x33333333, q, p << 2), words[1][r] = select(0x33333333, shift_right(q, 2), p);
        }
    }

    // Codes of tokens I, 4 + I, 8 + I, 12 + I.
    template <int I>
    LEANKV_MEMBER vi codes(const vi (*words)[2], int r) const {
        if (READ == Read::kBoth) return shift_right(words[I % 2][r], 4 * (I / 2)) & splati(0x0f0f0f0f);
        if (READ == Read::kOne) return shift_right(words[0][r], 2 * I) & splati(0x03030303);
        return (I ? shift_right(words[0][r], 2 * I - 2) : words[0][r] << 2) & splati(0x0c0c0c0c);
    }
};

template <int ROWS, class Group>
LEANKV_INLINE void add_value_group(const Group& group, const vi (*words)[2], const Quad* quads, vi (*a)[2],
                                   vi (*b)[2]) {
    constexpr size_t stride = kMaxTokens / 4;
    const vi codes[4][2] = {{group.template codes<0>(words, 0), group.template codes<0>(words, 1)},
                            {group.template codes<1>(words, 0), group.template codes<1>(words, 1)},
                            {group.template codes<2>(words, 0), group.template codes<2>(words, 1)},
                            {group.template codes<3>(words, 0), group.template codes<3>(words, 1)}};
    for (int i = 0; i < 4; i++) accumulate<ROWS, 2>(codes[i], quads + i, stride, a, b);
}

// Writes the sums of two vectors of channels, or adds them to what is there.
template <int ROWS>
LEANKV_INLINE void put_products(const vi (*a)[2], const vi (*b)[2], bool add, int32_t* out) {
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < 2; i++) {
            int32_t* to = out + r * kMaxChannels + i * W;
            const vi sum = combine(a[r][i], b[r][i]);
            storei(to, add ? loadi(to) + sum : sum);
        }
}

// `groups` whole groups of quads, alike in tier.
template <int ROWS, Read READ>
LEANKV_INLINE void multiply_whole_values(const uint8_t* top, const uint8_t* second, int groups, int dim,
                                         const Quad* weights, bool add, int32_t* out, Prefetch& ahead) {
    for (int v = 0; v < channel_vectors(dim); v += 2) {
        vi a[ROWS][2] = {}, b[ROWS][2] = {};
        WholeValues<READ> group{top, second};
        Pace pace = ahead.take();
        for (int g = 0; g < groups; g++) {
            pace.during(kValueWork);
            vi words[2][2];
            group.find(v / 4 * 4 * W, v / 2 % 2, dim, words);
            add_value_group<ROWS>(group, words, weights + 4 * g, a, b);
            group.top += 4 * size_t(dim), group.second += 4 * size_t(dim);
        }
        ahead.pace = pace;
        put_products<ROWS>(a, b, add, out + v * W);
    }
}

template <int ROWS, int PLANES, int BASE>
LEANKV_INLINE void multiply_values(const ValueSource& value, int dim, const Quad* weights, bool add, int32_t* out,
                                   Prefetch& ahead) {
    auto mixed = [&](int first, int stop) {
        for (int g = first; g < stop; g++) {
            ValueGroup<PLANES, BASE> group;
            group.find(value, g, dim);
            for (int v = 0; v < channel_vectors(dim); v += 2) {
                Pace pace = ahead.take();
                pace.during(kValueWork);
                ahead.pace = pace;
                vi a[ROWS][2] = {}, b[ROWS][2] = {}, words[PLANES][2];
                group.read(v / 4, v / 2 % 2, words);
                add_value_group<ROWS>(group, words, weights + 4 * g, a, b);
                put_products<ROWS>(a, b, add, out + v * W);
            }
            add = true;
        }
    };
    auto row = [&](const uint8_t* p, int quad) { return p + size_t(quad) * dim; };
    auto one_tier = [&](const uint8_t* second, int first, int stop) {
        if (first >= stop) return;
        const uint8_t* top = row(value.base, 4 * first);
        const Quad* quads = weights + 4 * first;
        if (PLANES == 1)
            multiply_whole_values<ROWS, Read::kOne>(top, top, stop - first, dim, quads, add, out, ahead);
        else if (second)
            multiply_whole_values<ROWS, Read::kBoth>(top, second, stop - first, dim, quads, add, out, ahead);
        else
            multiply_whole_values<ROWS, Read::kTop>(top, top, stop - first, dim, quads, add, out, ahead);
        add = true;
    };
    const int groups = (value.quads + 3) / 4, whole = value.quads / 4;
    if (PLANES > 2) return mixed(0, groups);
    int g = 0;
    if (PLANES > BASE && value.refined) {
        g = value.split / 4;
        one_tier(value.first_part, 0, g);
        if (g < whole && 4 * g < value.split) mixed(g, g + 1), g++;
        const bool rest = value.refined > value.split;
        if (g < whole) one_tier(rest ? row(value.rest, 4 * g - value.split) : nullptr, g, whole);
    } else {
        one_tier(PLANES == BASE ? row(value.base + value.base_stride, 0) : nullptr, 0, whole);
    }
    mixed(whole, groups);
}

static void multiply_keys_of(const HeadView& view, const RecordShape& shape, int rows, const Query* queries,
                             int32_t* out, Prefetch& ahead) {
    for (int i = 0; i < view.runs; i++)
        with_key_planes(shape, [&]<int PLANES>() {
            with_rows(rows, [&]<int ROWS>() {
                multiply_keys<ROWS, PLANES>(view.run[i].key, int(shape.head_dim), queries,
                                            out + view.run[i].first_group * kPanel, ahead);
            });
        });
}

static void multiply_values_of(const HeadView& view, const RecordShape& shape, int rows, const Quad* weights,
                               int32_t* out, Prefetch& ahead) {
    for (int i = 0; i < view.runs; i++)
        with_value_planes(shape, view.run[i].value.bits, [&]<int PLANES, int BASE>() {
            with_rows(rows, [&]<int ROWS>() {
                const Run& run = view.run[i];
                multiply_values<ROWS, PLANES, BASE>(run.value, int(shape.v_head_dim), weights + 4 * run.first_group,
                                                    run.first_group > 0, out, ahead);
            });
        });
}

}  // namespace
}  // namespace leankv::LEANKV_NS
