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
            // Sums are of codes, scales are of steps of the master code.
            gain[n] = up * w.step[n] * (float)(1 << (kMasterBits - kValuePlaneBits * S::value_planes));
        }
    }
};

template <class S>
struct Values {
    static constexpr int N = S::row_tiles, C = S::channel_tiles;
    const PageMemory& memory;
    const int lane, g;

    __device__ __forceinline__ void add(State<S>& state, const Weights<S>& weights, const Pass& p) const {
        const bool fine = !S::value_refine || p.fine_values > 0;
        Rows rows[S::halves];
#pragma unroll
        for (int h = 0; h < S::halves; h++) rows[h].find(p, lane, h);
#pragma unroll
        for (int c = 0; c < C; c++) {
            int dots[N][2][4];
            clear(dots);
            // Where a plane or two are missing, so are their products: what is there is in larger steps.
            int planes;
            if (S::value_planes == 1 || (S::value_base == 1 && !fine)) {
                planes = 1;
#pragma unroll
                for (int h = 0; h < S::halves; h++) {
                    uint32_t u[4];
                    plane<0>(u, rows[h], p, c);
                    products_of_2_bits(dots, u, weights, h);
                }
            } else {
                planes = 2;
                pair<0>(dots, rows, p, c, weights);
                if (S::value_planes == 4 && (S::value_base == 4 || fine)) {
                    planes = 4;
                    raise(dots);
                    pair<2>(dots, rows, p, c, weights);
                }
            }
            fold(state, dots, c, planes);
        }
    }

  private:
    // The row of bytes that this lane names for ldmatrix, in the planes of the base and in both pieces of refinement.
    // Matrices 0 and 1 hold the first four sets of quads, 2 and 3 the others; pairs of rows are a set's.
    struct Rows {
        int at, stride, fine_at, fine_stride, low_at, low_stride;
        bool fine_inside, low_inside, pieces;

        __device__ __forceinline__ void find(const Pass& p, int lane, int half) {
            const int row = lane & 7, matrix = lane >> 3, i = (row & 1) + 2 * (matrix & 1);
            const int quad = 32 * half + 8 * i + quad_of(i, (row >> 1) + 4 * (matrix >> 1));
            const int quads = (p.tokens + kValueQuad - 1) / kValueQuad, split = p.value_split;
            const bool inside = quad < quads;
            at = (inside ? quad : 0) * S::value_dim;
            stride = quads * S::value_dim;
            fine_at = at + S::value_base * stride;
            fine_stride = stride;
            low_at = low_stride = 0;
            fine_inside = true;
            pieces = low_inside = false;
            if (S::value_refine && !p.plane_in_base) {
                fine_at = p.v0_bytes + quad * S::value_dim;
                fine_stride = (split + kValueQuad - 1) / kValueQuad * S::value_dim;
                fine_inside = kValueQuad * quad < split;
                low_at = p.v0_bytes + p.v1_bytes + (quad - split / kValueQuad) * S::value_dim;
                low_stride = (quads - split / kValueQuad) * S::value_dim;
                low_inside = inside && kValueQuad * (quad + 1) > split;
                pieces = S::near && split < p.fine_values;
            }
        }
    };

    // One plane's bytes of 16 channels and all quads: register m has channel g (even m) or g + 8 of the sets t (m < 2)
    // or t + 4.
    template <int P>
    __device__ __forceinline__ void plane(uint32_t (&u)[4], const Rows& rows, const Pass& p, int c) const {
        if (P < S::value_base || p.plane_in_base) {
            channels(u, memory.values + swizzled(rows.at + P * rows.stride + 16 * c));
            return;
        }
        constexpr int fine = P - S::value_base;
        channels(u, rows.fine_inside ? memory.values + swizzled(rows.fine_at + fine * rows.fine_stride + 16 * c)
                                     : memory.zero);
        if (!rows.pieces) return;
        uint32_t low[4];
        channels(low, rows.low_inside ? memory.values + swizzled(rows.low_at + fine * rows.low_stride + 16 * c)
                                      : memory.zero);
#pragma unroll
        for (int m = 0; m < 4; m++) u[m] |= low[m];
    }

    template <int P>
    __device__ __forceinline__ void pair(int (&dots)[N][2][4], const Rows (&rows)[S::halves], const Pass& p, int c,
                                         const Weights<S>& weights) const {
#pragma unroll
        for (int h = 0; h < S::halves; h++) {
            uint32_t u[4], f[4];
            plane<P>(u, rows[h], p, c);
            plane<P + 1>(f, rows[h], p, c);
            products_of_4_bits(dots, u, f, weights, h);
        }
    }

    static __device__ __forceinline__ void channels(uint32_t (&u)[4], const char* row) {
        uint32_t r[4];
        ldmatrix4_trans(r, row);
#pragma unroll
        for (int m = 0; m < 4; m++) u[m] = prmt(r[m & 2], r[(m & 2) + 1], m & 1 ? 0x7531 : 0x6420);
    }

    // Codes of 4 bits: tokens 0 and 2, and 1 and 3, of every quad; the second of each are 16 fold as they lie.
    static __device__ __forceinline__ void products_of_4_bits(int (&dots)[N][2][4], const uint32_t (&u)[4],
                                                              const uint32_t (&f)[4], const Weights<S>& w, int h) {
        constexpr uint32_t low = 0x0F0F0F0F, high = 0xF0F0F0F0, top = 0xCCCCCCCC;
        uint32_t even[4], odd[4];
#pragma unroll
        for (int m = 0; m < 4; m++) {
            even[m] = mixed(u[m] << 2, f[m], top);
            odd[m] = mixed(u[m], f[m] >> 2, top);
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            product(dots[n][0], even, 0, low, w.bytes[n][h][0]);
            product(dots[n][1], even, 0, high, w.bytes[n][h][2]);
            product(dots[n][0], odd, 0, low, w.bytes[n][h][1]);
            product(dots[n][1], odd, 0, high, w.bytes[n][h][3]);
        }
    }

    // Codes of 2 bits: tokens 1 and 3 of every quad are 4 fold as they lie.
    static __device__ __forceinline__ void products_of_2_bits(int (&dots)[N][2][4], const uint32_t (&u)[4],
                                                              const Weights<S>& w, int h) {
        constexpr uint32_t low = 0x03030303, high = 0x0C0C0C0C;
#pragma unroll
        for (int n = 0; n < N; n++) {
            product(dots[n][0], u, 0, low, w.bytes[n][h][0]);
            product(dots[n][1], u, 0, high, w.bytes[n][h][1]);
            product(dots[n][0], u, 4, low, w.bytes[n][h][2]);
            product(dots[n][1], u, 4, high, w.bytes[n][h][3]);
        }
    }

    static __device__ __forceinline__ void product(int (&dots)[4], const uint32_t (&u)[4], int shift, uint32_t mask,
                                                   const uint32_t (&w)[2]) {
        mma<false>(dots, u[0] >> shift & mask, u[1] >> shift & mask, u[2] >> shift & mask, u[3] >> shift & mask, w[0],
                   w[1]);
    }

    // The sum over a page of 256 of 8-bit codes times 16-bit weights is below 2^32.
    static __device__ __forceinline__ void fold(State<S>& state, const int (&dots)[N][2][4], int c, int planes) {
        const int shift = planes == 1 ? 2 : 4;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const uint32_t upper = (uint32_t)(dots[n][0][2 * j] + (dots[n][1][2 * j] >> shift));
                const uint32_t lower = (uint32_t)(dots[n][0][2 * j + 1] + (dots[n][1][2 * j + 1] >> shift));
                uint32_t sum = upper * 256 + lower;
                float scale = state.gain[n];
                if (planes < S::value_planes) scale *= (float)(1 << (2 * (S::value_planes - planes)));
                state.out[n][c][j] = fma_((float)sum, scale, state.out[n][c][j] * state.decay[n]);
            }
    }
};

}  // namespace leankv::cuda
