// Queries as the products of codes take them.
#pragma once

#include "gemm.inl"
#include "kernels.h"
#include "planes.inl"
#include "simd.inl"
#include "softmax.inl"

namespace leankv::LEANKV_NS {
namespace {

// A row of the tensor of tiles, see plan.py.
struct Tile {
    int64_t first_query, offset, queries, pages, first_page;
};

LEANKV_INLINE Tile tile_at(const int64_t* tiles, int64_t u) {
    const int64_t* row = tiles + 5 * u;
    return {row[0], row[1], row[2], row[3], row[4]};
}

// A row of the tensor of groups, see cascade.py.
struct Group {
    int64_t first_member, members, begin, end, depth;
};

LEANKV_INLINE Group group_at(const int64_t* groups, int64_t g) {
    const int64_t* row = groups + 5 * g;
    return {row[0], row[1], row[2], row[3], row[4]};
}

// One query row: a quad for the even and one for the odd channels of each word of key codes, and, where all codes have
// four bits, the third factor of nibble_pair.
struct Query {
    Quad quads[kMaxDim / 4];
    int32_t odd[kMaxDim / 8];
};

constexpr size_t kQueryStride = sizeof(Query) / sizeof(Quad);

// Whether two key codes share a byte, see nibble_pair.
LEANKV_INLINE bool in_nibbles(const RecordShape& shape) {
    return kBytes && shape.key_base_bits + shape.key_refine_bits == 4;
}

// Writes integers, of which the even and the odd channels come apart, as quads; `third` belongs to nibble_pair.
LEANKV_INLINE void pack_query(const int32_t* even, const int32_t* odd, const int32_t* third, int dim, Query& query) {
#if defined(__AVX512VNNI__)
    // Bytes of upper and lower halves, a word for every four channels.
    alignas(64) int32_t words[5][kMaxDim / 8 + 4];
    auto narrow = [&](int which, int i, vi x) {
        _mm_store_si128(reinterpret_cast<__m128i*>(words[which] + i / 4), _mm512_cvtepi32_epi8((__m512i)x));
    };
    for (int i = 0; i < dim / 2; i += W) {
        const vi e = loadi(even + i), o = loadi(odd + i);
        narrow(0, i, (e + 128) >> 8), narrow(1, i, e);
        narrow(2, i, (o + 128) >> 8), narrow(3, i, o);
        narrow(4, i, loadi(third + i));
    }
    for (int j = 0; j < dim / 8; j++) {
        query.quads[2 * j] = {words[0][j], words[1][j]};
        query.quads[2 * j + 1] = {words[2][j], words[3][j]};
        query.odd[j] = words[4][j];
    }
#else
    (void)third;
    for (int j = 0; j < dim / 8; j++) {
        const int32_t *e = even + 4 * j, *o = odd + 4 * j;
        query.quads[2 * j] = pack_quad(e[0], e[1], e[2], e[3]);
        query.quads[2 * j + 1] = pack_quad(o[0], o[1], o[2], o[3]);
    }
#endif
}

// Rotates one query to `x`, in powers of two, and writes it as 16-bit integers: their products with key codes times
// `scale` are scores. `sum` is that of the integers in units of a step of the codes.
static inline void prepare_query(const AttendCommittedArgs& a, int64_t token, int query_head, float* x, Query& query,
                                 float& scale, float& sum) {
    const int dim = int(a.shape.head_dim);
    const size_t row = (size_t(token) * a.query_heads + query_head) * dim;
    for (int c = 0; c < dim; c += W) store(x + c, load_as_float(a.q, row + c, a.dtype));
    float factor = a.scale * kLog2E;
    if (a.rotated) factor *= rotate(x, dim);
    vf largest{};
    for (int c = 0; c < dim; c += W) {
        const vf v = load(x + c) * factor;
        store(x + c, v);
        largest = max(largest, max(v, -v));
    }
    const float peak = max_lanes(largest);
    // Far finer than four-bit codes can tell.
    const bool nibbles = in_nibbles(a.shape);
    const bool long_sums = dim > 256 && a.shape.key_base_bits + a.shape.key_refine_bits == 8;  // see kOne
    const float one = float(nibbles ? kNibbleOne : long_sums ? kOne / 2 : kOne);
    scale = peak > 0.0f ? peak / one * float(a.shape.key_step) : 1.0f;
    const float inverse = peak > 0.0f ? one / peak : 0.0f;
    alignas(64) int32_t whole[kMaxDim], even[kMaxDim / 2 + W], odd[kMaxDim / 2 + W], third[kMaxDim / 2 + W];
    for (int c = 0; c < dim; c += W) storei(whole + c, round_to_int(load(x + c) * inverse));
    for (int i = 0; i < dim / 2; i++) even[i] = whole[2 * i], odd[i] = whole[2 * i + 1];
    for (int i = dim / 2; i < dim / 2 + W; i++) even[i] = odd[i] = 0;
    vi total{};
    for (int i = 0; i < dim / 2; i += W) {
        vi e = loadi(even + i), o = loadi(odd + i), t{};
        if (nibbles) nibble_pair(e, o, t);
        total += e + o;
        storei(even + i, e), storei(odd + i, o), storei(third + i, t);
    }
    pack_query(even, odd, third, dim, query);
    sum = float(sum_lanes(total)) / float(a.shape.key_step);
}

}  // namespace
}  // namespace leankv::LEANKV_NS
