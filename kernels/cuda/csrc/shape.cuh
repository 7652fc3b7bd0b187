// What a kernel is compiled for, and what it is told at run time.
#pragma once

#include "device.cuh"
#include "record_format.h"

// The most dynamic shared memory that a block may have: of the compute capability that is compiled for (build.py).
#ifndef LEANKV_SHARED_BYTES
#define LEANKV_SHARED_BYTES 232448
#endif

namespace leankv::cuda {

__host__ __device__ constexpr int lines(int bytes) { return (bytes + 127) / 128 * 128; }
__host__ __device__ constexpr int most(int a, int b) { return a > b ? a : b; }

// Shapes are template arguments. Planes are of 4 bits for keys and of 2 for values, at most two for keys and four for
// values; a block takes QUERIES queries at a time. No bit of a row depends on QUERIES.
template <int DIM, int GROUP, int QUERIES, int PAGE, int KEY_BASE, int VALUE_BASE, int KEY_REFINE, int VALUE_REFINE,
          int BLOCK_SHIFT, bool NEAR, int VALUE_DIM = DIM>
struct Shape {
    static constexpr int dim = DIM, value_dim = VALUE_DIM, group = GROUP, queries = QUERIES, page = PAGE;
    static constexpr int block_shift = BLOCK_SHIFT, block = 1 << BLOCK_SHIFT;
    static constexpr int key_base = KEY_BASE, value_base = VALUE_BASE;
    static constexpr int key_refine = KEY_REFINE, value_refine = VALUE_REFINE;
    static constexpr int key_planes = KEY_BASE + KEY_REFINE, value_planes = VALUE_BASE + VALUE_REFINE;
    static constexpr bool near = NEAR, refined = KEY_REFINE || VALUE_REFINE;

    static constexpr int split_pages = 1024 / PAGE;    // by absolute number; SPLIT_TOKENS in attend.py
    static constexpr int steps = PAGE / 32;            // of 32 tokens
    static constexpr int halves = (PAGE + 127) / 128;  // of 128 tokens: the inner dimension of a value product

    // Columns of a product are bytes of query rows: four rows in two bytes each.
    static constexpr int max_rows = 16, row_tiles = (GROUP * QUERIES + 3) / 4, rows = 4 * row_tiles;
    static constexpr int key_steps = (DIM + 31) / 32;     // of 32 channels, in key products
    static constexpr int channel_tiles = VALUE_DIM / 16;  // of 16 channels, in value products
    static constexpr int value_steps = (VALUE_DIM + 31) / 32;
    static constexpr int words = DIM / kKeyWord;  // of a key in a plane

    static constexpr int key_row = DIM * kKeyPlaneBits / 8;  // bytes of a token's key in a plane
    static constexpr int key_plane = PAGE * key_row;
    static constexpr int value_plane = PAGE / kValueQuad * VALUE_DIM;
    static constexpr bool aligned = DIM % 32 == 0;  // whether planes of keys begin at multiples of 16 bytes
    static constexpr bool value_aligned = VALUE_DIM % 32 == 0;

    // A warp holds 32 entries of a block list at a time; whether some section of a KV head lies over more blocks.
    static constexpr int base_bytes = PAGE * kScaleBytes + KEY_BASE * key_plane + VALUE_BASE * value_plane;
    static constexpr int pruned_bytes =
        NEAR ? PAGE * kScaleBytes + key_planes * key_plane + value_planes * value_plane : 0;
    static constexpr int low_bytes = NEAR ? KEY_REFINE * key_plane + VALUE_REFINE * value_plane : 0;
    static constexpr bool long_lists = most(most(base_bytes, pruned_bytes), low_bytes) + block > 32 * block;

    // Shared memory of a warp: the scales and keys of one page, its values, its centre.
    static constexpr int key_region = lines(PAGE * kScaleBytes + key_planes * key_plane + 3 * kAlign);
    static constexpr int value_region = lines(value_planes * value_plane + (NEAR ? VALUE_REFINE * VALUE_DIM : 0));
    static constexpr int warp_bytes = key_region + value_region + lines(2 * DIM);

    // Shared by the block: the query's bytes as fragments want them, its integers, its steps and sums; what is merged,
    // thrice 8 bytes a row; zeros; a flag a query.
    static constexpr int query_row = 2 * DIM + 32;
    static constexpr int query_bytes = row_tiles * key_steps * 2 * 128, query_words = rows * query_row;
    static __host__ __device__ constexpr int common_of(int tiles) {
        return lines(tiles * (key_steps * 2 * 128 + 4 * query_row + 4 * 32) + 16 + 4 * max_rows);
    }
    static constexpr int common_bytes = common_of(row_tiles);

    // Warps of a block, the same whatever QUERIES: they are merged in order, so bits depend on them.
    static __host__ __device__ constexpr bool fits(int warps) {
        return warps * warp_bytes + common_of(max_rows / 4) <= LEANKV_SHARED_BYTES;
    }
    static constexpr int warps = fits(4) ? 4 : fits(2) ? 2 : 1;
    static constexpr int shared_bytes = warps * warp_bytes + common_bytes;
    static constexpr int fitting = (LEANKV_SHARED_BYTES + 1024) / (shared_bytes + 1024);
    static constexpr int widest = most(DIM, VALUE_DIM);
    // Of a multiprocessor, and no more than leave every thread the registers it wants.
    static constexpr int wanted = row_tiles > 2 || widest > 128  ? 1
                                  : halves > 1                   ? 2
                                  : row_tiles > 1 || widest > 64 ? 3
                                                                 : 4;
    static constexpr int blocks = fitting > wanted ? wanted : fitting;

    static_assert(GROUP * QUERIES <= max_rows);
    static_assert(fits(1), "a warp's page and the queries fit a block");
    static_assert(warp_bytes >= rows * (VALUE_DIM + 2) * 4, "states are merged where pages were");
    static_assert(DIM % 16 == 0 && VALUE_DIM % 16 == 0 && widest <= kMaxDim);
    static_assert(PAGE == 64 || PAGE == 128 || PAGE == 256);
    static_assert(key_planes <= 2 && (value_planes <= 2 || value_planes == 4));
};

struct AttendArgs {
    const void* q;                // [T, heads * group, dim]
    const char* blocks;           // of the store
    const int* page_table;        // of this layer: first block by page
    const long long* pages;       // of the plan
    const long long* tiles;       // [U, 5], see plan.py
    const long long* token_tile;  // [T]
    const int* work;              // [1 + items, 4]: items; then of each a split, how many it reads from there and all
                                  // that there are, 0 for one of several; first in `queries`, and how many; or null
    const int* queries;           // [n, 2]: of the batch; where in `part` and `state` the splits of its rows begin
    float* out;                   // [T, heads * group, value_dim], rotated back
    float* lse;                   // [T, heads * group]
    float* part;                  // [parts of all queries, heads * group, value_dim], not normalized
    float* state;                 // [parts of all queries, heads * group, 2]: the largest score, base 2, and the sum
    int* arrivals;                // [T, heads], zero before and after
    int q_dtype;                  // Dtype in numbers.cuh
    int tokens, splits, heads, parts, list_word, head_word, centre_start, near_pages, mid_keys_fine, mid_values_fine,
        rotation_block, value_rotation_block;  // tokens and splits are read where there is no work list
    float factor, back;  // scale * log2(e) / sqrt(rotation block); 1 / sqrt(rotation block of values)
    float key_centre_high, key_centre_low, value_centre_high, value_centre_low;
    float cap;  // of scores, in base 2; 0 for none
};

}  // namespace leankv::cuda
