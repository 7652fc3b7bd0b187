// Rows to 8-bit codes: rotated and quantized in float64, bit for bit as the reference does (reference/codec.py).
#pragma once

#include "halves.inl"
#include "kernels.h"
#include "planes.inl"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

typedef uint8_t vb __attribute__((vector_size(W / 2)));
constexpr int kDoubles = W / 2;

// Bits with which rows are read, at least and at most.
struct Bits {
    int fewest, most;
};

// Of what of a row's codes is not read with few bits, and with more bits: sum and sum of squares.
struct Sums {
    int32_t wide, narrow, wide_squares, narrow_squares;
};

LEANKV_INLINE Sums sums_of(const uint8_t* codes, int dim, Bits bits) {
    Sums sums{};
    const int wide = (1 << (kMasterBits - bits.fewest)) - 1, narrow = (1 << (kMasterBits - bits.most)) - 1;
#if defined(__AVX512VNNI__)
    // Parts of codes are below 64, so that they are numbers with a sign as well.
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sum[2] = {}, squares[2] = {};
    for (int c = 0; c < dim; c += 64) {
        const __mmask64 inside = dim - c < 64 ? (__mmask64(1) << (dim - c)) - 1 : ~__mmask64(0);
        const __m512i code = _mm512_maskz_loadu_epi8(inside, codes + c);
        const __m512i parts[2] = {_mm512_and_si512(code, _mm512_set1_epi8(char(wide))),
                                  _mm512_and_si512(code, _mm512_set1_epi8(char(narrow)))};
        for (int i = 0; i < 2; i++) {
            sum[i] = _mm512_dpbusd_epi32(sum[i], parts[i], ones);
            squares[i] = _mm512_dpbusd_epi32(squares[i], parts[i], parts[i]);
        }
    }
    sums.wide = sum_lanes((vi)sum[0]), sums.wide_squares = sum_lanes((vi)squares[0]);
    sums.narrow = sum_lanes((vi)sum[1]), sums.narrow_squares = sum_lanes((vi)squares[1]);
#else
    for (int c = 0; c < dim; c++) {
        const int32_t far = codes[c] & wide, near = codes[c] & narrow;
        sums.wide += far, sums.wide_squares += far * far;
        sums.narrow += near, sums.narrow_squares += near * near;
    }
#endif
    return sums;
}

// Codes of a rotated row, by products with 1 / step or by quotients; whether the products' rounding was beyond doubt.
template <bool DIVIDE>
LEANKV_INLINE bool round_codes(const double* x, int dim, double zero, double step, uint8_t* codes) {
    const double magic = 6755399441055744.0;  // 1.5 * 2^52: rounds to the nearest integer, ties to even
    const double inverse = 1.0 / step;
    vd worst{};
    for (int c = 0; c < dim; c += kDoubles) {
        const vd above = load(x + c) - zero, exact = DIVIDE ? above / step : above * inverse;
        const vd bits = exact + magic, off = exact - (bits - magic), size = off < 0.0 ? -off : off;
        worst = size > worst ? size : worst;
#if defined(__AVX512VNNI__)
        const vb bytes = (vb)_mm_cvtsi128_si64(_mm512_cvtepi64_epi8((__m512i)bits));
#else
        const vb bytes = __builtin_convertvector((vl)bits, vb);
#endif
        std::memcpy(codes + c, &bytes, sizeof(bytes));
    }
    double largest = worst[0];
    for (int i = 1; i < kDoubles; i++) largest = worst[i] > largest ? worst[i] : largest;
    return largest < 0.4999999;
}

typedef uint16_t vw __attribute__((vector_size(2 * W)));
typedef uint16_t vw_any __attribute__((vector_size(2 * W), aligned(1), may_alias));

// The largest size among raw rows of one head, a stride apart, as bits of the dtype; beyond an infinity's for a NaN.
static uint32_t largest_size(const void* raw, size_t row, size_t stride, int rows, int dim, int dtype) {
    uint32_t largest = 0;
    if (dtype == kFloat32) {
        const vi sizes = splati(0x7fffffff);
        vi most{};
        for (int t = 0; t < rows; t++, row += stride)
            for (int c = 0; c < dim; c += W) {
                const vi size = loadi(static_cast<const float*>(raw) + row + c) & sizes;
                most = size > most ? size : most;
            }
        for (int i = 0; i < W; i++) largest = uint32_t(most[i]) > largest ? uint32_t(most[i]) : largest;
        return largest;
    }
    const uint16_t all = 0x7fff;
    const vw sizes = all - vw{};
    vw most{};
    for (int t = 0; t < rows; t++, row += stride)
        for (int c = 0; c < dim; c += W) {
            const vw size = *reinterpret_cast<const vw_any*>(static_cast<const uint16_t*>(raw) + row + c) & sizes;
            most = size > most ? size : most;
        }
    for (int i = 0; i < W; i++) largest = most[i] > largest ? most[i] : largest;
    return largest;
}

// Bits of an infinity, and of a size of 64.
LEANKV_INLINE uint32_t infinite(int dtype) {
    return dtype == kFloat32 ? 0x7f800000 : dtype == kFloat16 ? 0x7c00 : 0x7f80;
}
LEANKV_INLINE uint32_t sixty_four(int dtype) {
    return dtype == kFloat32 ? 0x42800000 : dtype == kFloat16 ? 0x5400 : 0x4280;
}

// Reads a row into doubles, what is not finite as zeros; whether all of it was finite, which may be known.
LEANKV_INLINE bool widen(const void* raw, size_t row, int dim, int dtype, bool finite, double* x) {
    alignas(64) float narrow[kMaxDim];
    vf off{};
    if (finite)
        for (int c = 0; c < dim; c += W) store(narrow + c, load_as_float(raw, row + c, dtype));
    else
        for (int c = 0; c < dim; c += W) {
            const vf v = load_as_float(raw, row + c, dtype), none = v - v;  // 0 or NaN
            off = off + none;
            store(narrow + c, as_float(as_int(v) & (none == vf{})));
        }
    for (int c = 0; c < dim; c++) x[c] = narrow[c];
    return sum_lanes(off) == 0.0f;
}

// The centre of a raw page's keys of one head, whose largest size is known (see reference/codec.py): as halves, and
// what those say.
static void find_centre(const CommitArgs& a, int64_t n, int h, uint32_t largest, uint16_t* halves, double* centre) {
    const int dim = int(a.shape.head_dim);
    const int64_t page = a.shape.page_size, heads = a.shape.heads;
    constexpr double kSteps = 65536.0, magic = 6755399441055744.0;  // 1.5 * 2^52
    int64_t sum[kMaxDim] = {};
    auto row = [&](int64_t t) { return ((size_t(n) * page + t) * heads + h) * dim; };
    if (page <= 256 && largest < sixty_four(a.dtype)) {
        // Of 256 such numbers the sum fits, and each is rounded as a double is, since a power of two only moves it.
        alignas(64) int32_t steps[kMaxDim] = {};
        for (int64_t t = 0; t < page; t++)
            for (int c = 0; c < dim; c += W) {
                const vf v = load_as_float(a.key, row(t) + c, a.dtype) * float(kSteps);
                storei(steps + c, loadi(steps + c) + round_to_int(v));
            }
        for (int c = 0; c < dim; c++) sum[c] = steps[c];
    } else {
        alignas(64) double x[kMaxDim];
        for (int64_t t = 0; t < page; t++) {
            widen(a.key, row(t), dim, a.dtype, largest < infinite(a.dtype), x);
            for (int c = 0; c < dim; c++) {
                const double clamped = x[c] > kHalfMax ? kHalfMax : x[c] < -kHalfMax ? -kHalfMax : x[c];
                sum[c] += int64_t((clamped * kSteps + magic) - magic);
            }
        }
    }
    for (int c = 0; c < dim; c++) centre[c] = double(sum[c]) / (kSteps * double(page));
    const double norm = a.rotated ? rotate(centre, dim) : 1.0;
    for (int c = 0; c < dim; c++) {
        const double mean = centre[c] * norm;
        halves[c] = half_nearest(float(mean > kHalfMax ? kHalfMax : mean < -kHalfMax ? -kHalfMax : mean));
        centre[c] = half_value(halves[c]);
    }
}

struct Row {
    uint8_t* codes;
    uint16_t scale, zero;
    bool saturated, finite;
};

// Codes a row over a range; in the order of the reference's operations.
static void code_range(const double* x, int dim, double low, double high, Row& row) {
    row.zero = half_floor(low);
    const double from = half_value(row.zero), wanted = (high - from) / 255.0;
    row.scale = wanted == 0.0 ? 0 : half_floor(-wanted) ^ 0x8000;
    const double given = half_value(row.scale), step = given > 0.0 ? given : 1.0;
    // A product may fall on the other side of a tie than the reference's quotient.
    if (!round_codes<false>(x, dim, from, step, row.codes)) round_codes<true>(x, dim, from, step, row.codes);
}

// Whether channels are off from what is read of them, in bins of `last` + 1 codes, by more than chance explains
// (reference/codec.py); of what is not read of them there are the sum and the sum of squares.
LEANKV_INLINE bool strays(int64_t sum, int64_t squares, int dim, int last) {
    const int64_t aside = 2 * sum - dim * last, off = 4 * squares - 4 * last * sum + int64_t(dim) * last * last;
    const int64_t even = int64_t(dim) * last * (last + 2);
    return 3 * aside * aside > 4 * even || 12 * off > 5 * even;
}

LEANKV_INLINE bool strays(const Sums& sums, int dim, Bits bits) {
    const int wide = (1 << (kMasterBits - bits.fewest)) - 1, narrow = (1 << (kMasterBits - bits.most)) - 1;
    return strays(sums.wide, sums.wide_squares, dim, wide) ||
           (narrow && narrow != wide && strays(sums.narrow, sums.narrow_squares, dim, narrow));
}

// Of a row from what is read of it, squared, in halves of a code; exact.
LEANKV_INLINE double distance(const Row& row, int dim, Bits bits) {
    const int wide = (1 << (kMasterBits - bits.fewest)) - 1, narrow = (1 << (kMasterBits - bits.most)) - 1;
    int32_t sum = 0;
    for (int c = 0; c < dim; c++) {
        const int32_t far = 2 * (row.codes[c] & wide) - wide, near = 2 * (row.codes[c] & narrow) - narrow;
        sum += far * far + near * near;
    }
    const double scale = half_value(row.scale);
    return double(sum) * (scale * scale);
}

// Codes a row again over a range that brings the bulk of its channels to the centre of a widest bin, and keeps
// what is read closer (reference/codec.py).
static void code_bulk_at_centre(const double* x, int dim, double low, double high, Bits bits, Row& row) {
    const int width = 1 << (kMasterBits - bits.fewest), rest = dim - 2, most = (1 << kMasterBits) - 1;
    int bulk = -most;
    for (int c = 0; c < dim; c++) bulk += row.codes[c];
    const bool upper = 2 * bulk > most * rest;
    if (upper) bulk = most * rest - bulk;
    const int narrow = bits.most > bits.fewest ? 1 << (kMasterBits - bits.most) : 0;
    const int first = width - 1 - narrow, past = 2 * bulk - (1 + first) * rest;
    const int bin = 2 * width * rest;
    const int centre = first + 2 * width * (past > 0 ? (past + bin - 1) / bin : 0);  // in halves of a code
    const int way = centre * rest - 2 * bulk;
    if (way <= 0) return;  // the same range again
    const double share = double(way) / double(rest * (2 * most - centre));
    const double extension = share * (double(most) * half_value(row.scale)), below = low - extension;
    alignas(64) uint8_t codes[kMaxDim];
    Row other{codes};
    const double from = upper ? low : below < -kHalfMax ? -kHalfMax : below;
    code_range(x, dim, from, upper ? high + extension : high, other);
    if (!(distance(other, dim, bits) < distance(row, dim, bits))) return;
    std::memcpy(row.codes, codes, size_t(dim));
    row.scale = other.scale, row.zero = other.zero;
}

// Quantizes one row, less the centre if there is one, to 8-bit codes.
static void quantize(const CommitArgs& a, const void* raw, size_t at, int dim, const double* centre, Bits bits,
                     bool finite, Row& row) {
    alignas(64) double x[kMaxDim];
    row.finite = widen(raw, at, dim, a.dtype, finite, x);
    const double norm = a.rotated ? rotate(x, dim) : 1.0;
    vd low = vd{} + __builtin_inf(), high = -low;
    for (int c = 0; c < dim; c += kDoubles) {
        vd v = load(x + c) * norm;
        if (centre) v -= load(centre + c);
        v += 0.0;  // no negative zeros: one value, one code
        store(x + c, v);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    double least = low[0], most = high[0];
    for (int i = 1; i < kDoubles; i++) {
        least = low[i] < least ? low[i] : least;
        most = high[i] > most ? high[i] : most;
    }
    row.saturated = least < -kHalfMax || most > kHalfMax;
    if (row.saturated) {
        auto saturate = [](double v) { return v > kHalfMax ? kHalfMax : v < -kHalfMax ? -kHalfMax : v; };
        for (int c = 0; c < dim; c++) x[c] = saturate(x[c]);
        least = saturate(least), most = saturate(most);
    }
    code_range(x, dim, least, most, row);
    if (bits.fewest < kMasterBits && strays(sums_of(row.codes, dim, bits), dim, bits))
        code_bulk_at_centre(x, dim, least, most, bits, row);
}

}  // namespace
}  // namespace leankv::LEANKV_NS
