// Attention over committed pages by the read rule (see reference/attention.py).
//
// What a query row gets depends on the row and on its pages alone: products of codes are exact integers, each page is
// reduced on its own, pages are folded in order inside a split, splits are cut by absolute page number and folded in
// order. Batch, chunk split and number of threads only decide who does it.

namespace leankv::LEANKV_NS {
namespace {

constexpr int kBlockRows = 64;      // query rows that share one decoding of a page
constexpr int kSplitTokens = 1024;  // tokens of a split: the unit of parallel work of one row block

struct Scratch {
    HeadView view;
    alignas(64) Query queries[kBlockRows];
    float query_scale[kBlockRows], query_sum[kBlockRows];
    alignas(64) int32_t dots[kTileRows][kMaxTokens];
    alignas(64) int32_t products[kTileRows][2 * kMaxDim];
    alignas(64) float scores[kTileRows][kMaxTokens];
    alignas(64) Quad weight_quads[kTileRows][kMaxTokens / 4];
    State split[kBlockRows], total[kBlockRows];
};

template <class T>
T* thread_scratch() {
    static thread_local T* scratch = nullptr;
    if (!scratch) scratch = static_cast<T*>(aligned_alloc(64, (sizeof(T) + 63) / 64 * 64));
    return scratch;
}

// What one thread does at a time: some KV heads of one unit, consecutive query rows of each, some splits of its pages.
// Heads of a record go one after the other, since their codes lie so.
struct Task {
    int64_t unit;
    int head, heads, first_row, rows, first_split, splits;
    int64_t partial;  // index of its states, or -1 where it covers all splits and finishes the rows itself
};

LEANKV_INLINE int pages_per_split(const RecordShape& shape) { return int(kSplitTokens / shape.page_size); }

LEANKV_INLINE int splits_of(const Unit& unit, const RecordShape& shape) {
    const int per_split = pages_per_split(shape);
    return int((unit.pages + per_split - 1) / per_split);
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
            multiply(s.view.keys, s.view.groups, dim / 4, s.queries[r].quads, kQueryStride, count, s.dots[0],
                     kMaxTokens);
        else
            multiply_keys_of(s.view, a.shape, count, s.queries + r, s.dots[0], ahead);
        PageWeights page_weights;
        with_rows(count, [&]<int ROWS>() {
            weigh<ROWS>(s.view, s.dots, s.query_scale + r, s.query_sum + r, middle, s.scores, s.weight_quads,
                        page_weights, s.split + r, ahead);
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
    const Unit unit = unit_at(a.units, task.unit);
    const int per_split = pages_per_split(a.shape);
    const int channels = channel_vectors(int(a.shape.head_dim)) * W;
    const int64_t begin = int64_t(split) * per_split;
    const int64_t end = begin + per_split < unit.pages ? begin + per_split : unit.pages;
    for (int r = 0; r < task.heads * task.rows; r++) clear(s.split[r], channels);
    auto record_of = [&](int64_t page) {
        return Record(a.shape, a.blocks, a.page_table[a.pages[unit.first_page + page]]);
    };
    HeadPlace place;
    bool placed = false;  // whether that is the place of the head to come
    for (int64_t page = begin; page < end; page++) {
        const Record record = record_of(page);
        // One head ahead its codes, two pages ahead its header.
        const bool more = page + 1 < unit.pages;
        const Record next = record_of(more ? page + 1 : page);
        if (page + 2 < unit.pages) {
            const Record later = record_of(page + 2);
            for (int i = 0; i < a.shape.tier_map_start; i += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(later.words) + i, 0, 3);
        }
        if (!record.held()) {
            placed = false;
            continue;
        }
        const bool near = a.shape.near && page >= unit.pages - a.window && record.level() >= kLevelNear;
        for (int h = 0; h < task.heads; h++) {
            const HeadPlace here = placed ? place : find_head(record, task.head + h);
            const bool last = h + 1 == task.heads;
            const Record* then = !last ? &record : more && next.held() ? &next : nullptr;
            const int then_head = last ? task.head : task.head + h + 1;
            placed = then != nullptr;
            if (placed) place = find_head(*then, then_head);
            read_head(record, task.head + h, here, near, s.view);
            if (!s.view.groups) continue;
            Prefetch ahead(then, then_head, place, s.view.groups * group_work(int(a.shape.head_dim), channels));
            read_rows(a, task.rows, h * task.rows, s, ahead);
        }
    }
}

static void finish_row(const AttendCommittedArgs& a, const Task& task, int slot, const State& s) {
    const Unit unit = unit_at(a.units, task.unit);
    const int dim = int(a.shape.head_dim), group = int(a.group);
    const int row = task.first_row + slot % task.rows;
    const int64_t token = unit.first_query + row / group;
    const int64_t query_head = int64_t(task.head + slot / task.rows) * group + row % group;
    const int64_t at = token * a.query_heads + query_head;
    float* out = a.out + at * dim;
    const float sum = sum_lanes(load(s.sum)), zero = sum_lanes(load(s.zero));
    a.lse[at] = sum > 0.0f ? (s.top + __builtin_log2f(sum)) * kLn2 : -__builtin_inff();
    alignas(64) float x[2 * kMaxDim];
    for (int v = 0; v < channel_vectors(dim); v++)
        for (int i = 0; i < W; i += 4)
            if (const int c = channel_of(v, i); c < dim) std::memcpy(x + c, s.out + v * W + i, 16);
    for (int i = 0; i < dim; i += W) store(x + i, load(x + i) + zero);
    float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
    if (a.rotated) factor *= rotate(x, dim);
    for (int c = 0; c < dim; c += W) store(out + c, load(x + c) * factor);
}

static void run_task(const AttendCommittedArgs& a, const Task& task, State* partials, int channels) {
    Scratch& s = *thread_scratch<Scratch>();
    const Unit unit = unit_at(a.units, task.unit);
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
    const int heads = int(a.shape.heads);
    const int channels = channel_vectors(int(a.shape.head_dim)) * W;
    int64_t blocks = 0, split_tasks = 0, split_rows = 0;
    double work = 0;
    int most = heads;
    for (;; most = (most + 1) / 2) {
        blocks = split_tasks = split_rows = 0, work = 0;
        for (int64_t u = 0; u < a.num_units; u++) {
            const Unit unit = unit_at(a.units, u);
            const int64_t rows = unit.queries * a.group, row_blocks = (rows + kBlockRows - 1) / kBlockRows;
            const int64_t splits = splits_of(unit, a.shape);
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
    State* partials = apart ? static_cast<State*>(aligned_alloc(64, sizeof(State) * size_t(split_rows))) : nullptr;
    int64_t count = 0, partial = 0;
    for (int64_t u = 0; u < a.num_units; u++) {
        const Unit unit = unit_at(a.units, u);
        const int rows = int(unit.queries * a.group), splits = splits_of(unit, a.shape);
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
            const int splits = splits_of(unit_at(a.units, task.unit), a.shape);
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
            const Unit unit = unit_at(a.units, u);
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
