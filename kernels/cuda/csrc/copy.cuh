// Bytes of scattered blocks into shared memory, asynchronously: 512 contiguous bytes an instruction of a warp.
#pragma once

#include "record.cuh"

namespace leankv::cuda {

// 16-byte chunks of a 128-byte line change places by the line's number, so that columns lie in different banks.
__device__ __forceinline__ int swizzled(int at) { return at ^ (at >> 3 & 0x70); }

// Where a warp keeps its page; offsets in keys and values are swizzled, those in the centre and in the scales, once put
// in order, are not.
struct PageMemory {
    char *keys, *values, *centre;
    const char* zero;  // 16 bytes
};

template <class S>
struct Copier {
    const Records<S>& records;
    const PageMemory& to;

    // Bytes [at, at + bytes) of a record, from `place` on in a region; this lane's entry is that of block `first` +
    // lane.
    __device__ __forceinline__ void piece(const Record& r, char* region, int place, int at, int bytes, int entry,
                                          int first) const {
        if (!S::long_lists) {
            blocks(region, place, at, bytes, entry, first);
            return;
        }
        for (;;) {
            const int there = ((first + 32) << S::block_shift) - at, part = bytes < there ? bytes : there;
            if (part > 0) {
                blocks(region, place, at, part, entry, first);
                place += part, at += part, bytes -= part;
            }
            if (bytes == 0) break;
            first += 32;
            entry = records.list(r, first);
        }
    }

    // The same where all blocks are among the entries.
    __device__ __forceinline__ void blocks(char* region, int place, int at, int bytes, int entry, int first) const {
        if (bytes == 0) return;
        if (S::block < 512 || S::block > 4096) {
            chunks(region, place, at, bytes, entry, first);
            return;
        }
        constexpr int parts = S::block / 512, round = 4;  // blocks of a round
        const int lane = in_register(records.lane), skip = at & (S::block - 1), here = lane * 16 - skip;
        const char* pool = in_register(records.a.blocks + lane * 16);
        // Of a lane in the first 512 bytes and in the second; swizzling repeats every 1,024.
        char* even = region + swizzled(place + here);
        char* odd = region + swizzled(place + here + 512) - 512;
        // Entries move down the lanes, so that a round finds its own always in the same ones.
        entry = shfl(entry, lane + (at >> S::block_shift) - first);
        // The block's bytes that lie before the piece are left out, and those behind it.
        const char* block = source(pool, entry, 0);
#pragma unroll
        for (int h = 0; h < parts; h++)
            if ((unsigned)(here + h * 512) < (unsigned)bytes)
                cp_async16((h & 1 ? odd : even) + h * 512, block + h * 512);
        int left = bytes - here;
#pragma unroll 1
        for (int behind = skip + bytes - S::block; behind > 0; behind -= round * S::block) {
#pragma unroll
            for (int b = 1; b <= round; b++) {
                block = source(pool, entry, b);
#pragma unroll
                for (int h = 0; h < parts; h++) {
                    const int to = b * S::block + h * 512;
                    if (to < left) cp_async16((to >> 9 & 1 ? odd : even) + to, block + h * 512);
                }
            }
            entry = shfl(entry, lane + round);
            even += round * S::block, odd += round * S::block, left -= round * S::block;
        }
    }

    // Where the block lies whose entry is that of a lane.
    static __device__ __forceinline__ const char* source(const char* pool, int entry, int lane) {
        return pool + (size_t)(unsigned)shfl(entry, lane) * S::block;
    }

    // The same 16 bytes a lane at a time, for the shortest and longest blocks, which few layouts have.
    __device__ __forceinline__ void chunks(char* region, int place, int at, int bytes, int entry, int first) const {
        for (int step = 0; step < bytes; step += 512) {
            const int here = step + 16 * records.lane, from = at + (here < bytes ? here : 0);
            const unsigned block = shfl(entry, (from >> S::block_shift) - first);
            if (here < bytes)
                cp_async16(region + swizzled(place + here),
                           records.a.blocks + (size_t)block * S::block + (from & (S::block - 1)));
        }
    }

    // A piece that begins in another block than the section: its list entries are asked for first.
    __device__ __forceinline__ void far_piece(const Record& r, char* region, int place, int at, int bytes) const {
        const int first = at >> S::block_shift;
        if (bytes) piece(r, region, place, at, bytes, records.list(r, first), first);
    }

    __device__ __forceinline__ void base_piece(const Record& r, bool pruned, char* region, int place, int at,
                                               int bytes) const {
        if (S::near && pruned)
            far_piece(r, region, place, at, bytes);
        else
            piece(r, region, place, at, bytes, r.base_blocks, r.base >> S::block_shift);
    }

    // Scales and keys of a pass, so that keys begin at one place whatever their number; and the centre.
    __device__ __forceinline__ void keys(const Record& r, const Pass& p, bool pruned, int head) const {
        if (!p.tokens) return;
        const int place = S::page * kScaleBytes - aligned(kScaleBytes * p.tokens);
        base_piece(r, pruned, to.keys, place, p.k0, p.k0_bytes);
        if (S::refined) {
            piece(r, to.keys, place + p.k0_bytes, p.k1, p.k1_bytes, r.refine_blocks, r.refine >> S::block_shift);
            if (S::near) far_piece(r, to.keys, place + p.k0_bytes + p.k1_bytes, p.k2, p.k2_bytes);
        }
#pragma unroll
        for (int part = 0; part < (S::dim + 255) / 256; part++) {
            const int eight = records.lane + 32 * part;
            const int at = records.a.centre_start + head * 2 * S::dim + 16 * eight;
            if (eight < S::dim / 8) {
                const int block = ldg(records.header(r.first_block) + records.a.list_word + (at >> S::block_shift));
                cp_async16(to.centre + 16 * eight, (const char*)records.header(block) + (at & (S::block - 1)));
            }
        }
    }

    __device__ __forceinline__ void values(const Record& r, const Pass& p, bool pruned) const {
        if (!p.tokens) return;
        base_piece(r, pruned, to.values, 0, p.v0, p.v0_bytes);
        if (S::refined) {
            piece(r, to.values, p.v0_bytes, p.v1, p.v1_bytes, r.refine_blocks, r.refine >> S::block_shift);
            if (S::near) far_piece(r, to.values, p.v0_bytes + p.v1_bytes, p.v2, p.v2_bytes);
        }
    }
};

}  // namespace leankv::cuda
