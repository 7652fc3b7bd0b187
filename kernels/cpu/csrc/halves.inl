// Numbers to half precision and back, as bits.
#pragma once

#include <cstring>

#include "kernels.h"
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
    const int32_t above = double(nearest) > x;
    bits += bits < 0 ? above : -above;
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

// The half nearest to x, ties to even; |x| <= 65504.
LEANKV_INLINE uint16_t half_nearest(float x) {
    const uint16_t below = half_floor(x);
    const double at = half_value(below), off = double(x) - at;
    if (off == 0.0) return below & 0x7fff ? below : 0;
    const uint16_t above = below == 0x8001 ? 0 : uint16_t(below & 0x8000 ? below - 1 : below + 1);
    const double rest = half_value(above) - double(x);
    return off < rest || (off == rest && !(below & 1)) ? below : above;
}

}  // namespace
}  // namespace leankv::LEANKV_NS
