// Values of a page: channels are the rows of integer products, quads of tokens their inner dimension, weights the
// columns.
//
// The four tokens of a byte are not neighbours there: all 32 quads of a page are one inner dimension of 32, and token j
// of every quad is one product.
#pragma once

#include "weights.cuh"

namespace leankv::cuda {

// The softmax state of a warp over the pages that it has read, and its rows' outputs, channels 16 c + 2 g and + 1.
template <class S>
struct State {
    static constexpr int N = S::row_tiles, C = S::channel_tiles;
    float peak[N], sum[N], zeros[N], out[N][C][2];
    float decay[N], gain[N];  // of what is there and of what comes

    __device__ __forceinline__ void begin() {
#pragma unroll
        for (int n = 0; n < N; n++) {
            peak[n] = -INFINITY;
            sum[n] = zeros[n] = 0;
#pragma unroll
            for (int c = 0; c < C; c++) out[n][c][0] = out[n][c][1] = 0;
        }
    }

    __device__ __forceinline__ void take(const Weights<S>& w) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float higher = fmaxf(peak[n], w.peak[n]);
            const float up = ex2(w.peak[n] - higher);
            decay[n] = ex2(peak[n] - higher);
            peak[n] = higher;
            sum[n] = fma_(sum[n], decay[n], w.sum[n] * up);
            zeros[n] = fma_(zeros[n], decay[n], w.zeros[n] * up);
            // Sums are in steps of the master code over 4, where there is one plane.
            gain[n] = up * w.step[n] * (S::value_planes == 1 ? 16.0f : 1.0f);
        }
    }
};

template <class S>
struct Values {
    static constexpr int N = S::row_tiles, C = S::channel_tiles;
    const PageMemory& memory;
    const int lane, g;

    __device__ __forceinline__ void add(State<S>& state, const Weights<S>& weights, const Pass& p) const {
        // Rows of ldmatrix: matrices 0 and 1 hold the first four sets, 2 and 3 the others; pairs of rows are a set's.
        const int row = lane & 7, matrix = lane >> 3, i = (row & 1) + 2 * (matrix & 1);
        const int quad = 8 * i + quad_of(i, (row >> 1) + 4 * (matrix >> 1));
        const int quads = (p.tokens + kValueQuad - 1) / kValueQuad, at = (quad < quads ? quad : 0) * S::dim;
        int fine_at = at + quads * S::dim, low_at = 0;
        bool fine_inside = true, low_inside = false;
        if (S::value_refine && !p.plane_in_base) {
            fine_at = p.v0_bytes + quad * S::dim;
            fine_inside = kValueQuad * quad < p.value_split;
            low_at = p.v0_bytes + p.v1_bytes + (quad - p.value_split / kValueQuad) * S::dim;
            low_inside = quad < quads && kValueQuad * (quad + 1) > p.value_split;
        }
        const bool two = S::value_planes == 2 && (S::value_base == 2 || p.fine_values > 0);
        const bool pieces = S::value_refine && S::near && p.value_split < p.fine_values;
#pragma unroll
        for (int c = 0; c < C; c++) {
            uint32_t u[4];
            channels(u, memory.values + swizzled(at + 16 * c));
            int dots[N][2][4], shift;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int m = 0; m < 2; m++)
#pragma unroll
                    for (int j = 0; j < 4; j++) dots[n][m][j] = 0;
            if (two) {
                uint32_t f[4];
                channels(f, S::value_refine && !fine_inside ? memory.zero : memory.values + swizzled(fine_at + 16 * c));
                if (pieces) {
                    uint32_t low[4];
                    channels(low, low_inside ? memory.values + swizzled(low_at + 16 * c) : memory.zero);
#pragma unroll
                    for (int m = 0; m < 4; m++) f[m] |= low[m];
                }
                products_of_4_bits(dots, u, f, weights);
                shift = 16;
            } else {
                products_of_2_bits(dots, u, weights);
                shift = 4;
            }
            fold(state, dots, c, shift, two);
        }
    }

  private:
    // Bytes of 16 channels and all quads: register m has channel g (even m) or g + 8 of the sets t (m < 2) or t + 4.
    static __device__ __forceinline__ void channels(uint32_t (&u)[4], const char* row) {
        uint32_t r[4];
        ldmatrix4_trans(r, row);
#pragma unroll
        for (int m = 0; m < 4; m++) u[m] = prmt(r[m & 2], r[(m & 2) + 1], m & 1 ? 0x7531 : 0x6420);
    }

    // Codes of 4 bits: tokens 0 and 2, and 1 and 3, of every quad; the second of each are 16 fold as they lie.
    static __device__ __forceinline__ void products_of_4_bits(int (&dots)[N][2][4], const uint32_t (&u)[4],
                                                              const uint32_t (&f)[4], const Weights<S>& w) {
        constexpr uint32_t low = 0x0F0F0F0F, high = 0xF0F0F0F0, top = 0xCCCCCCCC;
        uint32_t even[4], odd[4];
#pragma unroll
        for (int m = 0; m < 4; m++) {
            even[m] = mixed(u[m] << 2, f[m], top);
            odd[m] = mixed(u[m], f[m] >> 2, top);
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            product(dots[n][0], even, 0, low, w.bytes[n][0]);
            product(dots[n][1], even, 0, high, w.bytes[n][2]);
            product(dots[n][0], odd, 0, low, w.bytes[n][1]);
            product(dots[n][1], odd, 0, high, w.bytes[n][3]);
        }
    }

    // Codes of 2 bits: tokens 1 and 3 of every quad are 4 fold as they lie.
    static __device__ __forceinline__ void products_of_2_bits(int (&dots)[N][2][4], const uint32_t (&u)[4],
                                                              const Weights<S>& w) {
        constexpr uint32_t low = 0x03030303, high = 0x0C0C0C0C;
#pragma unroll
        for (int n = 0; n < N; n++) {
            product(dots[n][0], u, 0, low, w.bytes[n][0]);
            product(dots[n][1], u, 0, high, w.bytes[n][1]);
            product(dots[n][0], u, 4, low, w.bytes[n][2]);
            product(dots[n][1], u, 4, high, w.bytes[n][3]);
        }
    }

    static __device__ __forceinline__ void product(int (&dots)[4], const uint32_t (&u)[4], int shift, uint32_t mask,
                                                   const uint32_t (&w)[2]) {
        mma<false>(dots, u[0] >> shift & mask, u[1] >> shift & mask, u[2] >> shift & mask, u[3] >> shift & mask, w[0],
                   w[1]);
    }

    static __device__ __forceinline__ void fold(State<S>& state, const int (&dots)[N][2][4], int c, int shift,
                                                bool two) {
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int upper = dots[n][0][2 * j] * shift + dots[n][1][2 * j];
                int lower = dots[n][0][2 * j + 1] * shift + dots[n][1][2 * j + 1];
                if (S::value_planes == 2 && !two) upper *= 16, lower *= 16;  // to steps of two planes
                state.out[n][c][j] =
                    fma_((float)(upper * 256 + lower), state.gain[n], state.out[n][c][j] * state.decay[n]);
            }
    }
};

}  // namespace leankv::cuda
