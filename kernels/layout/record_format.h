// Written by `python -m leankv_kernels.layout.header` from the layout in Python: change it there, not here.
//
// The record's constants and the numbers of a layout, for C++ and CUDA; kernels/layout/__init__.py explains.
#pragma once

#include <cstdint>

// clang-format off
namespace leankv {

// Tier codes of the tier map, and their bits.
constexpr int kPruned = 0;
constexpr int kLow = 1;
constexpr int kHigh = 2;
constexpr int kMid = 3;
constexpr int kTierBits = 2;

// What a record still holds: base codes, refinement of far tokens too, everything.
constexpr int kLevelBase = 1;
constexpr int kLevelFar = 2;
constexpr int kLevelNear = 3;

// 32-bit words of the header.
constexpr int kWordPage = 0;
constexpr int kWordLayer = 1;
constexpr int kWordBlocks = 2;
constexpr int kWordBytes = 3;
constexpr int kWordLevel = 4;
constexpr int kWordMagic = 5;
constexpr int kHeaderWords = 8;
constexpr int kMagic = 0x564b4c31;

// 32-bit words of a KV head: counts of tokens, and the bytes where its sections start.
constexpr int kHeadCounts = 0;
constexpr int kHeadBase = 1;
constexpr int kHeadRefine = 2;
constexpr int kHeadNear = 3;
constexpr int kHeadWords = 4;

// The word of counts: high, mid and low tokens, so many bits each, lowest bits first.
constexpr int kCountBits = 10;
constexpr int kCountMask = 1023;

// Bytes: at multiples of which runs start and the header ends; of a token's four scales.
constexpr int kAlign = 16;
constexpr int kHeaderAlign = 64;
constexpr int kScaleBytes = 8;

// Codes: bits of the master code and of a plane; tokens and channels that lie together in one.
constexpr int kMasterBits = 8;
constexpr int kKeyPlaneBits = 4;
constexpr int kValuePlaneBits = 2;
constexpr int kKeyGroup = 16;
constexpr int kKeyWord = 8;
constexpr int kValueQuad = 4;

// The longest page and the widest head, of keys or of values.
constexpr int kMaxPage = 256;
constexpr int kMaxDim = 512;

// A record layout in numbers: RecordShape of kernels/layout/shape.py, which explains. X(type, name).
#define LEANKV_RECORD_SHAPE(X) \
    X(int64_t, page_size) \
    X(int64_t, heads) \
    X(int64_t, head_dim) \
    X(int64_t, v_head_dim) \
    X(int64_t, key_base_bits) \
    X(int64_t, value_base_bits) \
    X(int64_t, key_refine_bits) \
    X(int64_t, value_refine_bits) \
    X(int64_t, near) \
    X(int64_t, mid_keys_fine) \
    X(int64_t, mid_values_fine) \
    X(int64_t, block_bytes) \
    X(int64_t, block_shift) \
    X(int64_t, max_blocks) \
    X(int64_t, header_bytes) \
    X(int64_t, list_word) \
    X(int64_t, head_word) \
    X(int64_t, tier_map_start) \
    X(int64_t, centre_start) \
    X(double, key_step) \
    X(double, key_centre_high) \
    X(double, key_centre_low) \
    X(double, value_step) \
    X(double, value_centre_high) \
    X(double, value_centre_low)

struct RecordShape {
    int64_t page_size;
    int64_t heads;
    int64_t head_dim;
    int64_t v_head_dim;
    int64_t key_base_bits;
    int64_t value_base_bits;
    int64_t key_refine_bits;
    int64_t value_refine_bits;
    int64_t near;
    int64_t mid_keys_fine;
    int64_t mid_values_fine;
    int64_t block_bytes;
    int64_t block_shift;
    int64_t max_blocks;
    int64_t header_bytes;
    int64_t list_word;
    int64_t head_word;
    int64_t tier_map_start;
    int64_t centre_start;
    double key_step;
    double key_centre_high;
    double key_centre_low;
    double value_step;
    double value_centre_high;
    double value_centre_low;
};

}  // namespace leankv
// clang-format on
