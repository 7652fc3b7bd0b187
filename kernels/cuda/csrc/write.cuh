// A record being written straight into its blocks: words of planes from codes in shared memory, scales, padding.
#pragma once

#include "quantize.cuh"
#include "sizes.cuh"

namespace leankv::cuda {

template <int DIM, int PAGE, int VALUE_DIM = DIM>
struct CommitShape {
    static constexpr int dim = DIM, value_dim = VALUE_DIM, page = PAGE, threads = 256, warps = 8;
    static constexpr int widest = DIM > VALUE_DIM ? DIM : VALUE_DIM, K = (DIM + 31) / 32;
    // One after the other keys' and values' codes, in the order of the record; scales; the keys' centre; places and
    // tiers of the tokens.
    static constexpr int code_bytes = PAGE * widest, scale_bytes = PAGE * kScaleBytes, centre_bytes = 8 * DIM;
    static constexpr int place_bytes = 2 * PAGE, tier_bytes = PAGE;
    static constexpr int shared_bytes = code_bytes + scale_bytes + centre_bytes + place_bytes + tier_bytes;
    static_assert(PAGE <= threads && widest <= scale_bytes, "a thread a token; a flag a channel where scales will be");
};

struct CommitArgs {
    RecordShape shape;
    char* blocks;
    int* page_table;  // of the first layer; the next one's is `table_stride` entries behind
    const int* ring;
    long long *ring_head, *ring_free, *usage;
    const long long *pages, *at;  // [n]: logical ids; which raw pages
    const void *key, *value;      // [layers, rows, page, heads, dim], the same of value_dim
    const uint8_t* tiers;         // [layers, n, heads, page]
    int* heads;                   // [layers, n, heads, 4]: the words of a KV head in the header
    int* records;                 // [layers, n, 3]: where its blocks begin in the ring, how many they are, its bytes
    int* arrivals;                // zero before and after
    double norm, value_norm;      // 1 / sqrt(rotation block)
    long long num_blocks, n, layers, rows, table_stride;
    int layer, dtype, rotation_block, value_rotation_block;
};

// A record being written, through blocks that lie one behind the other in the ring.
struct Writer {
    const CommitArgs& a;
    const int start;

    __device__ __forceinline__ int block(int i) const {
        const long long at = start + (long long)i;
        return ldg(a.ring + (at < a.num_blocks ? at : at - a.num_blocks));
    }
    __device__ __forceinline__ void word(int at, uint32_t value) const {
        const RecordShape& s = a.shape;
        char* to = a.blocks + ((long long)block(at >> s.block_shift) << s.block_shift);
        *(uint32_t*)(to + (at & (s.block_bytes - 1))) = value;
    }
    // Bytes [at, at + bytes), rounded up to what runs are aligned to, from the words that `f` gives; zeros behind them.
    template <class F>
    __device__ __forceinline__ void run(int at, int bytes, F f) const {
        for (int w = threadIdx.x; 4 * w < aligned(bytes); w += blockDim.x) word(at + 4 * w, 4 * w < bytes ? f(w) : 0);
    }
};

// Codes of one kind of data of one KV head, in shared memory by the tokens' order: far ones, then pruned ones.
template <class S>
struct Codes {
    const char *codes, *scales;
    const Writer& to;

    // Runs of tokens begin + first to begin + stop of the order, which count from 0 where far or pruned ones begin.
    __device__ __forceinline__ int key_plane(int at, int skip, int begin, int first, int stop) const {
        constexpr int words = S::dim / kKeyWord;  // of a token
        const int shift = kMasterBits - kKeyPlaneBits - skip, bytes = (stop - first) * words * 4;
        put(at, bytes, [&](int w) {
            const int group = (first + w / words) / kKeyGroup * kKeyGroup, from = group > first ? group : first;
            const int end = group + kKeyGroup < stop ? group + kKeyGroup : stop, side = end - from;
            const int inside = w - (from - first) * words, token = from + inside % side,
                      channel = inside / side * kKeyWord;
            const char* row = codes + (begin + token) * S::dim + channel;
            const uint2 eight = lds<uint2>(row);
            uint32_t word = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                word |= (eight.x >> 8 * j >> shift & 15) << 4 * j;
                word |= (eight.y >> 8 * j >> shift & 15) << (16 + 4 * j);
            }
            return word;
        });
        return at + bytes;
    }
    // Planes of `bits` bits below the top `skip`; returns where they end.
    __device__ __forceinline__ int keys(int at, int skip, int bits, int begin, int first, int stop) const {
        for (int done = 0; done < bits; done += kKeyPlaneBits) at = key_plane(at, skip + done, begin, first, stop);
        return at;
    }

    __device__ __forceinline__ int value_plane(int at, int skip, int begin, int first, int stop) const {
        const int shift = kMasterBits - kValuePlaneBits - skip, quad = first / kValueQuad;
        const int bytes = stop > first ? ((stop + kValueQuad - 1) / kValueQuad - quad) * S::value_dim : 0;
        put(at, bytes, [&](int w) {
            const int of = 4 * w / S::value_dim + quad, channel = 4 * w % S::value_dim;
            uint32_t word = 0;
#pragma unroll
            for (int j = 0; j < kValueQuad; j++) {
                const int token = kValueQuad * of + j;
                if (token < first || token >= stop) continue;
                word |= (lds<uint32_t>(codes + (begin + token) * S::value_dim + channel) >> shift & 0x03030303)
                        << 2 * j;
            }
            return word;
        });
        return at + bytes;
    }
    __device__ __forceinline__ int values(int at, int skip, int bits, int begin, int first, int stop) const {
        for (int done = 0; done < bits; done += kValuePlaneBits) at = value_plane(at, skip + done, begin, first, stop);
        return at;
    }

    // Two of the four arrays of scales: of keys, or of values.
    __device__ __forceinline__ void halves(int at, int which, int begin, int count) const {
        for (int i = threadIdx.x; i < 2 * count; i += S::threads) {
            const int array = i / count, token = i % count, to_byte = at + 2 * ((which + array) * count + token);
            const uint32_t half = lds<uint16_t>(scales + 4 * (begin + token) + 2 * array);
            const RecordShape& s = to.a.shape;
            char* block = to.a.blocks + ((long long)to.block(to_byte >> s.block_shift) << s.block_shift);
            *(uint16_t*)(block + (to_byte & (s.block_bytes - 1))) = (uint16_t)half;
        }
    }

  private:
    template <class F>
    __device__ __forceinline__ void put(int at, int bytes, F f) const {
        for (int w = threadIdx.x; 4 * w < bytes; w += S::threads) to.word(at + 4 * w, f(w));
    }
};

// Zeros from the end of what was written to the next multiple of what runs are aligned to.
template <class S>
__device__ __forceinline__ void pad(const Writer& record, int at, int bytes) {
    for (int b = at + bytes + 2 * (int)threadIdx.x; b < at + aligned(bytes); b += 2 * S::threads) {
        const RecordShape& s = record.a.shape;
        char* block = record.a.blocks + ((long long)record.block(b >> s.block_shift) << s.block_shift);
        *(uint16_t*)(block + (b & (s.block_bytes - 1))) = 0;
    }
}

}  // namespace leankv::cuda
