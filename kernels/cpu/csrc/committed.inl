// Attention over committed pages by the read rule (see reference/attention.py).
//
// What a query row gets depends on the row and on its pages alone: products of codes are exact integers, each page is
// reduced on its own, pages are folded in order inside a split, splits are cut by absolute page number and folded in
// order. Batch, chunk split and number of threads only decide who does it.

namespace leankv::LEANKV_NS {
namespace {

constexpr int kBlockRows = 64;    // query rows that share one decoding of a page
constexpr int kSplitTokens = 1024;  // tokens of a split: the unit of parallel work of one row block
constexpr float kLog2E = 1.44269504088896340736f, kLn2 = 0.693147180559945309417f;

// Softmax state of one row over some keys: weights relative to 2^peak, their sum, and the weighted values.
struct State {
    float peak, sum;
    float out[2 * kMaxDim];  // channels in decoded order
};

struct Scratch {
    HeadView view;
    Quad queries[kBlockRows][kMaxDim / 4];
    float query_scale[kBlockRows], query_sum[kBlockRows];
    int32_t dots[kTileRows][kMaxTokens];
    int32_t products[kTileRows][2 * kMaxDim];
    float weights[kMaxTokens];
    Quad weight_quads[kTileRows][kMaxTokens / 4];
    State split[kBlockRows], total[kBlockRows];
};

template <class T>
T* thread_scratch() {
    static thread_local T* scratch = nullptr;
    if (!scratch) scratch = static_cast<T*>(aligned_alloc(64, (sizeof(T) + 63) / 64 * 64));
    return scratch;
}

LEANKV_INLINE void clear(State& s) {
    s.peak = -__builtin_inff();
    s.sum = 0.0f;
    std::memset(s.out, 0, sizeof(s.out));
}

// Rotates one query, and writes it as 15-bit integers times a scale that carries the softmax factor and log2(e).
static inline void prepare_query(
    const AttendCommittedArgs& a, int64_t token, int query_head, Quad* quads, float& scale, float& sum) {
    const int dim = int(a.shape.head_dim), block = a.rotated ? dim & -dim : 0;
    alignas(64) float x[kMaxDim];
    const size_t row = (size_t(token) * a.query_heads + query_head) * dim;
    for (int c = 0; c < dim; c += W) store(x + c, load_as_float(a.q, row + c, a.dtype));
    float factor = a.scale * kLog2E;
    if (block) {
        for (int c = 0; c < dim; c += block) hadamard(x + c, block);
        factor *= 1.0f / __builtin_sqrtf(float(block));
    }
    vf largest{};
    for (int c = 0; c < dim; c += W) {
        const vf v = load(x + c) * factor;
        store(x + c, v);
        largest = max(largest, max(v, -v));
    }
    const float peak = max_lanes(largest);
    scale = peak * (1.0f / kOne);
    const float inverse = peak > 0.0f ? float(kOne) / peak : 0.0f;
    int32_t whole[kMaxDim];
    int32_t total = 0;
    for (int c = 0; c < dim; c += W) storei(whole + c, round_to_int(load(x + c) * inverse));
    for (int c = 0; c < dim; c++) total += whole[c];
    sum = scale * float(total);
    for (int s = 0; s < dim / 4; s++) {
        const int32_t* w = whole + 8 * (s / 2) + s % 2;
        quads[s] = pack_quad(w[0], w[2], w[4], w[6]);
    }
}

struct PageWeights {
    float peak, sum, zero, scale;
};

// Softmax of one row inside a page: from integer products to integer weights.
static inline PageWeights weigh(
    const HeadView& view, const int32_t* dots, float query_scale, float query_sum, float middle, float* buffer,
    Quad* quads) {
    const int tokens = view.groups * kPanel;
    vf peak = splat(-__builtin_inff());
    for (int t = 0; t < tokens; t += W) {
        const vf offset = fma(load(view.key_zero + t), splat(query_sum), load(view.bias + t));
        const vf s = fma(load(view.key_scale + t), to_float(loadi(dots + t)) * query_scale, offset);
        store(buffer + t, s);
        peak = max(peak, s);
    }
    PageWeights page;
    page.peak = max_lanes(peak);
    vf sum{}, zero{}, largest{};
    for (int t = 0; t < tokens; t += W) {
        const vf p = exp2(load(buffer + t) - page.peak);
        const vf w = p * load(view.value_scale + t);
        sum = sum + p;
        zero = fma(p, load(view.value_middle + t), zero);
        largest = max(largest, w);
        store(buffer + t, w);
    }
    page.sum = sum_lanes(sum);
    const float most = max_lanes(largest);
    page.scale = most * (1.0f / kOne);
    const float inverse = most > 0.0f ? float(kOne) / most : 0.0f;
    vi total{};
    for (int g = 0; g < view.groups; g++) {
        vi whole[kPanelVectors];
        for (int i = 0; i < kPanelVectors; i++) {
            whole[i] = round_to_int(load(buffer + g * kPanel + i * W) * inverse);
            total += whole[i];
        }
        pack_weights(whole, quads + 4 * g);
    }
    // Codes count from the middle of their range, so that the rounding of weights meets centred numbers.
    page.zero = sum_lanes(zero) - page.scale * middle * float(sum_lanes(total));
    return page;
}

LEANKV_INLINE void fold_page(State& s, const PageWeights& page, const int32_t* products, int channels) {
    const float peak = s.peak > page.peak ? s.peak : page.peak;
    const float keep = exp2_one(s.peak - peak), add = exp2_one(page.peak - peak);
    const float scale = add * page.scale, zero = add * page.zero;
    for (int c = 0; c < channels; c += W) {
        const vf fresh = fma(to_float(loadi(products + c)), splat(scale), splat(zero));
        store(s.out + c, fma(load(s.out + c), splat(keep), fresh));
    }
    s.sum = s.sum * keep + page.sum * add;
    s.peak = peak;
}

LEANKV_INLINE void fold_split(State& into, const State& from, int channels) {
    if (from.sum == 0.0f) return;
    const float peak = into.peak > from.peak ? into.peak : from.peak;
    const float keep = exp2_one(into.peak - peak), add = exp2_one(from.peak - peak);
    for (int c = 0; c < channels; c += W)
        store(into.out + c, fma(load(into.out + c), splat(keep), load(from.out + c) * add));
    into.sum = into.sum * keep + from.sum * add;
    into.peak = peak;
}

// Consecutive query rows of one KV head of one unit, and the splits of its pages that one thread reads.
struct Task {
    int64_t unit;
    int head, first_row, rows, first_split, splits;
    int64_t partial;  // index of its states, or -1 where it covers all splits and finishes the rows itself
};

struct Unit {
    int64_t first_query, offset, queries, pages, first_page;
};

LEANKV_INLINE Unit unit_of(const AttendCommittedArgs& a, int64_t u) {
    const int64_t* row = a.units + 5 * u;
    return {row[0], row[1], row[2], row[3], row[4]};
}

static void read_split(const AttendCommittedArgs& a, const Task& task, int split, Scratch& s) {
    const Unit unit = unit_of(a, task.unit);
    const int per_split = int(kSplitTokens / a.shape.page_size), dim = int(a.shape.head_dim);
    const int channels = channel_vectors(dim) * W, panels = (channels + kPanel - 1) / kPanel;
    const float middle = float(value_middle(a.shape));
    const int64_t begin = int64_t(split) * per_split;
    const int64_t end = begin + per_split < unit.pages ? begin + per_split : unit.pages;
    for (int r = 0; r < task.rows; r++) clear(s.split[r]);
    auto record_of = [&](int64_t page) {
        return Record(a.shape, a.blocks, a.page_table[a.pages[unit.first_page + page]]);
    };
    for (int64_t page = begin; page < end; page++) {
        const Record record = record_of(page);
        if (page + 1 < end) {
            const Record next = record_of(page + 1);
            if (next.held()) prefetch_head(next, task.head);
        }
        if (page + 2 < end) {
            const Record later = record_of(page + 2);
            for (int i = 0; i < a.shape.tier_map_start; i += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(later.words) + i, 0, 2);
        }
        if (!record.held()) continue;
        const bool near = a.shape.near && page >= unit.pages - a.window && record.level() >= kLevelNear;
        read_head(record, task.head, near, s.view);
        if (!s.view.groups) continue;
        for (int r = 0; r < task.rows; r += kTileRows) {
            const int count = task.rows - r < kTileRows ? task.rows - r : kTileRows;
            multiply(
                s.view.keys, s.view.groups, dim / 4, s.queries[r], kMaxDim / 4, count, s.dots[0], kMaxTokens);
            PageWeights weights[kTileRows];
            for (int i = 0; i < count; i++)
                weights[i] = weigh(
                    s.view, s.dots[i], s.query_scale[r + i], s.query_sum[r + i], middle, s.weights, s.weight_quads[i]);
            multiply(
                s.view.values, panels, 4 * s.view.groups, s.weight_quads[0], kMaxTokens / 4, count, s.products[0],
                2 * kMaxDim);
            for (int i = 0; i < count; i++) fold_page(s.split[r + i], weights[i], s.products[i], channels);
        }
    }
}

static void finish_row(const AttendCommittedArgs& a, const Task& task, int row, const State& s) {
    const Unit unit = unit_of(a, task.unit);
    const int dim = int(a.shape.head_dim), block = a.rotated ? dim & -dim : 0, group = int(a.group);
    const int64_t token = unit.first_query + (task.first_row + row) / group;
    const int64_t query_head = int64_t(task.head) * group + (task.first_row + row) % group;
    const int64_t at = token * a.query_heads + query_head;
    float* out = a.out + at * dim;
    a.lse[at] = s.sum > 0.0f ? (s.peak + __builtin_log2f(s.sum)) * kLn2 : -__builtin_inff();
    alignas(64) float x[2 * kMaxDim];
    for (int v = 0; v < channel_vectors(dim); v++)
        for (int i = 0; i < W; i += 4)
            if (const int c = channel_of(v, i); c < dim) std::memcpy(x + c, s.out + v * W + i, 16);
    float factor = s.sum > 0.0f ? 1.0f / s.sum : 0.0f;
    if (block) {
        for (int c = 0; c < dim; c += block) hadamard(x + c, block);
        factor *= 1.0f / __builtin_sqrtf(float(block));
    }
    for (int c = 0; c < dim; c += W) store(out + c, load(x + c) * factor);
}

static void run_task(const AttendCommittedArgs& a, const Task& task, State* partials, int channels) {
    Scratch& s = *thread_scratch<Scratch>();
    const Unit unit = unit_of(a, task.unit);
    const int group = int(a.group);
    for (int r = 0; r < task.rows; r++) {
        const int row = task.first_row + r;
        prepare_query(
            a, unit.first_query + row / group, task.head * group + row % group, s.queries[r], s.query_scale[r],
            s.query_sum[r]);
    }
    for (int r = 0; r < task.rows; r++) clear(s.total[r]);
    for (int i = 0; i < task.splits; i++) {
        read_split(a, task, task.first_split + i, s);
        for (int r = 0; r < task.rows; r++) fold_split(s.total[r], s.split[r], channels);
    }
    for (int r = 0; r < task.rows; r++) {
        if (task.partial < 0) finish_row(a, task, r, s.total[r]);
        else partials[task.partial + r] = s.total[r];
    }
}

}  // namespace

static void attend_committed(const AttendCommittedArgs& a) {
    const int per_split = int(kSplitTokens / a.shape.page_size), heads = int(a.shape.heads);
    const int channels = channel_vectors(int(a.shape.head_dim)) * W;
    int64_t blocks = 0, split_tasks = 0, split_rows = 0;
    double work = 0;
    for (int64_t u = 0; u < a.num_units; u++) {
        const Unit unit = unit_of(a, u);
        const int64_t rows = unit.queries * a.group, row_blocks = (rows + kBlockRows - 1) / kBlockRows;
        const int64_t splits = (unit.pages + per_split - 1) / per_split;
        blocks += row_blocks * heads;
        split_tasks += row_blocks * heads * splits;
        split_rows += rows * heads * splits;
        work += double(unit.pages) * double(a.shape.page_size) * heads * double(8 * row_blocks + 2 * rows);
    }
    // Waking another thread costs more than some 20 microseconds of work.
    const int threads = work < 2e5 ? 1 : a.threads;
    const bool apart = threads > 1 && blocks < 8 * threads && split_tasks > blocks;
    Task* tasks = static_cast<Task*>(malloc(sizeof(Task) * size_t((apart ? split_tasks : blocks) + 1)));
    State* partials = apart ? static_cast<State*>(malloc(sizeof(State) * size_t(split_rows))) : nullptr;
    int64_t count = 0, partial = 0;
    for (int64_t u = 0; u < a.num_units; u++) {
        const Unit unit = unit_of(a, u);
        const int rows = int(unit.queries * a.group), splits = int((unit.pages + per_split - 1) / per_split);
        for (int h = 0; h < heads; h++)
            for (int r = 0; r < rows; r += kBlockRows) {
                const int n = rows - r < kBlockRows ? rows - r : kBlockRows;
                if (!apart) tasks[count++] = {u, h, r, n, 0, splits, -1};
                for (int i = 0; apart && i < splits; i++, partial += n) tasks[count++] = {u, h, r, n, i, 1, partial};
            }
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (int64_t i = 0; i < count; i++) run_task(a, tasks[i], partials, channels);
    if (apart) {
        for (int64_t i = 0; i < count; i++) {
            const Task& task = tasks[i];
            const int splits = int((unit_of(a, task.unit).pages + per_split - 1) / per_split);
            if (task.first_split) continue;
            for (int r = 0; r < task.rows; r++) {
                State& total = partials[task.partial + r];
                for (int j = 1; j < splits; j++)
                    fold_split(total, partials[task.partial + int64_t(j) * task.rows + r], channels);
                finish_row(a, task, r, total);
            }
        }
        for (int64_t u = 0; u < a.num_units; u++) {
            const Unit unit = unit_of(a, u);
            if (unit.pages) continue;
            State nothing;
            clear(nothing);
            for (int h = 0; h < heads; h++)
                for (int r = 0; r < int(unit.queries * a.group); r++) finish_row(a, {u, h, 0, 0, 0, 0, -1}, r, nothing);
        }
    }
    free(partials);
    free(tasks);
}

}  // namespace leankv::LEANKV_NS
