// One page of one KV head folded into the softmax states of query rows.

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

LEANKV_INLINE void clear(State& s, int channels) {
    s.peak = -__builtin_inff();
    s.sum = 0.0f;
    std::memset(s.out, 0, sizeof(float) * size_t(channels));
}

// Rotates one query, and writes it as 16-bit integers times a scale that carries the softmax factor and log2(e).
static inline void prepare_query(const AttendCommittedArgs& a, int64_t token, int query_head, Quad* quads, float& scale,
                                 float& sum) {
    const int dim = int(a.shape.head_dim);
    alignas(64) float x[kMaxDim];
    const size_t row = (size_t(token) * a.query_heads + query_head) * dim;
    for (int c = 0; c < dim; c += W) store(x + c, load_as_float(a.q, row + c, a.dtype));
    float factor = a.scale * kLog2E;
    if (a.rotated) factor *= rotate(x, dim);
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

}  // namespace
}  // namespace leankv::LEANKV_NS
