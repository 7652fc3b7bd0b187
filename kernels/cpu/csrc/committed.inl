// Attention over committed pages by the read rule (see reference/attention.py).
//
// What a query row gets depends on the row and on its pages alone: products of codes are exact integers, each page is
// reduced on its own, pages are folded in order inside a split, splits are cut by absolute page number and folded in
// order. Batch, chunk split and number of threads only decide who does it.

namespace leankv::LEANKV_NS {
namespace {

constexpr int kBlockRows = 64;      // query rows that share one decoding of a page
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
    float weights[kTileRows][kMaxTokens];
    Quad weight_quads[kTileRows][kMaxTokens / 4];
    State split[kBlockRows], total[kBlockRows];
};

template <class T>
T* thread_scratch() {
    static thread_local T* scratch = nullptr;
    if (!scratch) scratch = static_cast<T*>(aligned_alloc(64, (sizeof(T) + 63) / 64 * 64));
    return scratch;
}

LEANKV_INLINE void clear(State& s, int channels) {
    s.peak = -__builtin_inff();
    s.sum = 0.0f;
    std::memset(s.out, 0, sizeof(float) * size_t(channels));
}

// Rotates one query, and writes it as 16-bit integers times a scale that carries the softmax factor and log2(e).
static inline void prepare_query(const AttendCommittedArgs& a, int64_t token, int query_head, Quad* quads, float& scale,
                                 float& sum) {
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

// Products of N neighbouring groups of a run's keys with a few rows, decoded on the fly.
template <int ROWS, int PLANES, int N>
LEANKV_INLINE void multiply_key_groups(const Run& run, int t, int dim, const Quad* queries, int32_t* out) {
    constexpr size_t stride = kMaxDim / 4;
    KeyGroup<PLANES> group[N];
    for (int n = 0; n < N; n++) group[n].find(run.key, t + n * kPanel, dim);
    for (int sub = 0; sub < kPanelVectors; sub++) {
        vi a[ROWS][N] = {}, b[ROWS][N] = {};
        for (int j = 0; j < dim / 8; j++) {
            vi even[N], odd[N];
            for (int n = 0; n < N; n++) group[n].read(j, sub, even[n], odd[n]);
            accumulate<ROWS, N>(even, queries + 2 * j, stride, a, b);
            accumulate<ROWS, N>(odd, queries + 2 * j + 1, stride, a, b);
        }
        for (int r = 0; r < ROWS; r++)
            for (int n = 0; n < N; n++)
                storei(out + r * kMaxTokens + run.first_group * kPanel + t + n * kPanel + sub * W,
                       combine(a[r][n], b[r][n]));
    }
}

template <int ROWS, int PLANES>
LEANKV_INLINE void multiply_keys(const Run& run, int dim, const Quad* queries, int32_t* out, Prefetch& ahead) {
    int t = 0;
    for (; t + kPanel < run.key.tokens; t += 2 * kPanel) {
        ahead.issue(2 * ahead.share);
        multiply_key_groups<ROWS, PLANES, 2>(run, t, dim, queries, out);
    }
    if (t < run.key.tokens) multiply_key_groups<ROWS, PLANES, 1>(run, t, dim, queries, out);
}

// Adds the products of a run's values with the weights of a few rows, decoded on the fly.
template <int ROWS, int PLANES, int BASE>
LEANKV_INLINE void multiply_values(const Run& run, int dim, const Quad* weights, int32_t* out, Prefetch& ahead) {
    constexpr size_t stride = kMaxTokens / 4;
    ValueGroup<PLANES, BASE> groups[kMaxGroups];
    for (int g = 0; 4 * g < run.value.quads; g++) groups[g].find(run.value, g, dim);
    for (int v = 0; v < channel_vectors(dim); v += 2) {
        vi a[ROWS][2] = {}, b[ROWS][2] = {};
        for (int g = 0; 4 * g < run.value.quads; g++) {
            const ValueGroup<PLANES, BASE>& group = groups[g];
            if (v < 2) ahead.issue(ahead.share);
            const Quad* quads = weights + 4 * (run.first_group + g);
            vi words[PLANES][2];
            group.read(v / 4, v / 2 % 2, words);
            const vi codes[4][2] = {{group.template codes<0>(words, 0), group.template codes<0>(words, 1)},
                                    {group.template codes<1>(words, 0), group.template codes<1>(words, 1)},
                                    {group.template codes<2>(words, 0), group.template codes<2>(words, 1)},
                                    {group.template codes<3>(words, 0), group.template codes<3>(words, 1)}};
            for (int i = 0; i < 4; i++) accumulate<ROWS, 2>(codes[i], quads + i, stride, a, b);
        }
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < 2; i++) {
                int32_t* to = out + r * 2 * kMaxDim + (v + i) * W;
                const vi before = run.first_group ? loadi(to) : vi{};
                storei(to, before + combine(a[r][i], b[r][i]));
            }
    }
}

// Calls f<ROWS>() for a number of rows of one tile.
template <class F>
LEANKV_INLINE void with_rows(int rows, F f) {
    switch (rows) {
        case 1:
            return f.template operator()<1>();
        case 2:
            return f.template operator()<2>();
#if defined(__AVX512VNNI__)
        case 3:
            return f.template operator()<3>();
        case 4:
            return f.template operator()<4>();
#endif
    }
}

static void multiply_keys_of(const HeadView& view, const RecordShape& shape, int rows, const Quad* queries,
                             int32_t* out, Prefetch& ahead) {
    for (int i = 0; i < view.runs; i++)
        with_key_planes(shape, [&]<int PLANES>() {
            with_rows(rows, [&]<int ROWS>() {
                multiply_keys<ROWS, PLANES>(view.run[i], int(shape.head_dim), queries, out, ahead);
            });
        });
}

static void multiply_values_of(const HeadView& view, const RecordShape& shape, int rows, const Quad* weights,
                               int32_t* out, Prefetch& ahead) {
    for (int i = 0; i < view.runs; i++)
        with_value_planes(shape, view.run[i].value_base, [&]<int PLANES, int BASE>() {
            with_rows(rows, [&]<int ROWS>() {
                multiply_values<ROWS, PLANES, BASE>(view.run[i], int(shape.head_dim), weights, out, ahead);
            });
        });
}

struct PageWeights {
    float peak[kTileRows], sum[kTileRows], zero[kTileRows], scale[kTileRows];
};

// Softmax of a few rows inside a page: from integer products to integer weights. Rows go side by side to hide latency.
template <int ROWS>
LEANKV_INLINE void weigh(const HeadView& view, const int32_t (*dots)[kMaxTokens], const float* query_scale,
                         const float* query_sum, float middle, float (*buffer)[kMaxTokens],
                         Quad (*quads)[kMaxTokens / 4], PageWeights& page) {
    const int tokens = view.groups * kPanel;
    vf scale[ROWS], offset[ROWS], most[ROWS];
    for (int r = 0; r < ROWS; r++) {
        scale[r] = splat(query_scale[r]), offset[r] = splat(query_sum[r]);
        most[r] = splat(-__builtin_inff());
    }
    for (int t = 0; t < tokens; t += W) {
        const vf key_scale = load(view.key_scale + t), key_zero = load(view.key_zero + t), bias = load(view.bias + t);
        for (int r = 0; r < ROWS; r++) {
            const vf s = fma(key_scale, to_float(loadi(dots[r] + t)) * scale[r], fma(key_zero, offset[r], bias));
            store(buffer[r] + t, s);
            most[r] = max(most[r], s);
        }
    }
    vf peak[ROWS], sum[ROWS], zero[ROWS], largest[ROWS];
    for (int r = 0; r < ROWS; r++) {
        page.peak[r] = max_lanes(most[r]);
        peak[r] = splat(page.peak[r]);
        sum[r] = zero[r] = largest[r] = vf{};
    }
    for (int t = 0; t < tokens; t += W) {
        const vf value_scale = load(view.value_scale + t), value_middle = load(view.value_middle + t);
        for (int r = 0; r < ROWS; r++) {
            const vf p = exp2(load(buffer[r] + t) - peak[r]);
            const vf w = p * value_scale;
            sum[r] = sum[r] + p;
            zero[r] = fma(p, value_middle, zero[r]);
            largest[r] = max(largest[r], w);
            store(buffer[r] + t, w);
        }
    }
    vf inverse[ROWS];
    vi total[ROWS];
    for (int r = 0; r < ROWS; r++) {
        const float top = max_lanes(largest[r]);
        page.sum[r] = sum_lanes(sum[r]), page.zero[r] = sum_lanes(zero[r]);
        page.scale[r] = top * (1.0f / kOne);
        inverse[r] = splat(top > 0.0f ? float(kOne) / top : 0.0f);
        total[r] = vi{};
    }
    for (int g = 0; g < view.groups; g++)
        for (int r = 0; r < ROWS; r++) {
            vi whole[kPanelVectors];
            for (int i = 0; i < kPanelVectors; i++) {
                whole[i] = round_to_int(load(buffer[r] + g * kPanel + i * W) * inverse[r]);
                total[r] += whole[i];
            }
            pack_weights(whole, quads[r] + 4 * g);
        }
    // Codes count from the middle of their range, so that the rounding of weights meets centred numbers.
    for (int r = 0; r < ROWS; r++) page.zero[r] -= page.scale[r] * middle * float(sum_lanes(total[r]));
}

template <int ROWS>
LEANKV_INLINE void fold_page(State* s, const PageWeights& page, const int32_t (*products)[2 * kMaxDim], int channels) {
    float peak[ROWS], factors[W > 2 * ROWS ? W : 2 * ROWS] = {};
    for (int r = 0; r < ROWS; r++) {
        peak[r] = s[r].peak > page.peak[r] ? s[r].peak : page.peak[r];
        factors[r] = s[r].peak - peak[r], factors[ROWS + r] = page.peak[r] - peak[r];
    }
    for (int i = 0; i < 2 * ROWS; i += W) store(factors + i, exp2(load(factors + i)));
    for (int r = 0; r < ROWS; r++) {
        const float keep = factors[r], add = factors[ROWS + r];
        const vf scale = splat(add * page.scale[r]), zero = splat(add * page.zero[r]);
        for (int c = 0; c < channels; c += W) {
            const vf fresh = fma(to_float(loadi(products[r] + c)), scale, zero);
            store(s[r].out + c, fma(load(s[r].out + c), splat(keep), fresh));
        }
        s[r].sum = s[r].sum * keep + page.sum[r] * add;
        s[r].peak = peak[r];
    }
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

// What one thread does at a time: some KV heads of one unit, consecutive query rows of each, some splits of its pages.
// Heads of a record go one after the other, since their codes lie so.
struct Task {
    int64_t unit;
    int head, heads, first_row, rows, first_split, splits;
    int64_t partial;  // index of its states, or -1 where it covers all splits and finishes the rows itself
};

struct Unit {
    int64_t first_query, offset, queries, pages, first_page;
};

LEANKV_INLINE Unit unit_of(const AttendCommittedArgs& a, int64_t u) {
    const int64_t* row = a.units + 5 * u;
    return {row[0], row[1], row[2], row[3], row[4]};
}

// Folds the page in view into the states of some rows, from `first` on.
static void read_rows(const AttendCommittedArgs& a, int rows, int first, Scratch& s, Prefetch& ahead) {
    const int dim = int(a.shape.head_dim), channels = channel_vectors(dim) * W;
    const int value_panels = (channels + kPanel - 1) / kPanel;
    const float middle = float(value_middle(a.shape));
    // Decoding a page to panels pays from a few tiles of rows on.
    const bool panels = rows > 2 * kTileRows;
    if (panels) decode_panels(s.view, a.shape);
    for (int r = first; r < first + rows; r += kTileRows) {
        const int count = first + rows - r < kTileRows ? first + rows - r : kTileRows;
        if (panels)
            multiply(s.view.keys, s.view.groups, dim / 4, s.queries[r], kMaxDim / 4, count, s.dots[0], kMaxTokens);
        else
            multiply_keys_of(s.view, a.shape, count, s.queries[r], s.dots[0], ahead);
        PageWeights page_weights;
        with_rows(count, [&]<int ROWS>() {
            weigh<ROWS>(s.view, s.dots, s.query_scale + r, s.query_sum + r, middle, s.weights, s.weight_quads,
                        page_weights);
        });
        if (panels)
            multiply(s.view.values, value_panels, 4 * s.view.groups, s.weight_quads[0], kMaxTokens / 4, count,
                     s.products[0], 2 * kMaxDim);
        else
            multiply_values_of(s.view, a.shape, count, s.weight_quads[0], s.products[0], ahead);
        with_rows(count, [&]<int ROWS>() { fold_page<ROWS>(s.split + r, page_weights, s.products, channels); });
    }
}

static void read_split(const AttendCommittedArgs& a, const Task& task, int split, Scratch& s) {
    const Unit unit = unit_of(a, task.unit);
    const int per_split = int(kSplitTokens / a.shape.page_size);
    const int channels = channel_vectors(int(a.shape.head_dim)) * W;
    const int64_t begin = int64_t(split) * per_split;
    const int64_t end = begin + per_split < unit.pages ? begin + per_split : unit.pages;
    for (int r = 0; r < task.heads * task.rows; r++) clear(s.split[r], channels);
    auto record_of = [&](int64_t page) {
        return Record(a.shape, a.blocks, a.page_table[a.pages[unit.first_page + page]]);
    };
    for (int64_t page = begin; page < end; page++) {
        const Record record = record_of(page);
        // One page ahead its codes, two pages ahead its header.
        const Record next = record_of(page + 1 < unit.pages ? page + 1 : page);
        if (page + 2 < unit.pages) {
            const Record later = record_of(page + 2);
            for (int i = 0; i < a.shape.tier_map_start; i += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(later.words) + i, 0, 3);
        }
        if (!record.held()) continue;
        const bool near = a.shape.near && page >= unit.pages - a.window && record.level() >= kLevelNear;
        for (int h = 0; h < task.heads; h++) {
            read_head(record, task.head + h, near, s.view);
            if (!s.view.groups) continue;
            const bool last = h + 1 == task.heads;
            const Record* then = !last ? &record : page + 1 < unit.pages ? &next : nullptr;
            Prefetch ahead(then, last ? task.head : task.head + h + 1, 2 * s.view.groups);
            read_rows(a, task.rows, h * task.rows, s, ahead);
        }
    }
}

static void finish_row(const AttendCommittedArgs& a, const Task& task, int slot, const State& s) {
    const Unit unit = unit_of(a, task.unit);
    const int dim = int(a.shape.head_dim), block = a.rotated ? dim & -dim : 0, group = int(a.group);
    const int row = task.first_row + slot % task.rows;
    const int64_t token = unit.first_query + row / group;
    const int64_t query_head = int64_t(task.head + slot / task.rows) * group + row % group;
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
    const int slots = task.heads * task.rows;
    for (int r = 0; r < slots; r++) {
        const int row = task.first_row + r % task.rows;
        prepare_query(a, unit.first_query + row / group, (task.head + r / task.rows) * group + row % group,
                      s.queries[r], s.query_scale[r], s.query_sum[r]);
    }
    for (int r = 0; r < slots; r++) clear(s.total[r], channels);
    for (int i = 0; i < task.splits; i++) {
        read_split(a, task, task.first_split + i, s);
        for (int r = 0; r < slots; r++) fold_split(s.total[r], s.split[r], channels);
    }
    for (int r = 0; r < slots; r++) {
        if (task.partial < 0)
            finish_row(a, task, r, s.total[r]);
        else
            partials[task.partial + r] = s.total[r];
    }
}

// KV heads that one task takes on, as many as its rows leave room for but no more than `most`.
LEANKV_INLINE int heads_per_task(int rows, int heads, int most) {
    const int room = kBlockRows / (rows < kBlockRows ? rows : kBlockRows);
    const int n = room < most ? room : most;
    return n < heads ? n : heads;
}

}  // namespace

static void attend_committed(const AttendCommittedArgs& a) {
    const int per_split = int(kSplitTokens / a.shape.page_size), heads = int(a.shape.heads);
    const int channels = channel_vectors(int(a.shape.head_dim)) * W;
    int64_t blocks = 0, split_tasks = 0, split_rows = 0;
    double work = 0;
    int most = heads;
    for (;; most = (most + 1) / 2) {
        blocks = split_tasks = split_rows = 0, work = 0;
        for (int64_t u = 0; u < a.num_units; u++) {
            const Unit unit = unit_of(a, u);
            const int64_t rows = unit.queries * a.group, row_blocks = (rows + kBlockRows - 1) / kBlockRows;
            const int64_t splits = (unit.pages + per_split - 1) / per_split;
            const int per_task = heads_per_task(int(rows), heads, most);
            const int64_t tasks = row_blocks * ((heads + per_task - 1) / per_task);
            blocks += tasks;
            split_tasks += tasks * splits;
            split_rows += rows * heads * splits;
            work += double(unit.pages) * double(a.shape.page_size) * heads * double(8 * row_blocks + 2 * rows);
        }
        if (most == 1 || split_tasks >= 4 * a.threads) break;
    }
    // Waking another thread costs more than some 20 microseconds of work.
    const int threads = work < 2e5 ? 1 : a.threads;
    const bool apart = threads > 1 && blocks < 4 * threads && split_tasks > blocks;
    Task* tasks = static_cast<Task*>(malloc(sizeof(Task) * size_t((apart ? split_tasks : blocks) + 1)));
    State* partials = apart ? static_cast<State*>(malloc(sizeof(State) * size_t(split_rows))) : nullptr;
    int64_t count = 0, partial = 0;
    for (int64_t u = 0; u < a.num_units; u++) {
        const Unit unit = unit_of(a, u);
        const int rows = int(unit.queries * a.group), splits = int((unit.pages + per_split - 1) / per_split);
        const int per_task = heads_per_task(rows, heads, most);
        for (int h = 0; h < heads; h += per_task)
            for (int r = 0; r < rows; r += kBlockRows) {
                const int n = rows - r < kBlockRows ? rows - r : kBlockRows;
                const int taken = heads - h < per_task ? heads - h : per_task;
                if (!apart) tasks[count++] = {u, h, taken, r, n, 0, splits, -1};
                for (int i = 0; apart && i < splits; i++, partial += taken * n)
                    tasks[count++] = {u, h, taken, r, n, i, 1, partial};
            }
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (int64_t i = 0; i < count; i++) run_task(a, tasks[i], partials, channels);
    if (apart) {
        for (int64_t i = 0; i < count; i++) {
            const Task& task = tasks[i];
            const int splits = int((unit_of(a, task.unit).pages + per_split - 1) / per_split);
            if (task.first_split) continue;
            const int slots = task.heads * task.rows;
            for (int r = 0; r < slots; r++) {
                State& total = partials[task.partial + r];
                for (int j = 1; j < splits; j++)
                    fold_split(total, partials[task.partial + int64_t(j) * slots + r], channels);
                finish_row(a, task, r, total);
            }
        }
        for (int64_t u = 0; u < a.num_units; u++) {
            const Unit unit = unit_of(a, u);
            if (unit.pages) continue;
            State nothing;
            clear(nothing, channels);
            const int rows = int(unit.queries * a.group);
            for (int r = 0; r < heads * rows; r++) finish_row(a, {u, 0, heads, 0, rows, 0, 0, -1}, r, nothing);
        }
    }
    free(partials);
    free(tasks);
}

}  // namespace leankv::LEANKV_NS
