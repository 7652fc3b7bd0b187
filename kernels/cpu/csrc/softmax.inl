// The softmax of query rows over one page of one KV head, and how pages and splits add up.
#pragma once

#include "gemm.inl"
#include "planes.inl"
#include "record.inl"
#include "prefetch.inl"
#include "simd.inl"

namespace leankv::LEANKV_NS {
namespace {

constexpr float kLog2E = 1.44269504088896340736f, kLn2 = 0.693147180559945309417f;

// Softmax state of one row over some keys. Everything is relative to 2^top, which keeps every weight times its value
// scale at 1 at most; sums stay apart by lane until the row is finished.
struct alignas(64) State {
    float top;
    alignas(64) float sum[kPanel];        // of the weights
    alignas(64) float zero[kPanel];       // of the weights times what the middle of the range of codes stands for
    alignas(64) float out[kMaxChannels];  // of the weights times the distance from there; channels in decoded order
};

// Bytes of a state of so many channels: where many are kept, each takes no more.
LEANKV_INLINE size_t state_bytes(int channels) { return offsetof(State, out) + sizeof(float) * size_t(channels); }

LEANKV_INLINE void clear(State& s, int channels) {
    s.top = -__builtin_inff();
    std::memset(s.sum, 0, sizeof(s.sum));
    std::memset(s.zero, 0, sizeof(s.zero));
    std::memset(s.out, 0, sizeof(float) * size_t(channels));
}

// Factors that bring what is relative to 2^a and to 2^b under the larger of both; one of them is exactly 1.
LEANKV_INLINE void common_top(vf a, vf b, vf& top, vf& factor_a, vf& factor_b) {
    const vi above = a > b;
    const vf smaller = exp2(above ? b - a : a - b), one = splat(1.0f);
    top = above ? a : b;
    factor_a = above ? one : smaller;
    factor_b = above ? smaller : one;
}

// What a page adds to the states of a few rows, but for the products of its values.
struct PageWeights {
    vf top, keep, add;  // a lane per row: the new top, and factors that bring both sides to it
    vf sum[kTileRows], zero[kTileRows];
};

// What the centre of a page's keys adds to all scores of a few rows, a lane each.
template <int ROWS>
LEANKV_INLINE vf centre_scores(const float* queries, const float* centre, int dim) {
    vf sum[ROWS]{}, out{};
    for (int c = 0; c < dim; c += W) {
        const vf x = load(centre + c);
        for (int r = 0; r < ROWS; r++) sum[r] = fma(load(queries + r * dim + c), x, sum[r]);
    }
    const vi lane = lane_ids();
    for (int n = W / 2; n; n /= 2)
        for (int r = 0; r < ROWS; r++) sum[r] = sum[r] + __builtin_shuffle(sum[r], lane ^ n);
    for (int r = 0; r < ROWS; r++) out[r] = sum[r][0];
    return out;
}

// Scores drawn into (-cap, cap): cap tanh(x / cap) to 3e-7 of it, by a rational function, each lane on its own. What is
// no number becomes one.
LEANKV_INLINE vf capped(vf x, float cap) {
    const vf most = splat(7.90531111f);  // where tanh is 1
    const vf u = -max(-max(x * (1.0f / cap), -most), -most), s = u * u;
    vf p = splat(-2.76076847742355e-16f);
    p = fma(p, s, splat(2.00018790482477e-13f));
    p = fma(p, s, splat(-8.60467152213735e-11f));
    p = fma(p, s, splat(5.12229709037114e-08f));
    p = fma(p, s, splat(1.48572235717979e-05f));
    p = fma(p, s, splat(6.37261928875436e-04f));
    p = fma(p, s, splat(4.89352455891786e-03f));
    vf q = splat(1.19825839466702e-06f);
    q = fma(q, s, splat(1.18534705686654e-04f));
    q = fma(q, s, splat(2.26843463243900e-03f));
    q = fma(q, s, splat(4.89352518554385e-03f));
    return u * (p / q) * cap;
}

// Caps the scores of one row over a page, which take `scale` and what their centre adds to be whole; returns the
// largest, each with what its value can add.
static float cap_row(const HeadView& view, float scale, float common, float cap, float* scores) {
    vf most = splat(-__builtin_inff());
    for (int t = 0; t < view.groups * kPanel; t += W) {
        const vf x = capped(fma(load(scores + t), splat(scale), splat(common)), cap) + load(view.bias + t);
        store(scores + t, x);
        most = max(most, x + load(view.lift + t));
    }
    return max_lanes(most);
}

// From the integer products of a page's keys to the integer weights that meet its values. The keys' centre adds the
// same to all scores of a row, and so moves its top alone, but where they are capped (`cap`, in base 2; 0 for not).
// Rows go side by side to hide latency. `middle` is that of the range of codes: they count from there, so that the
// rounding of weights meets centred numbers.
template <int ROWS>
LEANKV_INLINE void weigh(const HeadView& view, const int32_t (*dots)[kMaxTokens], const float* query_scale,
                         const float* query_sum, const float* queries, int dim, float middle, float cap,
                         float (*scores)[kMaxTokens], Quad (*quads)[kMaxTokens / 4], PageWeights& page, const State* s,
                         Prefetch& ahead) {
    const int tokens = view.groups * kPanel;
    Pace pace = ahead.take();
    vf scale[ROWS], offset[ROWS], most[ROWS];
    for (int r = 0; r < ROWS; r++) {
        scale[r] = splat(query_scale[r]), offset[r] = splat(query_sum[r]);
        most[r] = splat(-__builtin_inff());
    }
    for (int t = 0; t < tokens; t += W) {
        pace.during(kScoreWork / kPanelVectors);
        const vf key_scale = load(view.key_scale + t), key_zero = load(view.key_zero + t);
        const vf bias = load(view.bias + t), lift = load(view.lift + t);
        for (int r = 0; r < ROWS; r++) {
            const vf x = fma(key_scale, to_float(loadi(dots[r] + t)), fma(key_zero, offset[r], bias));
            store(scores[r] + t, x);
            most[r] = max(most[r], fma(x, scale[r], lift));
        }
    }
    vf top[ROWS], sum[ROWS], zero[ROWS], before{}, own{};
    const vf common = centre_scores<ROWS>(queries, view.centre, dim);
    vu total[ROWS];
    for (int r = 0; r < ROWS; r++) {
        float largest = max_lanes(most[r]);
        if (cap != 0.0f) {
            largest = cap_row(view, query_scale[r], common[r], cap, scores[r]);
            scale[r] = splat(1.0f);
        }
        before[r] = s[r].top, own[r] = largest;
        top[r] = splat(-largest);
        sum[r] = zero[r] = vf{};
        total[r] = vu{};
    }
    common_top(before, cap == 0.0f ? own + common : own, page.top, page.keep, page.add);
    // A centre or a query that is no number shows in no maximum; so it does in the sums.
    page.add = page.add + (common - common);
    // Two loops: a longer chain of instructions would leave too few rows in flight.
    for (int t = 0; t < tokens; t += W) {
        pace.during(kWeightWork / kPanelVectors);
        for (int r = 0; r < ROWS; r++) {
            const vf p = exp2_weight(fma(load(scores[r] + t), scale[r], top[r]));
            store(scores[r] + t, p);
            sum[r] = sum[r] + p;
        }
    }
    for (int g = 0; g < view.groups; g++) {
        pace.during(kWeightWork);
        for (int r = 0; r < ROWS; r++) {
            vi bits[kPanelVectors];
            for (int i = 0; i < kPanelVectors; i++) {
                const int t = g * kPanel + i * W;
                const vf p = load(scores[r] + t);
                zero[r] = fma(p, load(view.value_middle + t), zero[r]);
                bits[i] = as_int(fma(p, load(view.value_scale + t), splat(kRound)));
                total[r] += (vu)bits[i];
            }
            pack_weights(bits, quads[r] + 4 * g);
        }
    }
    ahead.pace = pace;
    const uint32_t counted = uint32_t(view.groups * kPanelVectors) * uint32_t(as_int(splat(kRound))[0]);
    for (int r = 0; r < ROWS; r++) {
        page.sum[r] = sum[r];
        page.zero[r] = zero[r] - to_float((vi)(total[r] - counted)) * (middle / kWeightOne);
    }
}

template <int ROWS>
LEANKV_INLINE void fold_page(State* s, const PageWeights& page, const int32_t (*products)[kMaxChannels], int channels) {
    for (int r = 0; r < ROWS; r++) {
        s[r].top = page.top[r];
        const vf k = splat(page.keep[r]), a = splat(page.add[r]), scale = a * (1.0f / kWeightOne);
        store(s[r].sum, fma(load(s[r].sum), k, page.sum[r] * a));
        store(s[r].zero, fma(load(s[r].zero), k, page.zero[r] * a));
        for (int c = 0; c < channels; c += W)
            store(s[r].out + c, fma(load(s[r].out + c), k, to_float(loadi(products[r] + c)) * scale));
    }
}

LEANKV_INLINE void fold_split(State& into, const State& from, int channels) {
    if (from.top == -__builtin_inff()) return;
    vf top, keep, add;
    common_top(splat(into.top), splat(from.top), top, keep, add);
    into.top = top[0];
    auto fold = [&](float* to, const float* x) { store(to, fma(load(to), keep, load(x) * add)); };
    fold(into.sum, from.sum);
    fold(into.zero, from.zero);
    for (int c = 0; c < channels; c += W) fold(into.out + c, from.out + c);
}

}  // namespace
}  // namespace leankv::LEANKV_NS
