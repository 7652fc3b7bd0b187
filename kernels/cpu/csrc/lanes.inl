// Bytes and words between memory and the lanes of vectors, whatever codes are in them.
#pragma once

#include "gemm.inl"
#include "kernels.h"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

LEANKV_INLINE int round_up(int n, int to) { return (n + to - 1) / to * to; }
LEANKV_INLINE int clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

// Vectors that hold the channels of a head, and what channel a lane of them holds: decoding values leaves channels in
// the order that interleaving bytes gives, and only the final output is put straight.
LEANKV_INLINE int channel_vectors(int head_dim) { return 4 * ((head_dim + 4 * W - 1) / (4 * W)); }
LEANKV_INLINE int channel_of(int vector, int lane) {
    return 4 * W * (vector / 4) + 16 * (lane / 4) + 4 * (vector % 4) + lane % 4;
}

constexpr int kMaxChannels = kMaxDim + 64;  // room for those, one row's behind another's on other lines of a cache

// Lanes first .. first + count - 1 of a panel's 16, from words of which lane 0 would be at p; the others are zero.
LEANKV_INLINE vi load_lanes(const uint8_t* p, [[maybe_unused]] int sub, int first, int count) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_maskz_loadu_epi32(__mmask16(((1u << count) - 1) << first), p);
#elif defined(__AVX2__)
    const vi lane = lane_ids() + sub * W;
    const vi mask = (lane >= first) & (lane < first + count);
    return (vi)_mm256_maskload_epi32(reinterpret_cast<const int*>(p) + sub * W, (__m256i)mask);
#else
    vi out{};
    for (int i = 0; i < W; i++)
        if (const int lane = sub * W + i; lane >= first && lane < first + count) {
            int32_t word;
            std::memcpy(&word, p + 4 * lane, 4);
            out[i] = word;
        }
    return out;
#endif
}

// From four rows of 4 W channels to half of four vectors of words, the byte of row k in byte k of a word.
LEANKV_INLINE void interleave(const uint8_t* const rows[4], int offset, int half, vi out[2]) {
#if defined(__AVX512VNNI__)
    __m512i r[4];
    for (int k = 0; k < 4; k++) r[k] = (__m512i)loadi(rows[k] + offset);
    const __m512i a = half ? _mm512_unpackhi_epi8(r[0], r[1]) : _mm512_unpacklo_epi8(r[0], r[1]);
    const __m512i b = half ? _mm512_unpackhi_epi8(r[2], r[3]) : _mm512_unpacklo_epi8(r[2], r[3]);
    out[0] = (vi)_mm512_unpacklo_epi16(a, b), out[1] = (vi)_mm512_unpackhi_epi16(a, b);
#elif defined(__AVX2__)
    __m256i r[4];
    for (int k = 0; k < 4; k++) r[k] = (__m256i)loadi(rows[k] + offset);
    const __m256i a = half ? _mm256_unpackhi_epi8(r[0], r[1]) : _mm256_unpacklo_epi8(r[0], r[1]);
    const __m256i b = half ? _mm256_unpackhi_epi8(r[2], r[3]) : _mm256_unpacklo_epi8(r[2], r[3]);
    out[0] = (vi)_mm256_unpacklo_epi16(a, b), out[1] = (vi)_mm256_unpackhi_epi16(a, b);
#else
    for (int v = 0; v < 2; v++)
        for (int i = 0; i < W; i++) {
            const int c = offset + channel_of(2 * half + v, i);
            out[v][i] = int32_t(uint32_t(rows[0][c]) | uint32_t(rows[1][c]) << 8 | uint32_t(rows[2][c]) << 16 |
                                uint32_t(rows[3][c]) << 24);
        }
#endif
}

alignas(64) constexpr uint8_t kZeros[2 * kMaxDim] = {};

}  // namespace
}  // namespace leankv::LEANKV_NS
