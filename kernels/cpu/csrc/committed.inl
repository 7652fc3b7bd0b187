// Attention over committed pages by the read rule (see reference/attention.py): what one task does.
//
// What a query row gets depends on the row and on its pages alone: products of codes are exact integers, each page is
// reduced on its own, pages are folded in order inside a split, splits are cut by absolute page number and folded in
// order. Batch, chunk split, company and number of threads only decide who does it (schedule.inl).
#pragma once

#include "gemm.inl"
#include "kernels.h"
#include "planes.inl"
#include "prefetch.inl"
#include "products.inl"
#include "query.inl"
#include "record.inl"
#include "simd.inl"
#include "softmax.inl"

namespace leankv::LEANKV_NS {
namespace {

constexpr int kBlockRows = 64;      // query rows that share one decoding of a page
constexpr int kSplitTokens = 1024;  // tokens of a split: the tile of parallel work of one row block

struct Scratch {
    HeadView view;
    alignas(64) Query queries[kBlockRows];
    alignas(64) float exact[kBlockRows * kMaxDim];  // what the integers stand for, rows of head_dim numbers
    float query_scale[kBlockRows], query_sum[kBlockRows];
    alignas(64) int32_t dots[kTileRows][kMaxTokens];
    alignas(64) int32_t products[kTileRows][kMaxChannels];
    alignas(64) float scores[kTileRows][kMaxTokens];
    alignas(64) Quad weight_quads[kTileRows][kMaxTokens / 4];
    State split[kBlockRows], total[kBlockRows];
};

// States of rows between tasks. The rows of a tile have equally many places each, one after the other: one per split,
// or one for the split that is still open and one for those before.
struct States {
    uint8_t* at;
    const int64_t* first;  // [U + 1] of each tile's places
    size_t bytes;          // of a place
    bool by_split;
};

// Query rows that read the same pages: those of one tile, or of several tiles of one query each.
struct Readers {
    const int64_t* members;  // or null
    int64_t tile;            // the only one or the first
    int64_t rows;            // per KV head

    LEANKV_MEMBER int64_t tile_of(int64_t row, int64_t group) const { return members ? members[row / group] : tile; }
    LEANKV_MEMBER int64_t query_of(int64_t row, int64_t group) const { return members ? 0 : row / group; }
};

// What one thread does at a time: some KV heads, consecutive rows of each, a stretch of pages. Heads of a record go one
// after the other, since their codes lie so.
struct Task {
    Readers readers;
    int head, heads, first_row, rows;
    int64_t begin, end;  // pages
    bool apart;          // they are of one split, which is folded into the others later
    bool finish;         // they are the last ones
};

LEANKV_INLINE int pages_per_split(const RecordShape& shape) { return int(kSplitTokens / shape.page_size); }

// Folds the page in view into the states of some rows, from `first` on.
static void read_rows(const AttendCommittedArgs& a, int rows, int first, Scratch& s, Prefetch& ahead) {
    const int dim = int(a.shape.head_dim), channels = channel_vectors(int(a.shape.v_head_dim)) * W;
    const int value_panels = (channels + kPanel - 1) / kPanel;
    const float middle = float(value_middle(a.shape)), cap = a.cap * kLog2E;
    // Decoding a page to panels pays from a few tiles of rows on.
    const bool panels = rows > 2 * kTileRows;
    // Keys of four bits take three dots for four where two of them share a byte.
    const bool key_panels = panels && !in_nibbles(a.shape);
    if (panels) decode_panels(s.view, a.shape, key_panels);
    for (int r = first; r < first + rows; r += kTileRows) {
        const int count = first + rows - r < kTileRows ? first + rows - r : kTileRows;
        if (key_panels)
            multiply(s.view.keys, s.view.groups, dim / 4, s.queries[r].quads, kQueryStride, count, s.dots[0],
                     kMaxTokens);
        else
            multiply_keys_of(s.view, a.shape, count, s.queries + r, s.dots[0], ahead);
        PageWeights page_weights;
        with_rows(count, [&]<int ROWS>() {
            weigh<ROWS>(s.view, s.dots, s.query_scale + r, s.query_sum + r, s.exact + r * dim, dim, middle, cap,
                        s.scores, s.weight_quads, page_weights, s.split + r, ahead);
        });
        if (panels)
            multiply(s.view.values, value_panels, 4 * s.view.groups, s.weight_quads[0], kMaxTokens / 4, count,
                     s.products[0], kMaxChannels);
        else
            multiply_values_of(s.view, a.shape, count, s.weight_quads[0], s.products[0], ahead);
        with_rows(count, [&]<int ROWS>() { fold_page<ROWS>(s.split + r, page_weights, s.products, channels); });
    }
}

// Folds pages `begin` to `end`, all of one split, into the rows' states of that split.
static void read_pages(const AttendCommittedArgs& a, const Task& task, int64_t begin, int64_t end, Scratch& s) {
    const Tile tile = tile_at(a.tiles, task.readers.tile);
    const int dim = int(a.shape.head_dim), channels = channel_vectors(int(a.shape.v_head_dim)) * W;
    auto record_of = [&](int64_t page) {
        return Record(a.shape, a.blocks, a.page_table[a.pages[tile.first_page + page]]);
    };
    HeadPlace place;
    bool placed = false;  // whether that is the place of the head to come
    for (int64_t page = begin; page < end; page++) {
        const Record record = record_of(page);
        // One head ahead its codes, one page ahead its centre, two pages ahead its header.
        const bool more = page + 1 < tile.pages;
        const Record next = record_of(more ? page + 1 : page);
        if (page + 2 < tile.pages) {
            const Record later = record_of(page + 2);
            for (int i = 0; i < a.shape.tier_map_start; i += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(later.words) + i, 0, 3);
        }
        if (!record.held()) {
            placed = false;
            continue;
        }
        const bool near = a.shape.near && page >= tile.pages - a.near_pages && record.level() >= kLevelNear;
        for (int h = 0; h < task.heads; h++) {
            const HeadPlace here = placed ? place : find_head(record, task.head + h);
            const bool last = h + 1 == task.heads;
            const Record* then = !last ? &record : more && next.held() ? &next : nullptr;
            const int then_head = last ? task.head : task.head + h + 1;
            placed = then != nullptr;
            if (placed) place = find_head(*then, then_head);
            read_head(record, task.head + h, here, near, s.view);
            if (!s.view.groups) continue;
            Prefetch ahead(then, then_head, place, s.view.groups * group_work(dim, channels));
            for (int c = 0; more && c < dim; c += 32) __builtin_prefetch(next.centre(task.head + h, c), 0, 3);
            read_rows(a, task.rows, h * task.rows, s, ahead);
        }
    }
}

static void finish_row(const AttendCommittedArgs& a, int64_t token, int64_t query_head, const State& s) {
    const int dim = int(a.shape.v_head_dim);
    const int64_t at = token * a.query_heads + query_head;
    float* out = a.out + at * dim;
    const float sum = sum_lanes(load(s.sum)), zero = sum_lanes(load(s.zero));
    const bool empty = sum == 0.0f;
    a.lse[at] = empty ? -__builtin_inff() : (s.top + __builtin_log2f(sum)) * kLn2;
    alignas(64) float x[kMaxChannels];
    for (int v = 0; v < channel_vectors(dim); v++)
        for (int i = 0; i < W; i += 4)
            if (const int c = channel_of(v, i); c < dim) std::memcpy(x + c, s.out + v * W + i, 16);
    for (int i = 0; i < dim; i += W) store(x + i, load(x + i) + zero);
    float factor = empty ? 0.0f : 1.0f / sum;
    if (a.rotated) factor *= rotate(x, dim);
    for (int c = 0; c < dim; c += W) store(out + c, load(x + c) * factor);
}

// The places of one row of a tile.
LEANKV_INLINE uint8_t* places(const AttendCommittedArgs& a, const States& states, int64_t tile, int head, int64_t row) {
    const int64_t rows = tile_at(a.tiles, tile).queries * a.group, first = states.first[tile];
    const int64_t each = (states.first[tile + 1] - first) / (rows * a.shape.heads);
    return states.at + states.bytes * size_t(first + (head * rows + row) * each);
}

// Folds states at places one after the other.
LEANKV_INLINE void fold_splits(State& total, const uint8_t* from, int64_t n, const States& states, int channels) {
    for (; n > 0; n--, from += states.bytes) fold_split(total, *reinterpret_cast<const State*>(from), channels);
}

static void run_task(const AttendCommittedArgs& a, const Task& task, const States& states) {
    Scratch& s = *thread_scratch<Scratch>();
    const int dim = int(a.shape.head_dim), channels = channel_vectors(int(a.shape.v_head_dim)) * W;
    const int64_t group = a.group, per_split = pages_per_split(a.shape);
    const int64_t split = task.begin / per_split;
    const bool inside = task.begin % per_split != 0;  // of a split that another task has begun
    const int slots = task.heads * task.rows;
    auto each_row = [&](auto f) {
        for (int i = 0; i < slots; i++) {
            const int64_t row = task.first_row + i % task.rows, u = task.readers.tile_of(row, group);
            const int64_t query = task.readers.query_of(row, group), of_group = row % group;
            const int head = task.head + i / task.rows;
            uint8_t* place = states.at ? places(a, states, u, head, query * group + of_group) : nullptr;
            f(i, tile_at(a.tiles, u).first_query + query, int(head * group + of_group), place);
        }
    };
    auto copy = [&](void* to, const void* from) { std::memcpy(to, from, states.bytes); };
    each_row([&](int i, int64_t token, int query_head, const uint8_t* place) {
        if (task.begin < task.end)
            prepare_query(a, token, query_head, s.exact + i * dim, s.queries[i], s.query_scale[i], s.query_sum[i]);
        clear(s.total[i], channels);
        clear(s.split[i], channels);
        if (states.by_split) {
            if (!task.apart) fold_splits(s.total[i], place, split, states, channels);
            if (inside) copy(&s.split[i], place + states.bytes * size_t(split));
        } else if (task.begin) {
            copy(&s.split[i], place);
            copy(&s.total[i], place + states.bytes);
        }
    });
    for (int64_t page = task.begin; page < task.end;) {
        const int64_t edge = (page / per_split + 1) * per_split, stop = edge < task.end ? edge : task.end;
        read_pages(a, task, page, stop, s);
        page = stop;
        if (task.apart || page < edge) break;
        for (int i = 0; i < slots; i++) {
            fold_split(s.total[i], s.split[i], channels);
            clear(s.split[i], channels);
        }
    }
    each_row([&](int i, int64_t token, int query_head, uint8_t* place) {
        if (task.finish) {
            fold_split(s.total[i], s.split[i], channels);
            finish_row(a, token, query_head, s.total[i]);
        } else if (states.by_split) {
            copy(place + states.bytes * size_t(split), &s.split[i]);
        } else {
            copy(place, &s.split[i]);
            copy(place + states.bytes, &s.total[i]);
        }
    });
}

}  // namespace
}  // namespace leankv::LEANKV_NS
