// Causal attention inside raw open pages, with column scores, for prefill and decode alike; and the merge of two
// states.
//
// A block takes some queries of a tile and one KV head. Scores: a thread a token, channels in order; outputs: a thread
// two channels, tokens in order, in PARTS interleaved sums. So a row's bits depend on its own position alone. The work
// is bounded by the page; it is a small part of a forward and uses no tensor cores.
#pragma once

#include "numbers.cuh"

namespace leankv::cuda {

constexpr float kColumnOne = 4194304.0f;  // 2^22, COLUMN_SCORE_ONE

// A number of a raw key or value brought into the range of halves.
__device__ __forceinline__ float in_range(float x) { return fminf(fmaxf(x, -(float)kHalfMax), (float)kHalfMax); }

template <int DIM, int GROUP, int QUERIES, int PAGE, int VALUE_DIM = DIM>
struct OpenShape {
    static constexpr int dim = DIM, value_dim = VALUE_DIM, group = GROUP, queries = QUERIES, page = PAGE;
    static constexpr int threads = 128, warps = 4;
    static constexpr int rows = GROUP * QUERIES, padded = (rows + 3) / 4 * 4;
    static constexpr int tokens = (PAGE + threads - 1) / threads;  // of a thread
    static constexpr int lanes = VALUE_DIM / 2 < threads ? VALUE_DIM / 2 : threads, parts = threads / lanes;
    static constexpr int strips = (VALUE_DIM / 2 + lanes - 1) / lanes;  // of two channels a lane
    static constexpr int query_bytes = 4 * rows * DIM, part_bytes = 4 * parts * rows * VALUE_DIM;
    static constexpr int first_bytes = query_bytes > part_bytes ? query_bytes : part_bytes;
    static constexpr int weight_bytes = 4 * PAGE * padded;
    static constexpr int shared_bytes = first_bytes + weight_bytes + 4 * (warps + 2) * padded;
    static_assert(rows <= 16 && DIM % 16 == 0 && VALUE_DIM % 16 == 0 && PAGE <= 256);
    static_assert(shared_bytes <= 49152);
};

struct OpenArgs {
    const void* q;                // [T, heads * group, dim]
    const void *key, *value;      // [R, page, heads, dim], the same of value_dim, strided
    int* scores;                  // [R, heads * group, page]
    const long long* at;          // [U], the raw page of a tile
    const long long* tiles;       // [U, 5], see plan.py
    const long long* token_tile;  // [T]
    float* out;                   // [T, heads * group, value_dim]
    float* lse;                   // [T, heads * group]
    long long key_page, value_page;
    int key_token, key_head, value_token, value_head;
    int q_dtype, raw_dtype, heads, parts;  // a KV head's query heads are so many heads here, see attend_split
    int alone;     // whether one block has all queries of a tile, and so writes what begins a page
    float factor;  // scale * log2(e)
    float cap;     // of scores, in base 2; 0 for none
};

template <class S>
__device__ __forceinline__ void attend_open(const OpenArgs& a) {
    const long long number = ldg(a.token_tile + blockIdx.y), *tile = a.tiles + 5 * number;
    const int rank = (int)(blockIdx.y - ldg(tile)), left = (int)ldg(tile + 2) - rank, head = blockIdx.x;
    const int raw_head = head / a.parts;
    if (rank % S::queries) return;
    const int queries = left > S::queries ? S::queries : left, rows = queries * S::group;
    const int first = (int)ldg(tile + 1) + rank, last = first + queries - 1;  // positions of the queries in the page
    const int me = threadIdx.x, lane = me & 31, warp = me >> 5;
    char *shared = shared_memory(), *weights = shared + S::first_bytes, *sums = weights + S::weight_bytes;
    char* of_warps = sums + 8 * S::padded;  // [padded, warps]; before: peak and sum a row
    auto row_at = [&](int r) {
        return (((long long)blockIdx.y + r / S::group) * a.heads + head) * S::group + r % S::group;
    };
    for (int i = me; i < rows * S::dim; i += S::threads)
        sts<float>(shared + 4 * i, number_at(a.q, row_at(i / S::dim) * S::dim + i % S::dim, a.q_dtype) * a.factor);
    __syncthreads();

    const long long page = ldg(a.at + number);
    float x[S::tokens][S::rows];
#pragma unroll
    for (int i = 0; i < S::tokens; i++) {
        const int token = me + S::threads * i;
#pragma unroll
        for (int r = 0; r < S::rows; r++) x[i][r] = 0;
        if (token <= last) {
            const long long from = page * a.key_page + (long long)token * a.key_token + raw_head * a.key_head;
            float none = 0;  // or NaN, where the key is not finite
#pragma unroll 1
            for (int c = 0; c < S::dim; c += 8) {
                float k[8];
                numbers_at<8>(k, a.key, from + c, a.raw_dtype);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    none = fma_(k[j], 0.0f, none);
                    k[j] = in_range(k[j]);
                }
#pragma unroll
                for (int r = 0; r < S::rows; r++)
#pragma unroll
                    for (int j = 0; j < 8; j += 4) {
                        const uint4 q = lds<uint4>(shared + 4 * (r * S::dim + c + j));
                        x[i][r] = fma_(bits_float(q.x), k[j], x[i][r]);
                        x[i][r] = fma_(bits_float(q.y), k[j + 1], x[i][r]);
                        x[i][r] = fma_(bits_float(q.z), k[j + 2], x[i][r]);
                        x[i][r] = fma_(bits_float(q.w), k[j + 3], x[i][r]);
                    }
            }
#pragma unroll
            for (int r = 0; r < S::rows; r++) {
                x[i][r] += none;
                if (a.cap != 0.0f) x[i][r] = capped(x[i][r], a.cap);
            }
        }
#pragma unroll
        for (int r = 0; r < S::rows; r++)
            if (token > first + r / S::group || r >= rows) x[i][r] = -INFINITY;
    }

    // Peaks, then weights and their sums; over warps in order.
    float peak[S::rows];
#pragma unroll
    for (int r = 0; r < S::rows; r++) {
        peak[r] = x[0][r];
        if (S::tokens > 1) peak[r] = fmaxf(peak[r], x[S::tokens - 1][r]);
        for (int m = 1; m < 32; m *= 2) peak[r] = fmaxf(peak[r], shfl_xor(peak[r], m));
        if (lane == 0) sts<float>(of_warps + 4 * (r * S::warps + warp), peak[r]);
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < S::rows; r++) {
        peak[r] = -INFINITY;
#pragma unroll
        for (int w = 0; w < S::warps; w++) peak[r] = fmaxf(peak[r], lds<float>(of_warps + 4 * (r * S::warps + w)));
        if (me == 0) sts<float>(sums + 8 * r, peak[r]);
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < S::rows; r++) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < S::tokens; i++) {
            x[i][r] = r < rows ? ex2(x[i][r] - peak[r]) : 0.0f;
            sum += x[i][r];
        }
        for (int m = 1; m < 32; m *= 2) sum += shfl_xor(sum, m);
        if (lane == 0) sts<float>(of_warps + 4 * (r * S::warps + warp), sum);
    }
#pragma unroll
    for (int i = 0; i < S::tokens; i++) {
        const int token = me + S::threads * i;
        if (token >= S::page) continue;
#pragma unroll
        for (int r = 0; r < S::rows; r++) sts<float>(weights + 4 * (token * S::padded + r), x[i][r]);
    }
    __syncthreads();
    float total[S::rows];
#pragma unroll
    for (int r = 0; r < S::rows; r++) {
        total[r] = 0;
#pragma unroll
        for (int w = 0; w < S::warps; w++) total[r] += lds<float>(of_warps + 4 * (r * S::warps + w));
        if (me == 0) sts<float>(sums + 8 * r + 4, total[r]);
    }

    // What every key received, in fixed point: exact in any order.
    const bool begins = a.alone && ldg(tile + 1) == 0;
#pragma unroll
    for (int h = 0; h < S::group; h++) {
#pragma unroll
        for (int i = 0; i < S::tokens; i++) {
            const int token = me + S::threads * i;
            if (token >= S::page || (token > last && !begins)) continue;
            int sum = 0;
#pragma unroll
            for (int j = 0; j < S::queries; j++)
                if (j < queries) {
                    const float share = x[i][j * S::group + h] / total[j * S::group + h] * kColumnOne;
                    sum += is_finite(share) ? round_int(share) : 0;
                }
            int* to = a.scores + ((page * a.heads + head) * S::group + h) * S::page + token;
            if (begins)
                *to = sum;
            else
                atomic_add(to, sum);
        }
    }

    // Outputs: tokens part, part + parts, ...; the parts in order.
    const int part = me / S::lanes;
#pragma unroll 1
    for (int strip = 0; strip < S::strips; strip++) {
        const int channel = 2 * (me % S::lanes + strip * S::lanes);
        float out[S::rows][2];
#pragma unroll
        for (int r = 0; r < S::rows; r++) out[r][0] = out[r][1] = 0;
        if (part < S::parts && channel < S::value_dim) {
#pragma unroll 4
            for (int token = part; token <= last; token += S::parts) {
                const long long from = page * a.value_page + (long long)token * a.value_token + raw_head * a.value_head;
                float v[2];
                if (a.raw_dtype == kFloat32) {
                    const uint2 w = ldg((const uint2*)((const float*)a.value + from + channel));
                    v[0] = bits_float(w.x), v[1] = bits_float(w.y);
                } else {
                    const uint32_t w = ldg((const uint32_t*)((const uint16_t*)a.value + from + channel));
                    v[0] = number_of(w & 0xFFFF, a.raw_dtype), v[1] = number_of(w >> 16, a.raw_dtype);
                }
                const float none = fma_(v[0], 0.0f, v[1] * 0.0f);
                v[0] = in_range(v[0]), v[1] = in_range(v[1]);
#pragma unroll
                for (int r = 0; r < S::rows; r++) {
                    const float weight = lds<float>(weights + 4 * (token * S::padded + r));
                    out[r][0] = fma_(weight, v[0], out[r][0]);
                    out[r][1] = fma_(weight, v[1], out[r][1]);
                }
                // What is not finite is for those alone that read it; the weights of others are 0.
                if (none != none)
#pragma unroll
                    for (int r = 0; r < S::rows; r++)
                        if (token <= first + r / S::group) out[r][0] = out[r][1] = none;
            }
#pragma unroll
            for (int r = 0; r < S::rows; r++) {
                sts<float>(shared + 4 * ((part * S::rows + r) * S::value_dim + channel), out[r][0]);
                sts<float>(shared + 4 * ((part * S::rows + r) * S::value_dim + channel + 1), out[r][1]);
            }
        }
    }
    __syncthreads();
    for (int i = me; i < rows * S::value_dim; i += S::threads) {
        const int r = i / S::value_dim, c = i % S::value_dim;
        float sum = 0;
#pragma unroll
        for (int p = 0; p < S::parts; p++) sum += lds<float>(shared + 4 * ((p * S::rows + r) * S::value_dim + c));
        const float whole = lds<float>(sums + 8 * r + 4);
        a.out[row_at(r) * S::value_dim + c] = sum / whole;
        if (c == 0) a.lse[row_at(r)] = (lds<float>(sums + 8 * r) + lg2(whole)) * 0.69314718f;
    }
}

// Zeroes the column scores of tiles that begin their page, where several blocks add to them. Grid: tiles.
template <class S>
__device__ __forceinline__ void begin_pages(const OpenArgs& a) {
    if (ldg(a.tiles + 5 * blockIdx.x + 1)) return;
    const int length = a.heads * S::group * S::page;
    int* page = a.scores + ldg(a.at + blockIdx.x) * length;
    for (int i = threadIdx.x; i < length; i += S::threads) page[i] = 0;
}

}  // namespace leankv::cuda

#ifdef LEANKV_KERNEL
using S = leankv::cuda::OpenShape<LEANKV_SHAPE>;
LEANKV_KERNEL(attend_open, OpenArgs, S::threads, 1, S::shared_bytes)
LEANKV_KERNEL(begin_pages, OpenArgs, S::threads, 1, 0)
#endif
