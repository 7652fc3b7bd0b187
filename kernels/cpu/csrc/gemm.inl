// Products of 8-bit codes with 16-bit numbers, exact in 32 bits, so that no order of summation shows in the result.
//
// A panel holds 16 lanes (tokens for keys, channels for values): per step 64 bytes, four codes for each lane. A row
// holds per step the four numbers that meet them.
#pragma once

#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

constexpr int kPanel = 16;
constexpr int kStepBytes = 64;
constexpr int kPanelVectors = kPanel / W;
// 127 * 256: the largest number whose two halves fit signed bytes. Times 255, times 256 terms, it stays below 2^31;
// half of it does for 512.
constexpr int kOne = 32512;
// What stands for a weight of 1. The rounding of scores, up to a million of them, cannot carry it over kOne.
constexpr int kWeightOne = 30000;

#if defined(__AVX512VNNI__)
constexpr int kTileRows = 4, kTileVectors = 2;
constexpr bool kBytes = true;  // dot products take bytes
#else
constexpr int kTileRows = 2, kTileVectors = 2;
constexpr bool kBytes = false;
#endif

// Four numbers of one row as the dot product wants them: on VNNI the upper half of each and the lower
// (signed bytes, x = 256 a + b), otherwise the even and the odd ones (signed 16 bits).
struct Quad {
    int32_t a, b;
};

LEANKV_INLINE int32_t join_bytes(int p, int q, int r, int s) {
    return int32_t(uint32_t(p & 255) | uint32_t(q & 255) << 8 | uint32_t(r & 255) << 16 | uint32_t(s & 255) << 24);
}

LEANKV_INLINE Quad pack_quad(int x0, int x1, int x2, int x3) {
#if defined(__AVX512VNNI__)
    const int a0 = (x0 + 128) >> 8, a1 = (x1 + 128) >> 8, a2 = (x2 + 128) >> 8, a3 = (x3 + 128) >> 8;
    const int b0 = x0 - 256 * a0, b1 = x1 - 256 * a1, b2 = x2 - 256 * a2, b3 = x3 - 256 * a3;
    return {join_bytes(a0, a1, a2, a3), join_bytes(b0, b1, b2, b3)};
#else
    return {int32_t(uint32_t(x0 & 0xffff) | uint32_t(x2) << 16), int32_t(uint32_t(x1 & 0xffff) | uint32_t(x3) << 16)};
#endif
}

// The largest number that nibble_pair takes.
constexpr int kNibbleOne = 30000;

// Two numbers that meet the lower (x) and the upper (y) four-bit codes of a byte, brought to multiples of 16 plus what
// makes them x = 256 a + b and y = 256 c + 16 b with a, b and c signed bytes. The products then take three dots for two
// codes and not four: of b with whole bytes, which counts the upper code 16 times, of a and of c with one code each.
// Either number changes by 8 at most.
LEANKV_INLINE void nibble_pair(vi& x, vi& y, vi& c) {
    const vi upper = (y + 8) >> 4, rest = upper & 15;
    x = rest + ((x - rest + 8) & ~15);
    y = 16 * upper;
    const vi b = x - (((x + 128) >> 8) << 8);
    c = (upper - b) >> 4;
}

// Added to a number from 0 to kOne it leaves the number, rounded, in the lowest bits, as pack_weights takes it.
#if defined(__AVX512VNNI__)
constexpr float kRound = 12582912.0f + 128.0f;  // byte 1 is then the rounded upper half
#else
constexpr float kRound = 12582912.0f;
#endif

// The quads of 16 numbers that kRound was added to: quad i holds numbers i, 4 + i, 8 + i, 12 + i.
LEANKV_INLINE void pack_weights(const vi* bits, Quad* out) {
#if defined(__AVX512VNNI__)
    const __m512i v = _mm512_xor_si512((__m512i)bits[0], _mm512_set1_epi32(0x80));
    // Of each four numbers the halves of the first two, then those of the other two; all the first; then bytes in turn.
    const __m512i halves = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 5, 0, 4, 9, 13, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m512i apart = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m256i turn =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15));
    const __m512i x = _mm512_permutexvar_epi32(apart, _mm512_shuffle_epi8(v, halves));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_shuffle_epi8(_mm512_castsi512_si256(x), turn));
#else
    int32_t w[kPanel];
    for (int i = 0; i < kPanelVectors; i++) storei(w + i * W, bits[i] - as_int(splat(kRound)));
    for (int i = 0; i < 4; i++) out[i] = pack_quad(w[i], w[4 + i], w[8 + i], w[12 + i]);
#endif
}

struct Codes {
    vi a, b;
};

LEANKV_INLINE Codes split_codes(vi codes) {
#if defined(__AVX512VNNI__)
    return {codes, codes};
#else
    return {codes & 0x00ff00ff, shift_right(codes, 8) & 0x00ff00ff};
#endif
}

LEANKV_INLINE vi dot(vi sum, vi codes, int32_t numbers) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(numbers));
#elif defined(__AVX2__)
    return sum + (vi)_mm256_madd_epi16((__m256i)codes, _mm256_set1_epi32(numbers));
#elif defined(__SSE2__)
    return sum + (vi)_mm_madd_epi16((__m128i)codes, _mm_set1_epi32(numbers));
#else
    const vi low = splati(int16_t(numbers & 0xffff)), high = splati(numbers >> 16);
    return sum + (codes & 0xffff) * low + shift_right(codes, 16) * high;
#endif
}

LEANKV_INLINE vi combine(vi a, vi b) {
#if defined(__AVX512VNNI__)
    return (a << 8) + b;
#else
    return a + b;
#endif
}

template <int ROWS, int VECTORS>
LEANKV_INLINE void multiply_tile(const uint8_t* codes, const size_t* at, int steps, const Quad* rows, size_t row_stride,
                                 int32_t* out, size_t out_stride) {
    vi a[ROWS][VECTORS], b[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) a[r][v] = b[r][v] = vi{};
    for (int s = 0; s < steps; s++) {
        Codes c[VECTORS];
        for (int v = 0; v < VECTORS; v++) c[v] = split_codes(loadi(codes + at[v] + size_t(s) * kStepBytes));
        for (int r = 0; r < ROWS; r++) {
            const Quad q = rows[r * row_stride + s];
            for (int v = 0; v < VECTORS; v++) {
                a[r][v] = dot(a[r][v], c[v].a, q.a);
                b[r][v] = dot(b[r][v], c[v].b, q.b);
            }
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) storei(out + r * out_stride + v * W, combine(a[r][v], b[r][v]));
}

template <int ROWS>
LEANKV_INLINE void multiply_rows(const uint8_t* codes, int panels, int steps, const Quad* rows, size_t row_stride,
                                 int32_t* out, size_t out_stride) {
    const int vectors = panels * kPanelVectors;
    auto place = [&](int v) {
        return size_t(v / kPanelVectors) * steps * kStepBytes + size_t(v % kPanelVectors) * (4 * W);
    };
    int v = 0;
    for (; v + kTileVectors <= vectors; v += kTileVectors) {
        size_t at[kTileVectors];
        for (int i = 0; i < kTileVectors; i++) at[i] = place(v + i);
        multiply_tile<ROWS, kTileVectors>(codes, at, steps, rows, row_stride, out + v * W, out_stride);
    }
    for (; v < vectors; v++) {
        const size_t at = place(v);
        multiply_tile<ROWS, 1>(codes, &at, steps, rows, row_stride, out + v * W, out_stride);
    }
}

// Calls f<ROWS>() for a number of rows of one tile.
template <class F>
LEANKV_INLINE void with_rows(int rows, F f) {
    switch (rows) {
        case 1:
            return f.template operator()<1>();
        case 2:
            return f.template operator()<2>();
#if defined(__AVX512VNNI__)
        case 3:
            return f.template operator()<3>();
        case 4:
            return f.template operator()<4>();
#endif
    }
}

// out[r][16 p + lane] = sum over steps and the four codes of codes * numbers; panels of `steps` steps each.
// `count` is at most kTileRows.
static inline void multiply(const uint8_t* codes, int panels, int steps, const Quad* rows, size_t row_stride, int count,
                            int32_t* out, size_t out_stride) {
    with_rows(count, [&]<int ROWS>() { multiply_rows<ROWS>(codes, panels, steps, rows, row_stride, out, out_stride); });
}

// Adds the products of N vectors of codes with one quad per row, which is loaded once for all of them.
template <int ROWS, int N>
LEANKV_INLINE void accumulate(const vi* codes, const Quad* quads, size_t row_stride, vi (*a)[N], vi (*b)[N]) {
    Codes c[N];
    for (int n = 0; n < N; n++) c[n] = split_codes(codes[n]);
    for (int r = 0; r < ROWS; r++) {
        const Quad q = quads[r * row_stride];
        for (int n = 0; n < N; n++) a[r][n] = dot(a[r][n], c[n].a, q.a);
        for (int n = 0; n < N; n++) b[r][n] = dot(b[r][n], c[n].b, q.b);
    }
}

}  // namespace
}  // namespace leankv::LEANKV_NS
