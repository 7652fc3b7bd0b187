// Scores of a page's tokens: key codes are the rows of integer products, query bytes the columns.
//
// A product has 16 tokens. Lane (g, t), g = lane / 4 and t = lane % 4, holds both bytes of query row t for its tokens:
// the four tokens of quad `quad_of(i, g)` of every 32, in two products.
#pragma once

#include "copy.cuh"
#include "query.cuh"

namespace leankv::cuda {

__device__ __forceinline__ uint32_t mixed(uint32_t a, uint32_t b, uint32_t take_a) {
    return (a & take_a) | (b & ~take_a);
}

// Which quad of tokens 32 i to 32 i + 31 belongs to set s: a set is a row of a key product and a column of a value one.
__device__ __forceinline__ int quad_of(int i, int s) {
    const int q = (s & 4) | (s & 1) << 1 | (s >> 1 & 1);
    return i & 1 ? q ^ 4 : q;
}

// Sums of integer products of N row tiles.
template <int N>
__device__ __forceinline__ void clear(int (&dots)[N][2][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int j = 0; j < 4; j++) dots[n][m][j] = 0;
}

// To the next four bits of a code.
template <int N>
__device__ __forceinline__ void raise(int (&dots)[N][2][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int j = 0; j < 4; j++) dots[n][m][j] *= 16;
}

template <class S>
struct Keys {
    static constexpr int N = S::row_tiles, K = S::key_steps, plane = S::page * kScaleBytes;
    static constexpr int C = K > 8 ? 8 : K;  // words that a lane holds at a time
    static_assert(K % C == 0);
    const PageMemory& memory;
    const QueryMemory& query;
    const AttendArgs& a;
    const int lane, g, t;

    // Scales of all tokens as {key scale, key zero, value scale, value zero} in place of the four arrays, in the order
    // in which a product's lanes want them: by 32 tokens, number in the quad, set. Zeros behind the last.
    __device__ __forceinline__ void order_scales(const Pass& p) const {
        uint2 out[S::steps];
#pragma unroll
        for (int k = 0; k < S::steps; k++) {
            const int token = lane + 32 * k;
            out[k].x = out[k].y = 0;
            if (token < p.tokens) {
                const int at = S::page * kScaleBytes - aligned(kScaleBytes * p.tokens) + 2 * token, step = 2 * p.tokens;
                auto half = [&](int n) { return (uint32_t)lds<uint16_t>(memory.keys + swizzled(at + n * step)); };
                out[k].x = half(0) | half(1) << 16;
                out[k].y = half(2) | half(3) << 16;
            }
        }
        __syncwarp();
#pragma unroll
        for (int k = 0; k < S::steps; k++) {
            const int quad = (lane >> 2) ^ (k & 1) << 2, set = (quad & 4) | (quad & 1) << 1 | (quad >> 1 & 1);
            sts<uint2>(memory.keys + 8 * (32 * k + 8 * (lane & 3) + set), out[k]);
        }
    }

    // Scales of token 4 quad_of(i, g) + e.
    __device__ __forceinline__ uint2 scales(int i, int e) const {
        return lds_all<uint2>(memory.keys + 8 * (32 * i + 8 * e + g));
    }

    // What the keys of the page have in common: one product per row, over all lanes.
    __device__ __forceinline__ void centre_scores(float (&score)[N]) const {
#pragma unroll
        for (int n = 0; n < N; n++) score[n] = 0;
#pragma unroll
        for (int k = 0; k < (S::dim / 4 + 7) / 8; k++) {
            const int four = g + 8 * k;
            if (four * 4 >= S::dim) break;
            const uint2 h = lds<uint2>(memory.centre + 8 * four);
            const float c0 = half_float(h.x & 0xFFFF), c1 = half_float(h.x >> 16);
            const float c2 = half_float(h.y & 0xFFFF), c3 = half_float(h.y >> 16);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const uint2 q = lds<uint2>(query.integers + (4 * n + t) * S::query_row + 8 * four);
                const float q0 = (float)(int16_t)q.x, q1 = (float)(int16_t)(q.x >> 16);
                const float q2 = (float)(int16_t)q.y, q3 = (float)(int16_t)(q.y >> 16);
                score[n] = fma_(q0, c0, fma_(q1, c1, fma_(q2, c2, fma_(q3, c3, score[n]))));
            }
        }
#pragma unroll
        for (int n = 0; n < N; n++)
            for (int m = 4; m < 32; m *= 2) score[n] += shfl_xor(score[n], m);
    }

    // Words of a lane's four tokens, in C steps: word 4 (from + k) + t of quad `quad_of(i, g)`. The plane holds tokens
    // `first` to `stop`; tokens outside it get zeros.
    __device__ __forceinline__ void words(uint4 (&w)[C], int plane, int first, int stop, int i, int from) const {
        const int quad = 8 * i + quad_of(i, g);
        if (S::aligned && first == 0 && 32 * i + 32 <= stop) {
            const int at = plane + (quad >> 2) * (kKeyGroup * S::key_row) + t * 64 + (quad & 3) * 16;
#pragma unroll
            for (int k = 0; k < C; k++) w[k] = lds_all<uint4>(memory.keys + swizzled(at + 256 * (from + k)));
            return;
        }
        int at[4], step[4];
        bool inside[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int token = 4 * quad + e, group = token & ~(kKeyGroup - 1), begin = group > first ? group : first;
            const int end = group + kKeyGroup < stop ? group + kKeyGroup : stop;
            inside[e] = token >= first && token < stop;
            step[e] = 16 * (end - begin);
            at[e] = plane + (begin - first) * S::key_row + 4 * (token - begin) + step[e] / 4 * t;
        }
#pragma unroll
        for (int k = 0; k < C; k++) {
            uint32_t x[4];
#pragma unroll
            for (int e = 0; e < 4; e++)
                x[e] = inside[e] && (S::aligned || 4 * (from + k) + t < S::words)
                           ? lds<uint32_t>(memory.keys + swizzled(at[e] + step[e] * (from + k)))
                           : 0;
            w[k] = make_uint4(x[0], x[1], x[2], x[3]);
        }
    }

    // Integer products of tokens 32 i to 32 i + 31 in steps of the master code: tokens 0 and 1, and 2 and 3, of every
    // quad.
    __device__ __forceinline__ void products(int (&dots)[N][2][4], const uint32_t (&q)[N][K][2], const Pass& p,
                                             int i) const {
        clear(dots);
        if (S::key_planes == 2 && (S::key_base == 2 || 32 * i < p.fine_keys)) {
#pragma unroll
            for (int from = 0; from < K; from += C) {
                uint4 w[C], f[C];
                words(w, plane, 0, p.tokens, i, from);
                const int behind = p.tokens * S::key_row;
                const int fine_plane = plane + (S::key_refine && !p.plane_in_base ? aligned(behind) : behind);
                words(f, fine_plane, 0, p.key_split, i, from);
                if (S::key_refine && S::near && p.key_split < p.fine_keys) {
                    uint4 low[C];
                    words(low, fine_plane + p.k1_bytes, p.key_split, p.tokens, i, from);
#pragma unroll
                    for (int k = 0; k < C; k++) {
                        f[k].x |= low[k].x;
                        f[k].y |= low[k].y;
                        f[k].z |= low[k].z;
                        f[k].w |= low[k].w;
                    }
                }
                products_of_8_bits(dots, q, w, f, from);
            }
        } else {
            uint4 w[C];
            // Odd channels' sums are 16 fold as they lie, and even ones' are raised to that.
#pragma unroll
            for (int part = 0; part < 2; part++) {
                if (part) raise(dots);
#pragma unroll
                for (int from = 0; from < K; from += C) {
                    if (part == 0 || K > C) words(w, plane, 0, p.tokens, i, from);
                    products_of_4_bits(dots, q, w, part, from);
                }
            }
        }
    }

    // Both planes together: even channels of a word are one product's bytes, odd channels another's.
    static __device__ __forceinline__ void products_of_8_bits(int (&dots)[N][2][4], const uint32_t (&q)[N][K][2],
                                                              const uint4 (&w)[C], const uint4 (&f)[C], int from) {
        constexpr uint32_t top = 0xF0F0F0F0;
        auto even = [](uint32_t high, uint32_t low) { return mixed(high << 4, low, top); };
        auto odd = [](uint32_t high, uint32_t low) { return mixed(high, low >> 4, top); };
#pragma unroll
        for (int k = 0; k < C; k++) {
            const uint32_t e0 = even(w[k].x, f[k].x), o0 = odd(w[k].x, f[k].x);
            const uint32_t e1 = even(w[k].y, f[k].y), o1 = odd(w[k].y, f[k].y);
            const uint32_t e2 = even(w[k].z, f[k].z), o2 = odd(w[k].z, f[k].z);
            const uint32_t e3 = even(w[k].w, f[k].w), o3 = odd(w[k].w, f[k].w);
#pragma unroll
            for (int n = 0; n < N; n++) {
                mma<true>(dots[n][0], e0, e1, o0, o1, q[n][from + k][0], q[n][from + k][1]);
                mma<true>(dots[n][1], e2, e3, o2, o3, q[n][from + k][0], q[n][from + k][1]);
            }
        }
    }

    // Even channels of two words at a time, or odd ones, which are 16 fold as they lie.
    static __device__ __forceinline__ void products_of_4_bits(int (&dots)[N][2][4], const uint32_t (&q)[N][K][2],
                                                              const uint4 (&w)[C], int part, int from) {
        const uint32_t mask = part ? 0xF0F0F0F0 : 0x0F0F0F0F;
#pragma unroll
        for (int k = 0; k < C; k += 2) {
            const bool two = k + 1 < C;
            const uint4 u = w[k], v = two ? w[two ? k + 1 : k] : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const uint32_t b0 = q[n][from + k][part], b1 = two ? q[n][from + (two ? k + 1 : k)][part] : 0;
                mma<true>(dots[n][0], u.x & mask, u.y & mask, v.x & mask, v.y & mask, b0, b1);
                mma<true>(dots[n][1], u.z & mask, u.w & mask, v.z & mask, v.w & mask, b0, b1);
            }
        }
    }

    // Scores of this lane's tokens [row tile, 32 tokens, token of the quad], in steps of their row's integers and
    // without the centre; -inf where there is no token.
    __device__ __forceinline__ void scores(float (&x)[N][S::steps][4], const float (&total)[N], const Pass& p) const {
        uint32_t q[N][K][2];
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int k = 0; k < K; k++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    q[n][k][j] = lds<uint32_t>(query.bytes + (((n * K + k) * 2 + j) * 32 + lane) * 4);
#pragma unroll
        for (int i = 0; i < S::steps; i++) {
            if (32 * i >= p.tokens) {
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) x[n][i][e] = -INFINITY;
                continue;
            }
            int dots[N][2][4];
            products(dots, q, p, i);
            const int token = 32 * i + 4 * quad_of(i, g);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const uint2 h = scales(i, e);
                const float scale = half_float(h.x & 0xFFFF);
                const float centre = !S::refined || token + e < p.fine_keys ? a.key_centre_high : a.key_centre_low;
                const float zero = fma_(scale, centre, half_float(h.x >> 16));
#pragma unroll
                for (int n = 0; n < N; n++) {
                    const int dot = dots[n][e >> 1][2 * (e & 1)] * 256 + dots[n][e >> 1][2 * (e & 1) + 1];
                    x[n][i][e] = fma_(scale, (float)dot, zero * total[n]);
                }
                if (p.tokens < S::page && token + e >= p.tokens)
#pragma unroll
                    for (int n = 0; n < N; n++) x[n][i][e] = -INFINITY;
            }
        }
    }
};

}  // namespace leankv::cuda
