// Where the data of one KV head lie in a record, as a warp reads them.
#pragma once

#include "shape.cuh"
#include "sizes.cuh"

namespace leankv::cuda {

struct Record {
    int first_block, counts, level, base, refine, near_at;
    int base_blocks, refine_blocks;  // this lane's entry of the block list, from the section's first block on
};

// One way through the tokens of a page: all far ones, or in the near view then the pruned ones.
struct Pass {
    int tokens;                  // 0: nothing to read
    int fine_keys, fine_values;  // so many of them, the first ones, are read with their refinement
    int key_split,
        value_split;  // refinement of tokens before these lies in its first piece, of the others in the second
    int k0, k0_bytes, k1, k1_bytes, k2, k2_bytes;  // keys: offsets in the record, and lengths, of up to three pieces
    int v0, v0_bytes, v1, v1_bytes, v2, v2_bytes;
    bool plane_in_base;  // the second plane lies behind the first
};

// Bytes of a value plane of tokens `first` to `stop`; see Span.value_byte in kernels/layout/places.py.
template <class S>
__device__ __forceinline__ int value_plane_bytes(int first, int stop) {
    return stop > first ? ((stop + kValueQuad - 1) / kValueQuad - first / kValueQuad) * S::value_dim : 0;
}

template <class S>
struct Records {
    const AttendArgs& a;
    const int lane;

    __device__ __forceinline__ const int* header(int block) const {
        return (const int*)(a.blocks + ((size_t)block << S::block_shift));
    }

    // A block list's entries from `first` on, one a lane.
    __device__ __forceinline__ int list(const Record& r, int first) const {
        const int at = first + lane, entries = a.head_word - a.list_word;
        return ldg(header(r.first_block) + a.list_word + (at < entries ? at : 0));
    }

    __device__ __forceinline__ Record open(int block, int head) const {
        const int* words = header(block);
        const int* of_head = words + a.head_word + kHeadWords * head;
        Record r;
        r.first_block = block;
        r.counts = ldg(of_head + kHeadCounts);
        r.base = ldg(of_head + kHeadBase);
        r.refine = ldg(of_head + kHeadRefine);
        r.near_at = ldg(of_head + kHeadNear);
        r.level = ldg(words + kWordLevel);
        return r;
    }

    __device__ __forceinline__ void lists(Record& r) const {
        r.base_blocks = list(r, r.base >> S::block_shift);
        if (S::refined) r.refine_blocks = list(r, r.refine >> S::block_shift);
    }

    // Far tokens, and how many of them, the first ones, have keys and values with refinement.
    struct Refined {
        int far, fine_keys, fine_values;
    };
    __device__ __forceinline__ Refined refined(const Record& r) const {
        const Counts counts = Counts::of(r.counts);
        return {counts.far(), counts.high + counts.mid * a.mid_keys_fine, counts.high + counts.mid * a.mid_values_fine};
    }

    __device__ __forceinline__ Pass far_tokens(const Record& r, bool near) const {
        const auto [far, fine_keys, fine_values] = refined(r);
        Pass p = {};
        p.tokens = far;
        p.k0 = r.base;
        p.k0_bytes = aligned(aligned(kScaleBytes * far) + S::key_base * far * S::key_row);
        p.v0 = r.base + p.k0_bytes;
        p.v0_bytes = S::value_base * value_plane_bytes<S>(0, far);
        p.plane_in_base = !S::refined;
        p.fine_keys = p.fine_values = p.key_split = p.value_split = far;
        if (S::refined) {
            const bool held = near || r.level >= kLevelFar;
            if (S::key_refine) p.key_split = held ? fine_keys : 0;
            if (S::value_refine) p.value_split = held ? fine_values : 0;
            p.k1 = r.refine;
            p.k1_bytes = aligned(S::key_refine * p.key_split * S::key_row);
            p.v1 = r.refine + aligned(S::key_refine * fine_keys * S::key_row);
            p.v1_bytes = held ? S::value_refine * value_plane_bytes<S>(0, fine_values) : 0;
            if (S::key_refine) p.fine_keys = near ? far : p.key_split;
            if (S::value_refine) p.fine_values = near ? far : p.value_split;
            if (near) {
                p.k2 = r.near_at;
                p.k2_bytes = aligned(S::key_refine * (far - fine_keys) * S::key_row);
                p.v2 = r.near_at + p.k2_bytes;
                p.v2_bytes = S::value_refine * value_plane_bytes<S>(fine_values, far);
            }
        }
        return p;
    }

    __device__ __forceinline__ Pass pruned_tokens(const Record& r) const {
        const auto [far, fine_keys, fine_values] = refined(r);
        const int low_keys = aligned(S::key_refine * (far - fine_keys) * S::key_row);
        const int low_values = S::value_refine * value_plane_bytes<S>(fine_values, far);
        Pass p = {};
        p.tokens = p.fine_keys = p.fine_values = p.key_split = p.value_split = S::page - far;
        p.plane_in_base = true;
        p.k0 = r.near_at + low_keys + low_values;
        p.k0_bytes = aligned(aligned(kScaleBytes * p.tokens) + S::key_planes * p.tokens * S::key_row);
        p.v0 = p.k0 + p.k0_bytes;
        p.v0_bytes = S::value_planes * value_plane_bytes<S>(0, p.tokens);
        return p;
    }
};

}  // namespace leankv::cuda
