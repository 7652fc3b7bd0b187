// A row of a warp to 8-bit codes: rotated and quantized in float64, bit for bit as the reference does
// (kernels/reference/codec.py). Channel lane + 32 k is in x[k].
#pragma once

#include "numbers.cuh"

namespace leankv::cuda {

constexpr uint32_t kHalfNaN = 0x7E00;

__device__ __forceinline__ double within_halves(double x) {
    return x > kHalfMax ? kHalfMax : x < -kHalfMax ? -kHalfMax : x;
}

// The largest half that is at most x, as bits; |x| <= 65504.
__device__ __forceinline__ uint32_t half_floor(double x) {
    if (x == 0.0) return double_bits(x) >> 63 ? 0x8000 : 0;
    const bool negative = x < 0.0;
    const double magnitude = negative ? -x : x;
    uint32_t bits;
    bool exact;
    if (magnitude < 6.103515625e-05) {  // 2^-14
        const double steps = magnitude * 16777216.0;
        bits = (uint32_t)steps, exact = (double)bits == steps;
    } else {
        const uint64_t u = double_bits(magnitude);
        bits = (uint32_t)((((u >> 52) - 1008) << 10) | ((u >> 42) & 0x3ff));
        exact = (u & (((uint64_t)1 << 42) - 1)) == 0;
    }
    return negative ? (bits + (exact ? 0 : 1)) | 0x8000 : bits;
}

__device__ __forceinline__ double half_value(uint32_t h) { return (double)half_float((uint16_t)h); }

template <int K>
__device__ __forceinline__ void rotate_exactly(double (&x)[K], int block, double norm, int lane) {
#pragma unroll
    for (int span = 1; span < 32; span *= 2) {
        if (span >= block) break;
#pragma unroll
        for (int k = 0; k < K; k++) {
            const double other = shfl_xor(x[k], span);
            x[k] = lane & span ? less(other, x[k]) : add(x[k], other);
        }
    }
#pragma unroll
    for (int span = 1; span < K; span *= 2) {
        if (32 * span >= block) break;
#pragma unroll
        for (int k = 0; k < K; k++)
            if (!(k & span) && k + span < K) {
                const double low = x[k], high = x[k + span];
                x[k] = add(low, high);
                x[k + span] = less(low, high);
            }
    }
    if (block > 1)
#pragma unroll
        for (int k = 0; k < K; k++) x[k] = times(x[k], norm);
}

// Bits with which rows are read, at least and at most.
struct Bits {
    int fewest, most;
};

// A row of a warp, whose lanes have codes of channels lane + 32 k.
template <int DIM, int K>
struct Row {
    uint32_t codes[K];
    uint32_t scale, zero;  // halves

    // Codes over a range.
    __device__ __forceinline__ void code(const double (&x)[K], double low, double high) {
        zero = half_floor(low);
        const double from = half_value(zero), wanted = over(less(high, from), 255.0);
        scale = wanted == 0.0 ? 0 : half_floor(-wanted) ^ 0x8000;
        const double given = half_value(scale), step = given > 0.0 ? given : 1.0;
#pragma unroll
        for (int k = 0; k < K; k++) codes[k] = (uint32_t)rounded(over(less(x[k], from), step)) & 255;
    }

    template <class F>
    __device__ __forceinline__ int sum(int lane, F f) const {
        int sum = 0;
#pragma unroll
        for (int k = 0; k < K; k++)
            if (!(DIM % 32) || lane + 32 * k < DIM) sum += f((int)codes[k]);
        for (int m = 1; m < 32; m *= 2) sum += shfl_xor(sum, m);
        return sum;
    }

    // Whether it is off from what is read of it, in bins of `last` + 1 codes, by more than chance explains
    // (reference/codec.py).
    __device__ __forceinline__ bool strays(int last, int lane) const {
        const int aside = sum(lane, [&](int code) { return 2 * (code & last) - last; });
        const int squares =
            sum(lane, [&](int code) { return (2 * (code & last) - last) * (2 * (code & last) - last); });
        const unsigned even = DIM * (unsigned)(last * (last + 2));
        return 3u * (unsigned)(aside * aside) > 4u * even || 12u * (unsigned)squares > 5u * even;
    }

    __device__ __forceinline__ bool strays(Bits bits, int lane) const {
        const int wide = (1 << (kMasterBits - bits.fewest)) - 1, narrow = (1 << (kMasterBits - bits.most)) - 1;
        return strays(wide, lane) || (narrow != wide && strays(narrow, lane));
    }

    // From what is read of it, squared, in halves of a code; exact.
    __device__ __forceinline__ double distance(Bits bits, int lane) const {
        const int wide = (1 << (kMasterBits - bits.fewest)) - 1, narrow = (1 << (kMasterBits - bits.most)) - 1;
        const int off = sum(lane, [&](int code) {
            const int far = 2 * (code & wide) - wide, near = 2 * (code & narrow) - narrow;
            return far * far + near * near;
        });
        const double step = half_value(scale);
        return times((double)off, times(step, step));
    }
};

// By how much a row's range is extended so that the bulk of its channels comes to the centre of a widest bin:
// below if positive, else above.
template <int DIM, int K>
__device__ __forceinline__ double extension(const Row<DIM, K>& row, Bits bits, int lane) {
    constexpr int rest = DIM - 2;
    const int width = 1 << (kMasterBits - bits.fewest);
    int bulk = row.sum(lane, [](int code) { return code; }) - 255;
    const bool upper = 2 * bulk > 255 * rest;
    if (upper) bulk = 255 * rest - bulk;
    const int narrow = bits.most > bits.fewest ? 1 << (kMasterBits - bits.most) : 0;
    const int first = width - 1 - narrow, past = 2 * bulk - (1 + first) * rest;
    const int bin = 2 * width * rest;
    const int centre = first + 2 * width * (past > 0 ? (past + bin - 1) / bin : 0);  // in halves of a code
    const int way = centre * rest - 2 * bulk;
    const double share = over((double)(way > 0 ? way : 0), (double)(rest * (510 - centre)));
    const double by = times(share, times(255.0, half_value(row.scale)));
    return upper ? -by : by;
}

// Codes of a rotated row, again where it strays; whether a channel of this lane saturates.
template <int DIM, int K>
__device__ __forceinline__ Row<DIM, K> quantize(double (&x)[K], Bits bits, int lane, bool& saturated) {
    double low = kHalfMax, high = -kHalfMax;
#pragma unroll
    for (int k = 0; k < K; k++) {
        saturated |= x[k] > kHalfMax || x[k] < -kHalfMax;
        x[k] = add(within_halves(x[k]), 0.0);  // no negative zeros: one value, one code
        if (DIM % 32 && lane + 32 * k >= DIM) continue;
        low = x[k] < low ? x[k] : low;
        high = x[k] > high ? x[k] : high;
    }
    for (int m = 1; m < 32; m *= 2) {
        const double lower = shfl_xor(low, m), higher = shfl_xor(high, m);
        low = lower < low ? lower : low;
        high = higher > high ? higher : high;
    }
    Row<DIM, K> row;
    row.code(x, low, high);
    if (bits.fewest == kMasterBits || !row.strays(bits, lane)) return row;
    const double by = extension(row, bits, lane);
    Row<DIM, K> other;
    if (by < 0.0)
        other.code(x, low, less(high, by));
    else
        other.code(x, within_halves(less(low, by)), high);
    return other.distance(bits, lane) < row.distance(bits, lane) ? other : row;
}

}  // namespace leankv::cuda
