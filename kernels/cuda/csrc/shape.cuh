// What a kernel is compiled for, and what it is told at run time.
#pragma once

#include "device.cuh"
#include "record_format.h"

namespace leankv::cuda {

// Shapes are template arguments. Planes are of 4 bits for keys and of 2 for values; there are at most two of a kind.
template <int DIM, int GROUP, int KEY_BASE, int VALUE_BASE, int KEY_REFINE, int VALUE_REFINE, int BLOCK_SHIFT,
          bool NEAR>
struct Shape {
    static constexpr int dim = DIM, group = GROUP, block_shift = BLOCK_SHIFT, block = 1 << BLOCK_SHIFT;
    static constexpr int page = 128, split_pages = 8, warps = 4;
    static constexpr int key_base = KEY_BASE, value_base = VALUE_BASE;
    static constexpr int key_refine = KEY_REFINE, value_refine = VALUE_REFINE;
    static constexpr int key_planes = KEY_BASE + KEY_REFINE, value_planes = VALUE_BASE + VALUE_REFINE;
    static constexpr bool near = NEAR, refined = KEY_REFINE || VALUE_REFINE;

    // Columns of a product are bytes of query rows: four rows in two bytes each.
    static constexpr int row_tiles = (GROUP + 3) / 4, rows = 4 * row_tiles;
    static constexpr int key_steps = (DIM + 31) / 32;  // of 32 channels, in key products
    static constexpr int channel_tiles = DIM / 16;     // of 16 channels, in value products
    static constexpr int words = DIM / kKeyWord;       // of a key in a plane

    static constexpr int key_row = DIM * kKeyPlaneBits / 8;  // bytes of a token's key in a plane
    static constexpr int key_plane = page * key_row;
    static constexpr int value_plane = page / kValueQuad * DIM;

    static __host__ __device__ constexpr int lines(int bytes) { return (bytes + 127) / 128 * 128; }

    // A warp holds 32 entries of a block list at a time; whether some section of a KV head lies over more blocks.
    static constexpr int longest(int a, int b) { return a > b ? a : b; }
    static constexpr int base_bytes = page * kScaleBytes + KEY_BASE * key_plane + VALUE_BASE * value_plane;
    static constexpr int pruned_bytes = NEAR ? page * kScaleBytes + key_planes * key_plane : 0;
    static constexpr bool long_lists = longest(base_bytes, pruned_bytes) + block > 32 * block;

    // Shared memory of a warp: the scales and keys of one page, its values, its centre.
    static constexpr int key_region = lines(page * kScaleBytes + key_planes * key_plane);
    static constexpr int value_region = lines(value_planes * value_plane + (VALUE_REFINE && NEAR ? DIM : 0));
    static constexpr int warp_bytes = key_region + value_region + lines(2 * DIM);

    // Shared by the block: the query's bytes as fragments want them, its integers, its steps and sums; zeros.
    static constexpr int query_bytes = row_tiles * key_steps * 2 * 128;
    static constexpr int query_row = 2 * DIM + 32, query_words = rows * query_row;
    static constexpr int common_bytes = lines(query_bytes + query_words + rows * 8 + 16);
    static constexpr int shared_bytes = warps * warp_bytes + common_bytes;

    static constexpr int multiprocessor_bytes = 233472;  // of compute capability 9.0
    static constexpr int fitting = multiprocessor_bytes / (shared_bytes + 1024), blocks = fitting > 4 ? 4 : fitting;

    static_assert(warp_bytes >= rows * (DIM + 2) * 4, "states are merged where pages were");
    static_assert(DIM % 32 == 0 && DIM <= kMaxDim, "runs of keys are then multiples of 16 bytes");
    static_assert(key_planes <= 2 && value_planes <= 2);
};

struct AttendArgs {
    const void* q;                // [T, heads * group, dim]
    const char* blocks;           // of the store
    const int* page_table;        // of this layer: first block by page
    const long long* pages;       // of the plan
    const long long* tiles;       // [U, 5], see plan.py
    const long long* token_tile;  // [T]
    float* out;                   // [T, heads * group, splits, dim]
    float* state;                 // [T, heads * group, splits, 2]: the largest score, base 2, and the sum
    int q_dtype;                  // 0: float32, 1: bfloat16, 2: float16
    int splits, heads, list_word, head_word, centre_start, near_pages, mid_keys_fine, mid_values_fine, rotation_block;
    float factor;  // scale * log2(e) / sqrt(rotation block)
    float key_centre_high, key_centre_low, value_centre_high, value_centre_low;
};

}  // namespace leankv::cuda
