// Rows to 8-bit codes: rotated and quantized in float64, bit for bit as the reference does (reference/codec.py).
#pragma once

#include "kernels.h"
#include "planes.inl"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

constexpr uint16_t kHalfNaN = 0x7e00;

#if defined(__F16C__)
// The largest half that is at most x, as bits; |x| <= 65504. Without a branch, which signs would mislead: a half is a
// float, so the floor of a floor is the floor. Denormal floats may count as zero, so they are none.
LEANKV_INLINE uint16_t half_floor(double x) {
    x = x < 0.0 && x > -0x1p-24 ? -0x1p-24 : x;
    const float nearest = float(x);
    int32_t bits;
    std::memcpy(&bits, &nearest, 4);
    bits += double(nearest) > x ? (bits < 0 ? 1 : -1) : 0;
    float below;
    std::memcpy(&below, &bits, 4);
    return uint16_t(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(below), _MM_FROUND_TO_NEG_INF)));
}

LEANKV_INLINE double half_value(uint16_t h) { return double(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)))); }
#else
// The largest half that is at most x, as bits; |x| <= 65504.
LEANKV_INLINE uint16_t half_floor(double x) {
    if (x == 0.0) return __builtin_signbit(x) ? 0x8000 : 0;
    const bool negative = x < 0.0;
    const double magnitude = negative ? -x : x;
    uint16_t bits;
    bool exact;
    if (magnitude < 0x1p-14) {
        const double steps = magnitude * 0x1p24;
        const int whole = int(steps);
        bits = uint16_t(whole), exact = double(whole) == steps;
    } else {
        uint64_t u;
        std::memcpy(&u, &magnitude, 8);
        bits = uint16_t((((u >> 52) - 1008) << 10) | ((u >> 42) & 0x3ff));
        exact = (u & ((uint64_t(1) << 42) - 1)) == 0;
    }
    if (negative) bits = uint16_t((bits + (exact ? 0 : 1)) | 0x8000);
    return bits;
}

LEANKV_INLINE double half_value(uint16_t h) {
    const uint64_t exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    const uint64_t bits = (exponent + 1008) << 52 | mantissa << 42;
    double magnitude = double(mantissa) * 0x1p-24;
    if (exponent) std::memcpy(&magnitude, &bits, 8);
    return h & 0x8000 ? -magnitude : magnitude;
}
#endif

typedef uint8_t vb __attribute__((vector_size(W / 2)));
typedef int32_t vh __attribute__((vector_size(2 * W)));
typedef float vg __attribute__((vector_size(2 * W)));
constexpr int kDoubles = W / 2;

// Bits with which rows are read, at least and at most.
struct Bits {
    int fewest, most;
};

// Of a row's codes; and of what of them is not read with few bits, with more bits: sum and sum of squares.
struct Sums {
    int32_t codes, wide, narrow, wide_squares, narrow_squares;
};

// Codes of a rotated row, by products with 1 / step or by quotients, and their sums where they are read with fewer
// bits; whether the products' rounding was beyond doubt.
template <bool DIVIDE>
LEANKV_INLINE bool round_codes(const double* x, int dim, double zero, double step, Bits bits_read, uint8_t* codes,
                               Sums& sums) {
    const double magic = 6755399441055744.0;  // 1.5 * 2^52: rounds to the nearest integer, ties to even
    const double inverse = 1.0 / step;
    const vh wide = vh{} + ((1 << (kMasterBits - bits_read.fewest)) - 1);
    const vh narrow = vh{} + ((1 << (kMasterBits - bits_read.most)) - 1);
    vd worst{};
    vh all{}, wide_sum{}, narrow_sum{};
    vg wide_squares{}, narrow_squares{};  // exact: at most 2^20 a lane
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
        // From registers: what was stored in such small parts is not read again soon.
        const vh code = __builtin_convertvector((vl)bits, vh) & 255;
        const vh far = code & wide, near = code & narrow;
        const vg far_off = __builtin_convertvector(far, vg), near_off = __builtin_convertvector(near, vg);
        all += code;
        wide_sum += far;
        narrow_sum += near;
        wide_squares += far_off * far_off;
        narrow_squares += near_off * near_off;
    }
    const vh far = __builtin_convertvector(wide_squares, vh), near = __builtin_convertvector(narrow_squares, vh);
    sums = Sums{};
    for (int i = 0; i < kDoubles; i++) {
        sums.codes += all[i], sums.wide += wide_sum[i], sums.narrow += narrow_sum[i];
        sums.wide_squares += far[i], sums.narrow_squares += near[i];
    }
    double largest = worst[0];
    for (int i = 1; i < kDoubles; i++) largest = worst[i] > largest ? worst[i] : largest;
    return largest < 0.4999999;
}

// The half nearest to x, ties to even; |x| <= 65504.
LEANKV_INLINE uint16_t half_nearest(float x) {
    const uint16_t below = half_floor(x);
    const double at = half_value(below), off = double(x) - at;
    if (off == 0.0) return below & 0x7fff ? below : 0;
    const uint16_t above = below == 0x8001 ? 0 : uint16_t(below & 0x8000 ? below - 1 : below + 1);
    const double rest = half_value(above) - double(x);
    return off < rest || (off == rest && !(below & 1)) ? below : above;
}

// Reads a row into doubles, what is not finite as zeros; whether all of it was finite.
LEANKV_INLINE bool widen(const void* raw, size_t row, int dim, int dtype, double* x) {
    alignas(64) float narrow[kMaxDim];
    vf off{};
    for (int c = 0; c < dim; c += W) {
        const vf v = load_as_float(raw, row + c, dtype), none = v - v;  // 0 or NaN
        off = off + none;
        store(narrow + c, as_float(as_int(v) & (none == vf{})));
    }
    for (int c = 0; c < dim; c++) x[c] = narrow[c];
    return sum_lanes(off) == 0.0f;
}

// The centre of a raw page's keys of one head (see reference/codec.py): as halves, and what those say. Whether keys and
// values are finite.
static bool find_centre(const CommitArgs& a, int64_t n, int h, uint16_t* halves, double* centre) {
    const int dim = int(a.shape.head_dim);
    const int64_t page = a.shape.page_size, heads = a.shape.heads;
    constexpr double kSteps = 65536.0, magic = 6755399441055744.0;  // 1.5 * 2^52
    int64_t sum[kMaxDim] = {};
    alignas(64) double x[kMaxDim];
    bool finite = true;
    vf off{};
    for (int64_t t = 0; t < page; t++) {
        const size_t row = ((size_t(n) * page + t) * heads + h) * dim;
        for (int c = 0; c < dim; c += W) {
            const vf v = load_as_float(a.value, row + c, a.dtype);
            off = off + (v - v);
        }
        finite &= widen(a.key, row, dim, a.dtype, x);
        for (int c = 0; c < dim; c++) {
            const double clamped = x[c] > kHalfMax ? kHalfMax : x[c] < -kHalfMax ? -kHalfMax : x[c];
            sum[c] += int64_t((clamped * kSteps + magic) - magic);
        }
    }
    for (int c = 0; c < dim; c++) centre[c] = double(sum[c]) / (kSteps * double(page));
    const double norm = a.rotated ? rotate(centre, dim) : 1.0;
    for (int c = 0; c < dim; c++) {
        const double mean = centre[c] * norm;
        halves[c] = half_nearest(float(mean > kHalfMax ? kHalfMax : mean < -kHalfMax ? -kHalfMax : mean));
        centre[c] = half_value(halves[c]);
    }
    return finite && sum_lanes(off) == 0.0f;
}

struct Row {
    uint8_t* codes;
    uint16_t scale, zero;
    bool saturated, finite;
    Sums sums;
};

// Codes a row over a range; in the order of the reference's operations.
static void code_range(const double* x, int dim, double low, double high, Bits bits, Row& row) {
    row.zero = half_floor(low);
    const double from = half_value(row.zero), wanted = (high - from) / 255.0;
    row.scale = wanted == 0.0 ? 0 : half_floor(-wanted) ^ 0x8000;
    const double given = half_value(row.scale), step = given > 0.0 ? given : 1.0;
    // A product may fall on the other side of a tie than the reference's quotient.
    if (!round_codes<false>(x, dim, from, step, bits, row.codes, row.sums))
        round_codes<true>(x, dim, from, step, bits, row.codes, row.sums);
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
    return strays(sums.wide, sums.wide_squares, dim, wide) || strays(sums.narrow, sums.narrow_squares, dim, narrow);
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
    int bulk = row.sums.codes - most;
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
    code_range(x, dim,
               upper               ? low
               : below < -kHalfMax ? -kHalfMax
                                   : below,
               upper ? high + extension : high, bits, other);
    if (!(distance(other, dim, bits) < distance(row, dim, bits))) return;
    std::memcpy(row.codes, codes, size_t(dim));
    row.scale = other.scale, row.zero = other.zero;
}

// Quantizes one row, less the centre if there is one, to 8-bit codes.
static void quantize(const CommitArgs& a, const void* raw, size_t at, const double* centre, Bits bits, Row& row) {
    const int dim = int(a.shape.head_dim);
    alignas(64) double x[kMaxDim];
    row.finite = widen(raw, at, dim, a.dtype, x);
    const double norm = a.rotated ? rotate(x, dim) : 1.0;
    vd low = vd{} + kHalfMax, high = vd{} - kHalfMax, most_of_all{};
    for (int c = 0; c < dim; c += kDoubles) {
        vd v = load(x + c) * norm;
        if (centre) v -= load(centre + c);
        const vd size = v < 0.0 ? -v : v;
        most_of_all = size > most_of_all ? size : most_of_all;
        v = v > kHalfMax ? vd{} + kHalfMax : v < -kHalfMax ? vd{} - kHalfMax : v;
        v += 0.0;  // no negative zeros: one value, one code
        store(x + c, v);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    double least = low[0], most = high[0];
    row.saturated = false;
    for (int i = 0; i < kDoubles; i++) row.saturated |= most_of_all[i] > kHalfMax;
    for (int i = 1; i < kDoubles; i++) {
        least = low[i] < least ? low[i] : least;
        most = high[i] > most ? high[i] : most;
    }
    code_range(x, dim, least, most, bits, row);
    if (bits.fewest < kMasterBits && strays(row.sums, dim, bits)) code_bulk_at_centre(x, dim, least, most, bits, row);
}

}  // namespace
}  // namespace leankv::LEANKV_NS
