// What module.cpp sees of the kernels: plain arguments, and one table of functions per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/record_format.h"

namespace leankv {

// Model dtypes of queries, keys and values.
enum Dtype : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

constexpr double kHalfMax = 65504.0;  // at which keys and values saturate
constexpr int kMaxGroup = 64;         // the most query heads per KV head
// Numbers of Usage in store.py, and those of them that only grow.
constexpr int kUsageCounts = 14, kUsageSaturated = 12, kUsageNotFinite = 13;

struct AttendOpenArgs {
    const void* q;            // [T, query_heads, head_dim]
    const void *key, *value;  // [R, page_size, heads, head_dim], [R, page_size, heads, value_dim]
    int32_t* scores;          // [R, query_heads, page_size]
    const int64_t* at;        // [U]
    const int64_t* tiles;     // [U, 5], see plan.py
    float *out, *lse;
    int64_t num_tiles, query_heads, heads, group, head_dim, value_dim, page_size;
    float scale, cap;  // no cap: 0
    int dtype, raw_dtype, threads;
};

struct AttendCommittedArgs {
    RecordShape shape;
    const uint8_t* blocks;
    const int32_t* page_table;  // of the layer
    const void* q;              // [T, query_heads, head_dim]
    const int64_t* tiles;       // [U, 5]
    const int64_t* pages;
    const int64_t *groups, *members;  // [num_groups, 5] and their tiles, see cascade.py
    float *out, *lse;
    int64_t num_tiles, num_groups, query_heads, group, near_pages;
    float scale, cap;  // no cap: 0
    bool rotated;
    int dtype, threads;
};

struct MergeArgs {
    const float *out_a, *lse_a, *out_b, *lse_b;  // [rows, head_dim], [rows]
    const float* sinks;                          // [heads], -inf for none
    float *out, *lse;
    int64_t rows, heads, head_dim;
    int threads;
};

// For attend_window: requests, and what their queries see of a pool.
struct WindowArgs {
    const void* q;            // [T, query_heads, key_dim]
    const void *key, *value;  // [S, heads, key_dim], [S, heads, value_dim]
    const int64_t* slots;     // of the pool
    const int64_t* requests;  // [num_requests, 5], see Request in window.inl
    const float* sinks;       // [query_heads], -inf for none
    void* out;                // [T, query_heads, value_dim]
    int64_t num_requests, query_heads, heads, group, key_dim, value_dim;
    int64_t window;    // keys before a query's own; below 0 for all
    float scale, cap;  // no cap: 0
    int dtype, raw_dtype, out_dtype, threads;
};

// For linear: out = x weight^T.
struct LinearArgs {
    const float* x;      // [rows, inputs]
    const void* weight;  // [outputs, inputs], of 16 bits
    float* out;          // [rows, outputs]
    int64_t rows, outputs, inputs;
    int dtype, threads;
};

struct CommitArgs {
    RecordShape shape;
    uint8_t* blocks;
    int32_t* page_table;  // of the first layer; the next one's is table_stride entries behind
    int32_t* ring;
    int64_t *ring_head, *ring_free, *usage;
    int64_t num_blocks, table_stride;
    const int64_t *pages, *at;  // [n]
    const void *key, *value;    // [layers, rows, page_size, heads, head_dim], the same of v_head_dim
    const uint8_t* tiers;       // [layers, n, heads, page_size]
    int64_t n, layers, rows, layer;
    bool rotated;
    int dtype, threads;

    // Where a record's raw page is, in pages; records are numbered through all layers.
    int64_t source(int64_t record) const { return record / n * rows + at[record % n]; }
};

// Counts of a page: its blocks at each level, tokens of each tier.
constexpr int kPageCounts = 6;
// Totals of a head: its bytes, tokens that are high, mid, low and pruned.
constexpr int kHeadTotals = 5;

// For free_pages, cut_pages, count_pages and count_heads: pages in all layers.
struct ShrinkArgs {
    RecordShape shape;
    uint8_t* blocks;
    int32_t* page_table;  // [layers, table_stride]
    int32_t* ring;
    int64_t *ring_head, *ring_free, *usage;
    int64_t num_blocks;
    const int64_t *pages, *level;  // [n], no two pages alike; levels only to cut
    int32_t* counts;               // [n, kPageCounts], zero at first, only to count
    int64_t n, layers, table_stride;
    int64_t* head_counts = nullptr;  // [layers, heads, kHeadTotals], zero at first, only to count heads
};

// For measure_packed, pack_pages and unpack_pages: pages in all layers, outside the pool one after the other.
struct PackArgs {
    ShrinkArgs store;                 // levels that are wanted, to measure; no counts
    uint8_t *far, *near;              // as long as the sums of what follows
    int64_t *far_bytes, *near_bytes;  // [n, layers]
    int64_t* held;                    // [n], levels of what is packed
};

// The dense baseline: float32 out [batch, query heads, dim] from a bf16 query of that shape and bf16 keys and values
// [batch, kv heads, tokens, dim].
constexpr int kDenseSplit = 4096;  // tokens that one thread reads on its own
constexpr int kDenseGroup = 8;     // the most query heads per kv head
constexpr int kDenseDim = 256;     // the widest head; a multiple of 16

struct DenseArgs {
    const uint16_t *q, *k, *v;
    float *out, *workspace;  // the latter has kDenseDim + 2 per query head and split
    int64_t batch, kv_heads, group, tokens;
    int dim;
    float scale;
    int threads;
    bool cpu_bf16;  // use the CPU's bf16 products where it has them
};

struct ReadArgs {
    const void* data;
    int64_t bytes;
    uint64_t* sum;
    int threads;
};

struct Kernels {
    const char* name;
    bool (*has_planes)(const RecordShape&);
    void (*attend_open)(const AttendOpenArgs&);
    void (*attend_committed)(const AttendCommittedArgs&);
    void (*merge_states)(const MergeArgs&);
    void (*attend_window)(const WindowArgs&);
    void (*linear)(const LinearArgs&);
    void (*commit_pages)(const CommitArgs&);
    void (*free_pages)(const ShrinkArgs&);
    void (*cut_pages)(const ShrinkArgs&);
    void (*count_pages)(const ShrinkArgs&);
    void (*count_heads)(const ShrinkArgs&);
    void (*measure_packed)(const PackArgs&);
    void (*pack_pages)(const PackArgs&);
    void (*unpack_pages)(const PackArgs&);
    void (*dense_decode)(const DenseArgs&);
    void (*read_bandwidth)(const ReadArgs&);
};

// Each in a translation unit of its own; module.cpp only calls those that the CPU can run.
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace portable {
extern const Kernels kernels;
}

}  // namespace leankv
