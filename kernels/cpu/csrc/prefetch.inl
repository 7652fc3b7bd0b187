// Asks for what will be read next.
#pragma once

#include "record.inl"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

// What takes how long, for each row: the products of one group of 16 tokens with eight channels of keys, with two
// vectors of channels of values, its scores, each of two steps to its weights. In dot products for AVX-512, roughly.
constexpr int kKeyWork = 4, kValueWork = 16, kScoreWork = 6, kWeightWork = 8;

// A group of tokens in those units.
LEANKV_INLINE int group_work(int dim, int channels) {
    return dim / 8 * kKeyWork + channels / (2 * W) * kValueWork + kScoreWork + 2 * kWeightWork;
}

// Lines of one stretch, asked for a few at a time while something is computed: a burst would stall what is computed.
struct Pace {
    static constexpr unsigned kUnit = 64;
    const uint8_t* at;
    int lines;
    unsigned share, credit;  // lines, in kUnit parts, that fall to one unit of work and that are due

    LEANKV_MEMBER void during(unsigned work) {
        credit += work * share;
        int due = int(credit / kUnit);
        credit %= kUnit;
        due = due < lines ? due : lines;
        lines -= due;
        for (; due > 0; due--, at += 64) __builtin_prefetch(at, 0, 3);
    }
};

// What a head's far view will read, in pieces that lie together in the pool. `work` is what will be computed meanwhile.
struct Prefetch {
    static constexpr int kPieces = 32;
    const uint8_t* from[kPieces];
    int lines[kPieces];
    int pieces, piece;
    Pace pace;

    LEANKV_MEMBER Prefetch(const Record* next, int h, const HeadPlace& place, int work) : pieces(0), piece(0), pace{} {
        if (!next) return;
        const int32_t* head = next->head(h);
        const Sizes& sizes = place.sizes;
        add(*next, head[kHeadBase], sizes.base, place.base);
        if (next->level() >= kLevelFar) add(*next, head[kHeadRefine], sizes.refine, place.refine);
        pace.share = unsigned(sizes.base + sizes.refine) / 64 * Pace::kUnit / unsigned(work) + 1;
    }

    // A stretch of a record.
    LEANKV_MEMBER void add(const Record& record, int offset, int bytes, const uint8_t* found) {
        const int block = int(record.shape.block_bytes), end = offset + bytes, before = offset & 63;
        offset -= before;
        if (found && pieces < kPieces) {
            from[pieces] = found - before, lines[pieces++] = (before + bytes + 63) / 64;
            return;
        }
        while (offset < end && pieces < kPieces) {
            const int here = block - (offset & (block - 1)), n = end - offset < here ? end - offset : here;
            const uint8_t* at = record.at(offset);
            if (pieces && at == from[pieces - 1] + 64 * lines[pieces - 1])
                lines[pieces - 1] += (n + 63) / 64;
            else
                from[pieces] = at, lines[pieces++] = (n + 63) / 64;
            offset += n;
        }
    }

    // What a loop takes along, in registers, and gives back.
    LEANKV_MEMBER Pace take() {
        if (!pace.lines && piece < pieces) pace.at = from[piece], pace.lines = lines[piece++];
        return pace;
    }
};

}  // namespace
}  // namespace leankv::LEANKV_NS
