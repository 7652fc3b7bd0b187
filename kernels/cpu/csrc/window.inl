// Attention over the last keys of each query, raw and anywhere in a pool (see reference/window.py).
//
// What a query gets depends on its position and on what it sees alone. Keys go in blocks that begin at multiples of
// kBlock of absolute positions, a block's maximum and weights are its own, and a query passes over blocks of which it
// sees nothing. Channels of a dot product and keys of a block are summed in order, a lane a key or a channel, so that
// how many queries share a block shows nowhere.
#pragma once

#include "halves.inl"
#include "kernels.h"
#include "open.inl"
#include "simd.inl"
#include "softmax.inl"

namespace leankv::LEANKV_NS::window {
namespace {

constexpr int kBlock = 32;               // keys
constexpr int kRows = 64;                // query rows that share a block: at least one query's heads of a group
constexpr int kTile = W == 16 ? 4 : 2;   // rows in registers
constexpr int kStrip = W == 16 ? 4 : 2;  // vectors of channels in registers
static_assert(kBlock % (2 * W) == 0 && kRows >= kMaxGroup);

struct WindowScratch {
    alignas(64) float query[kRows * kMaxDim];
    alignas(64) float key[kMaxDim * kBlock];  // by channel
    alignas(64) float value[kBlock * kMaxDim];
    alignas(64) float weights[kRows][kBlock];  // scores at first
    alignas(64) float out[kRows * kMaxDim];
    alignas(64) float sum[kRows][W];
    float top[kRows], keep[kRows];  // the largest score so far; what a block leaves of what was there
    bool unreadable[kRows];
    uint32_t odd;  // a bit a key of the block: it or its value is not finite
};

// A row of the tensor of requests, see reference/window.py.
struct Request {
    int64_t first_query, queries, first_slot, first_position, kv_start;  // positions of its first query and slot
};

LEANKV_INLINE Request request_at(const int64_t* requests, int64_t r) {
    const int64_t* row = requests + 5 * r;
    return {row[0], row[1], row[2], row[3], row[4]};
}

// Consecutive queries of one request and one KV head.
struct Task {
    int64_t request, head, first, queries;  // the first of the request's queries
};

// Rows to columns.
LEANKV_INLINE void transpose(vf (&x)[W]) {
    const vi lane = lane_ids();
#pragma GCC unroll 8
    for (int n = 1; n < W; n *= 2) {
        const vi upper = (lane & n) != 0;
        const vi low = upper ? lane - n + W : lane, high = upper ? lane + W : lane + n;
#pragma GCC unroll 16
        for (int i = 0; i < W; i++)
            if (!(i & n)) {
                const vf a = x[i], b = x[i + n];
                x[i] = __builtin_shuffle(a, b, low);
                x[i + n] = __builtin_shuffle(a, b, high);
            }
    }
}

// Reads the keys and values of a block, of which `slots` has numbers `first` to `last`; others are copies of those.
template <int DTYPE>
static void read_block(const WindowArgs& a, const int64_t* slots, int first, int last, int64_t head, WindowScratch& s) {
    const int key_dim = int(a.key_dim), value_dim = int(a.value_dim);
    size_t key_at[kBlock], value_at[kBlock];
    for (int i = 0; i < kBlock; i++) {
        const size_t row = size_t(slots[clamp(i, first, last - 1)] * a.heads + head);
        key_at[i] = row * size_t(key_dim), value_at[i] = row * size_t(value_dim);
    }
    vi largest{};
    for (int g = 0; g < kBlock; g += W)
        for (int c = 0; c < key_dim; c += W) {
            vf x[W];
            for (int i = 0; i < W; i++) {
                x[i] = load_as_float(a.key, key_at[g + i] + c, DTYPE);
                largest = max_size(largest, x[i]);
            }
            transpose(x);
            for (int i = 0; i < W; i++) store(s.key + (c + i) * kBlock + g, x[i]);
        }
    for (int i = 0; i < kBlock; i++)
        for (int c = 0; c < value_dim; c += W) {
            const vf x = load_as_float(a.value, value_at[i] + c, DTYPE);
            largest = max_size(largest, x);
            store(s.value + i * value_dim + c, x);
        }
    s.odd = 0;
    if (all_zero(largest > as_int(splat(float(kHalfMax))))) return;
    for (int i = 0; i < kBlock; i++) {
        alignas(64) float key[kMaxDim];
        const bool finite = saturate_row(a.key, key_at[i], key_dim, DTYPE, key);
        for (int c = 0; c < key_dim; c++) s.key[c * kBlock + i] = key[c];
        if (!saturate_row(a.value, value_at[i], value_dim, DTYPE, s.value + i * value_dim) || !finite)
            s.odd |= uint32_t(1) << i;
    }
}

// Scores of a few rows over the block. Even and odd channels are summed apart, to hide latency where rows are few.
template <int ROWS>
LEANKV_INLINE void score(const float* query, const float* key, int dim, float (*scores)[kBlock]) {
    for (int v = 0; v < kBlock; v += 2 * W) {
        vf even[ROWS][2] = {}, odd[ROWS][2] = {};
        for (int c = 0; c < dim; c += 2) {
            const float* k = key + c * kBlock + v;
            const vf k0 = load(k), k1 = load(k + W), k2 = load(k + kBlock), k3 = load(k + kBlock + W);
            for (int r = 0; r < ROWS; r++) {
                const vf x = splat(query[r * dim + c]), y = splat(query[r * dim + c + 1]);
                even[r][0] = fma(x, k0, even[r][0]), even[r][1] = fma(x, k1, even[r][1]);
                odd[r][0] = fma(y, k2, odd[r][0]), odd[r][1] = fma(y, k3, odd[r][1]);
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < 2; i++) store(scores[r] + v + i * W, even[r][i] + odd[r][i]);
    }
}

// From scores to weights of a row that sees keys `low` to `high` of the block.
static void weigh_row(WindowScratch& s, int r, int low, int high, float cap) {
    float* scores = s.weights[r];
    vf peak = splat(-__builtin_inff());
    for (int v = 0; v < kBlock; v += W) {
        const vi lane = lane_ids() + v;
        vf x = load(scores + v);
        if (cap != 0.0f) x = capped(x, cap);
        x = (lane >= low) & (lane <= high) ? x : splat(-__builtin_inff());
        store(scores + v, x);
        peak = max(peak, x);
    }
    const float before = s.top[r], block = max_lanes(peak), top = before > block ? before : block;
    s.top[r] = top;
    s.keep[r] = before == top ? 1.0f : exp2_one(before - top);
    vf sum = load(s.sum[r]) * s.keep[r];
    for (int v = 0; v < kBlock; v += W) {
        const vf p = exp2(load(scores + v) - top);
        store(scores + v, p);
        sum = sum + p;
    }
    store(s.sum[r], sum);
}

// Adds the block's weighted values to a few rows' outputs, VECTORS vectors of channels at a time.
template <int ROWS, int VECTORS>
LEANKV_INLINE void add_strip(const WindowScratch& s, int row, int dim, int c, float* out) {
    vf acc[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) acc[r][v] = load(out + r * dim + c + v * W) * s.keep[row + r];
    for (int k = 0; k < kBlock; k++) {
        vf x[VECTORS];
        for (int v = 0; v < VECTORS; v++) x[v] = load(s.value + k * dim + c + v * W);
        for (int r = 0; r < ROWS; r++) {
            const vf p = splat(s.weights[row + r][k]);
            for (int v = 0; v < VECTORS; v++) acc[r][v] = fma(p, x[v], acc[r][v]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) store(out + r * dim + c + v * W, acc[r][v]);
}

template <int ROWS>
LEANKV_INLINE void add_values(WindowScratch& s, int row, int dim) {
    float* out = s.out + row * dim;
    int c = 0;
    for (; c + kStrip * W <= dim; c += kStrip * W) add_strip<ROWS, kStrip>(s, row, dim, c, out);
    for (; c < dim; c += W) add_strip<ROWS, 1>(s, row, dim, c, out);
}

// W numbers as the model's dtype, rounded to the nearest.
LEANKV_INLINE void store_as(void* base, size_t at, vf x, int dtype) {
    if (dtype == kFloat32) return store(static_cast<float*>(base) + at, x);
    uint16_t* to = static_cast<uint16_t*>(base) + at;
    if (dtype == kBfloat16) {
        const vi bits = as_int(x), rounded = shift_right(bits + 0x7fff + (shift_right(bits, 16) & 1), 16);
        const vi words = x == x ? rounded : splati(0x7fc0);
        for (int i = 0; i < W; i++) to[i] = uint16_t(words[i]);
        return;
    }
#if defined(__AVX512VNNI__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
    const vf most = splat(float(kHalfMax)), y = -max(-max(x, -most), -most);
    for (int i = 0; i < W; i++) to[i] = x[i] == x[i] ? half_nearest(y[i]) : kHalfNaN;
#endif
}

// Divides by the weights' sum, with what a sink adds to it, and writes a row.
static void finish_row(const WindowArgs& a, const WindowScratch& s, int r, size_t token, size_t query_head) {
    const int dim = int(a.value_dim);
    const float sink = a.sinks[query_head] * kLog2E, top = s.top[r] > sink ? s.top[r] : sink;
    const float share = exp2_one(s.top[r] - top), weight = sum_lanes(load(s.sum[r])) * share + exp2_one(sink - top);
    const float factor = s.unreadable[r] || sink != sink ? __builtin_nanf("") : share / weight;
    // Zeros have no sign, which keys that are not seen could decide.
    for (int c = 0; c < dim; c += W)
        store_as(a.out, (token * size_t(a.query_heads) + query_head) * size_t(dim) + size_t(c),
                 load(s.out + r * dim + c) * factor + splat(0.0f), a.out_dtype);
}

static void run_task(const WindowArgs& a, const Task& task) {
    WindowScratch& s = *thread_scratch<WindowScratch>();
    const Request request = request_at(a.requests, task.request);
    const int group = int(a.group), rows = int(task.queries) * group;
    const int key_dim = int(a.key_dim), value_dim = int(a.value_dim);
    const int64_t first = request.first_position + task.first, last = first + task.queries - 1;
    const int64_t back = a.window < 0 ? last : a.window, least = first > back ? first - back : 0;
    const int64_t token = request.first_query + task.first;
    const float cap = a.cap * kLog2E;
    for (int r = 0; r < rows; r++) {
        const size_t row = size_t((token + r / group) * a.query_heads + task.head * group + r % group);
        vf off{};
        for (int c = 0; c < key_dim; c += W) {
            const vf x = load_as_float(a.q, row * size_t(key_dim) + size_t(c), a.dtype) * (a.scale * kLog2E);
            off = off + (x - x);
            store(s.query + r * key_dim + c, x);
        }
        s.unreadable[r] = sum_lanes(off) != 0.0f;
        s.top[r] = -__builtin_inff();
        store(s.sum[r], vf{});
    }
    std::memset(s.out, 0, sizeof(float) * size_t(rows * value_dim));
    const auto read = a.raw_dtype == kFloat32    ? read_block<kFloat32>
                      : a.raw_dtype == kBfloat16 ? read_block<kBfloat16>
                                                 : read_block<kFloat16>;
    for (int64_t begin = least / kBlock * kBlock; begin <= last; begin += kBlock) {
        const int64_t stop = begin + kBlock;
        read(a, a.slots + request.first_slot + begin - request.kv_start, int(least > begin ? least - begin : 0),
             int(last + 1 < stop ? last + 1 - begin : kBlock), task.head, s);
        // The queries that see something of the block.
        const int from = int(begin > first ? begin - first : 0) * group;
        const int upto = stop + back > last + 1 ? rows : int(stop + back - first) * group;
        by_tiles<kTile>(from, upto,
                        [&]<int ROWS>(int r) { score<ROWS>(s.query + r * key_dim, s.key, key_dim, s.weights + r); });
        for (int r = from; r < upto; r++) {
            const int64_t position = first + r / group;
            const int low = position - back > begin ? int(position - back - begin) : 0;
            const int high = position < stop ? int(position - begin) : kBlock - 1;
            if (s.odd) s.unreadable[r] |= (s.odd >> low << low << (kBlock - 1 - high)) != 0;
            weigh_row(s, r, low, high, cap);
        }
        by_tiles<kTile>(from, upto, [&]<int ROWS>(int r) { add_values<ROWS>(s, r, value_dim); });
    }
    for (int r = 0; r < rows; r++)
        finish_row(a, s, r, size_t(token + r / group), size_t(task.head * group + r % group));
}

}  // namespace

static void attend(const WindowArgs& a) {
    // As many queries at a time as share a block, fewer where threads would have nothing to do.
    int64_t queries = 0, work = 0;
    for (int64_t r = 0; r < a.num_requests; r++) {
        const Request request = request_at(a.requests, r);
        const int64_t end = request.first_position + request.queries;
        queries += request.queries;
        work += request.queries * (a.window < 0 || a.window > end ? end : a.window + kBlock);
    }
    const int threads = double(work) * double(a.query_heads * (a.key_dim + a.value_dim)) < 1e6 ? 1 : a.threads;
    int64_t each = kRows / a.group, least = (queries * a.heads + 4 * threads - 1) / (4 * threads);
    each = each < least ? each : least < 1 ? 1 : least;
    Task* tasks = static_cast<Task*>(malloc(sizeof(Task) * size_t((queries / each + a.num_requests + 1) * a.heads)));
    int64_t count = 0;
    for (int64_t r = 0; r < a.num_requests; r++) {
        const int64_t all = request_at(a.requests, r).queries;
        for (int64_t h = 0; h < a.heads; h++)
            for (int64_t i = 0; i < all; i += each) tasks[count++] = {r, h, i, all - i < each ? all - i : each};
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (int64_t i = 0; i < count; i++) run_task(a, tasks[i]);
    free(tasks);
}

}  // namespace leankv::LEANKV_NS::window
