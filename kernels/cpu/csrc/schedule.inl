// Cuts attention over committed pages into tasks for the threads.
//
// First come the pages that several tiles share, depth by depth, since a group goes on where the one above it has
// ended; then each tile's own pages. Where there are enough row blocks a task reads all its pages in order; otherwise
// each split is a task of its own, and the states of a row's splits are folded afterwards, in the same order.
#pragma once

#include "committed.inl"
#include "gemm.inl"
#include "kernels.h"
#include "planes.inl"
#include "query.inl"
#include "simd.inl"
#include "softmax.inl"

namespace leankv::LEANKV_NS {
namespace {

// A stretch of pages and who reads it.
struct Job {
    Readers readers;
    int64_t begin, end;
    int64_t depth;
};

// KV heads that one task takes on, as many as its rows leave room for but no more than `most`.
LEANKV_INLINE int heads_per_task(int64_t rows, int heads, int most) {
    const int room = kBlockRows / int(rows < kBlockRows ? rows : kBlockRows);
    const int n = room < most ? room : most;
    return n < heads ? n : heads;
}

// Rows of each of a job's row blocks but the last: whole tiles, spread evenly.
LEANKV_INLINE int block_rows(int64_t rows) {
    const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
    return blocks > 1 ? round_up(int((rows + blocks - 1) / blocks), kTileRows) : int(rows);
}

// Splits that a stretch of pages touches.
LEANKV_INLINE int64_t splits_of(const Job& job, int64_t per_split) {
    return job.end > job.begin ? (job.end - 1) / per_split - job.begin / per_split + 1 : 0;
}

// Calls f(head, heads, first row, rows) for each row block of a job and the heads that go with it.
template <class F>
LEANKV_INLINE void each_block(const Job& job, int heads, int most, F f) {
    const int rows = int(job.readers.rows), per_task = heads_per_task(rows, heads, most), step = block_rows(rows);
    for (int h = 0; h < heads; h += per_task)
        for (int r = 0; r < rows; r += step)
            f(h, heads - h < per_task ? heads - h : per_task, r, rows - r < step ? rows - r : step);
}

// How some jobs are cut: heads per task at most, and how many tasks that makes, with splits apart and without.
struct Cut {
    int heads;
    int64_t blocks, splits;
    bool apart;
};

// Splits go apart where there are fewer than `enough` row blocks for each thread.
LEANKV_INLINE Cut cut_of(const AttendCommittedArgs& a, const Job* jobs, int64_t n, int threads, int enough) {
    const int heads = int(a.shape.heads);
    Cut cut{heads, 0, 0, false};
    for (;; cut.heads = (cut.heads + 1) / 2) {
        cut.blocks = cut.splits = 0;
        for (int64_t j = 0; j < n; j++) {
            int64_t blocks = 0;
            each_block(jobs[j], heads, cut.heads, [&](int, int, int, int) { blocks++; });
            cut.blocks += blocks;
            cut.splits += blocks * splits_of(jobs[j], pages_per_split(a.shape));
        }
        if (cut.heads == 1 || cut.splits >= 4 * a.threads) break;
    }
    cut.apart = threads > 1 && cut.blocks < enough * threads && cut.splits > cut.blocks;
    return cut;
}

LEANKV_INLINE double work_of(const AttendCommittedArgs& a, const Job* jobs, int64_t n) {
    double work = 0;
    for (int64_t j = 0; j < n; j++) {
        const int64_t rows = jobs[j].readers.rows, blocks = (rows + kBlockRows - 1) / kBlockRows;
        work +=
            double((jobs[j].end - jobs[j].begin) * a.shape.page_size * a.shape.heads) * double(8 * blocks + 2 * rows);
    }
    return work;
}

// Writes the tasks of a job, in the order of pages, and returns how many.
LEANKV_INLINE int64_t put_tasks(const AttendCommittedArgs& a, const Job& job, const Cut& cut, bool finish,
                                Task* tasks) {
    const int64_t per_split = pages_per_split(a.shape);
    int64_t count = 0;
    each_block(job, int(a.shape.heads), cut.heads, [&](int h, int heads, int r, int rows) {
        for (int64_t page = job.begin;;) {
            const int64_t edge = (page / per_split + 1) * per_split;
            const int64_t stop = cut.apart && edge < job.end ? edge : job.end;
            if (stop > page || finish) tasks[count++] = {job.readers, h, heads, r, rows, page, stop, cut.apart, finish};
            page = stop;
            if (page == job.end) break;
        }
    });
    return count;
}

// Folds the splits of a tile's rows.
static void finish_tile(const AttendCommittedArgs& a, int64_t u, const States& states, int channels) {
    const Tile tile = tile_at(a.tiles, u);
    const int per_split = pages_per_split(a.shape);
    State& total = thread_scratch<Scratch>()->total[0];
    for (int h = 0; h < int(a.shape.heads); h++)
        for (int64_t row = 0; row < tile.queries * a.group; row++) {
            clear(total, channels);
            fold_splits(total, places(a, states, u, h, row), (tile.pages + per_split - 1) / per_split, states,
                        channels);
            finish_row(a, tile.first_query + row / a.group, h * a.group + row % a.group, total);
        }
}

template <class T>
LEANKV_INLINE T* array(int64_t n) {
    return static_cast<T*>(malloc(sizeof(T) * size_t(n + 1)));
}

}  // namespace

static void attend_committed(const AttendCommittedArgs& a) {
    const int channels = channel_vectors(int(a.shape.v_head_dim)) * W;
    const int64_t per_split = pages_per_split(a.shape), U = a.num_tiles, G = a.num_groups;
    Job* jobs = array<Job>(G + U);
    int64_t *shared = array<int64_t>(U), *first = array<int64_t>(U);  // of each tile, pages in groups and first place
    std::memset(shared, 0, sizeof(int64_t) * size_t(U));
    for (int64_t g = 0; g < G; g++) {
        const Group group = group_at(a.groups, g);
        const int64_t* members = a.members + group.first_member;
        for (int64_t i = 0; i < group.members; i++) shared[members[i]] = group.end;
        jobs[g] = {{members, members[0], group.members * a.group}, group.begin, group.end, group.depth};
    }
    const int64_t depths = G ? jobs[G - 1].depth + 2 : 1;
    for (int64_t u = 0; u < U; u++) {
        const Tile tile = tile_at(a.tiles, u);
        jobs[G + u] = {{nullptr, u, tile.queries * a.group}, shared[u], tile.pages, depths - 1};
    }

    // Waking another thread costs more than some 20 microseconds of work.
    const int threads = work_of(a, jobs, G + U) < 2e5 ? 1 : a.threads;
    // Groups have many rows: each split apart costs their states' way through memory and their queries again.
    const Cut own_cut = cut_of(a, jobs + G, U, threads, 4);
    Cut group_cut = cut_of(a, jobs, G, threads, 3);
    group_cut.apart |= own_cut.apart;

    // A row that others go on with has a place for each split, or one for the open split and one for the total.
    first[0] = 0;
    for (int64_t u = 0; u < U; u++) {
        const Tile tile = tile_at(a.tiles, u);
        const int64_t pages = own_cut.apart ? tile.pages : shared[u];
        const int64_t each = group_cut.apart ? (pages + per_split - 1) / per_split : pages ? 2 : 0;
        first[u + 1] = first[u] + each * tile.queries * a.group * a.shape.heads;
    }
    States states{nullptr, first, state_bytes(channels), group_cut.apart};
    if (first[U]) states.at = static_cast<uint8_t*>(aligned_alloc(64, states.bytes * size_t(first[U])));

    Task* tasks = array<Task>(group_cut.blocks + group_cut.splits + own_cut.blocks + own_cut.splits);
    int64_t* depth_end = array<int64_t>(depths);
    int64_t count = 0;
    depth_end[depths - 1] = 0;
    for (int64_t j = 0; j < G + U; j++) {
        const bool own = j >= G;
        count += put_tasks(a, jobs[j], own ? own_cut : group_cut, own && !own_cut.apart, tasks + count);
        depth_end[jobs[j].depth] = count;
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        for (int64_t depth = 0; depth < depths; depth++) {
            const int64_t from = depth ? depth_end[depth - 1] : 0;
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = from; i < depth_end[depth]; i++) run_task(a, tasks[i], states);
        }
        if (own_cut.apart) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t u = 0; u < U; u++) finish_tile(a, u, states, channels);
        }
    }
    free(depth_end);
    free(tasks);
    free(states.at);
    free(first);
    free(shared);
    free(jobs);
}

}  // namespace leankv::LEANKV_NS
