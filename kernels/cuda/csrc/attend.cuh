// Attention over committed pages: one warp a page, records as they lie.
//
// A block reads splits of 1,024 tokens of one KV head, for queries of one tile or of tiles that have the split's pages
// in common, its warps every so manieth page, by absolute number; splits are merged in order. So the order in which
// anything is added depends on positions alone. Keys and values of a page have a buffer each: the next page's keys are
// asked for when this one's weights are known, its values when this one's are multiplied.
#pragma once

#include "merge.cuh"

namespace leankv::cuda {

// What a warp reads one after the other: far tokens of its pages, and where a page is near its pruned ones.
template <class S>
struct Queue {
    const Records<S>& records;
    const AttendArgs& a;
    const int before, end;  // pages of the tile before its own, and the page behind this split
    int number, left;       // of the current page, and how many the warp has behind it
    Record now, later;
    bool near, pruned;

    __device__ __forceinline__ void begin(const long long* pages, int first, int head) {
        number = first;
        left = S::split_pages / S::warps - 1;
        // Both headers are on their way before anything is waited for.
        const int block = first_block(pages, first), later_block = first_block(pages, first + S::warps);
        now = records.open(block, head);
        later = records.open(later_block, head);
        records.lists(now);
        records.lists(later);
        turn_to_page();
    }

    // Whether there is another pass; if so it is the current one.
    __device__ __forceinline__ bool next(const long long* pages, int head) {
        if (S::near && near && !pruned) {
            pruned = true;
            return true;
        }
        if (S::split_pages == S::warps || left == 0) return false;
        left = S::split_pages > 2 * S::warps ? left - 1 : 0;
        number += S::warps;
        now = later;
        if (S::split_pages > 2 * S::warps) {
            later = records.open(first_block(pages, number + S::warps), head);
            records.lists(later);
        }
        turn_to_page();
        return true;
    }

    // What is read now: worked out whenever it is wanted, for want of registers.
    __device__ __forceinline__ Pass pass() {
        now.counts = in_register(now.counts);
        return S::near && pruned ? records.pruned_tokens(now) : records.far_tokens(now, near);
    }

  private:
    __device__ __forceinline__ int first_block(const long long* pages, int page) const {
        return page < end ? ldg(a.page_table + ldg(pages + page)) : 0;  // block 0: no tokens, level 0
    }

    __device__ __forceinline__ void turn_to_page() {
        pruned = false;
        // A page whose near part was cut, or that has no record, is read far.
        near = S::near && number >= before - a.near_pages && now.level >= kLevelNear;
    }
};

// An entry of the work list. Without a list every query has one for each of `a.splits` splits, needed or not.
struct Entry {
    int split, splits, first, size;  // see AttendArgs
};

__device__ __forceinline__ Entry entry_of(const AttendArgs& a, int number) {
    if (!a.work) return {number / a.tokens, 0, number % a.tokens, 1};
    const int* item = a.work + 4 * (1 + number);
    return {ldg(item), ldg(item + 1), ldg(item + 2), ldg(item + 3)};
}

template <class S>
__device__ __forceinline__ BlockRows<S> rows_of(const AttendArgs& a, const Entry& entry, int head) {
    return {a.queries + 2 * entry.first, a.heads, head, (S::queries == 1 ? 1 : entry.size) * S::group};
}

// The i-th split of a unit, which is an entry of the work list at one KV head; whether another follows. Where a KV head
// has more query heads than a block takes rows, its group is divided in so many parts, which are heads of their own but
// for the records.
template <class S>
__device__ __forceinline__ bool attend_split(const AttendArgs& a, int unit, int i) {
    constexpr int N = S::row_tiles;
    // Nothing is kept in registers from one split to the next.
    const int thread = in_register((int)threadIdx.x), head = in_register(unit) % a.heads, record_head = head / a.parts;
    const int lane = thread & 31, warp = thread >> 5, g = lane >> 2, t = lane & 3;
    const Entry entry = entry_of(a, unit / a.heads);
    const BlockRows<S> rows = rows_of<S>(a, entry, head);
    const long long* tile = a.tiles + 5 * ldg(a.token_tile + rows.query(0));
    const int before = (int)ldg(tile + 3), begin = (entry.split + i) * S::split_pages;
    const int end = begin + S::split_pages < before ? begin + S::split_pages : before;

    char* shared = shared_memory();
    char *mine = shared + warp * S::warp_bytes, *common = shared + S::warps * S::warp_bytes;
    char *steps = common + S::query_bytes + S::query_words, *zero = steps + 32 * S::rows;
    if (begin >= before) {
        if (begin == 0) write_nothing<S>(a, rows);
        return false;
    }
    const QueryMemory query{common, common + S::query_bytes, steps};
    const PageMemory memory{mine, mine + S::key_region, mine + S::key_region + S::value_region, zero};
    if (thread < 4) sts<uint32_t>(zero + 4 * thread, 0);

    const Records<S> records{a, lane};
    const Copier<S> copy{records, memory};
    const long long* pages = a.pages + ldg(tile + 4);
    Queue<S> queue{records, a, before, end};
    queue.begin(pages, begin + warp, record_head);
    copy.keys(queue.now, queue.pass(), false, record_head);
    cp_commit();
    copy.values(queue.now, queue.pass(), false);
    cp_commit();

    if (i == 0) prepare_queries<S>(a, rows, rows.count, query, lane, warp);
    __syncthreads();
    const Keys<S> keys{memory, query, a, lane, g, t};
    const Values<S> values{memory, lane, g};
    float step[N], total[N];
#pragma unroll
    for (int n = 0; n < N; n++) {
        step[n] = lds<float>(steps + 8 * (4 * n + t));
        total[n] = lds<float>(steps + 8 * (4 * n + t) + 4);
    }
    State<S> state;
    state.begin();

    for (bool more = true; more;) {
        const Pass pass = queue.pass();
        Weights<S> weights;
        cp_wait<1>();
        __syncwarp();
        if (pass.tokens) {
            float centre[N], x[N][S::steps][4];
            keys.order_scales(pass);
            keys.centre_scores(centre);
            __syncwarp();
            keys.scores(x, total, pass);
            forget_memory();  // scales are asked for again rather than kept in registers
            weights.of_scores(x, centre, step, keys, pass);
        }
        more = queue.next(pages, record_head);
        __syncwarp();
        if (more) copy.keys(queue.now, queue.pass(), queue.pruned, record_head);
        cp_commit();
        cp_wait<1>();
        __syncwarp();
        if (pass.tokens) {
            state.take(weights);
            values.add(state, weights, pass);
        }
        __syncwarp();
        if (more) copy.values(queue.now, queue.pass(), queue.pruned);
        cp_commit();
    }
    cp_wait<0>();
    __syncthreads();
    // Asked anew, for want of registers.
    unit = in_register(unit);
    const Entry again = entry_of(a, unit / a.heads);
    const BlockRows<S> outputs = rows_of<S>(a, again, unit % a.heads);
    const Finish<S> finish{a, outputs, shared, steps + 8 * S::rows, zero + 16, warp, lane};
    finish.merge_warps(state);
    if (again.splits > 1) {
        // In a graph the list has bounds; only those of one query each.
        const int there = finish.splits_of(outputs.query(0)), all = again.splits < there ? again.splits : there;
        finish.fold(i);
        if (i + 1 < all) return true;
        finish.write_folded(all);
    } else if (again.splits) {
        finish.write();
    } else if (finish.leave(again.split)) {
        finish.merge_splits();
    }
    return false;
}

// Grid: as many blocks as there are entries times KV heads, or fewer, which then take several in turn. How many entries
// there are is read on the device, so that a graph may be captured before that is known.
template <class S>
__device__ __forceinline__ void attend_committed(const AttendArgs& a) {
    for (int unit = blockIdx.x, i = 0;;) {
        if (unit >= (a.work ? ldg(a.work) : a.tokens * a.splits) * a.heads) break;
        if (attend_split<S>(a, unit, i)) {
            i++;
        } else {
            unit += gridDim.x;
            i = 0;
        }
        __syncthreads();
    }
}

}  // namespace leankv::cuda

#ifdef LEANKV_KERNEL
using S = leankv::cuda::Shape<LEANKV_SHAPE>;
LEANKV_KERNEL(attend_committed, AttendArgs, 32 * S::warps, S::blocks, S::shared_bytes)
#endif
