// Products of rows with the weights of a linear layer, which have 16 bits, on CPUs that have none for such products.
//
// An output is the sum over W lanes of sums over every W-th input: its order depends on the number of inputs alone, so
// a row has the same bits in any company and with any number of threads.
#pragma once

#include "simd.inl"

namespace leankv::LEANKV_NS::linear {
namespace {

// Rows and outputs whose sums fit the registers.
constexpr int kRows = W == 16 ? 6 : 3, kOutputs = W == 16 ? 4 : 3;
constexpr int64_t kTask = 48;            // outputs whose weights stay near while all rows pass
constexpr int64_t kOneThread = 1 << 15;  // products for which no other thread is woken

template <int DTYPE, int ROWS, int OUTPUTS>
LEANKV_INLINE void add_products(const float* const* x, const uint16_t* const* weight, int64_t at,
                                vf (&sums)[ROWS][OUTPUTS]) {
    vf w[OUTPUTS];
    for (int o = 0; o < OUTPUTS; o++) w[o] = load_as_float(weight[o], size_t(at), DTYPE);
    for (int r = 0; r < ROWS; r++) {
        const vf row = load(x[r] + at);
        for (int o = 0; o < OUTPUTS; o++) sums[r][o] = fma(row, w[o], sums[r][o]);
    }
}

template <int DTYPE, int ROWS, int OUTPUTS>
static void tile(const LinearArgs& a, int64_t first_row, int64_t first_output) {
    const float* x[ROWS];
    const uint16_t* weight[OUTPUTS];
    vf sums[ROWS][OUTPUTS] = {};
    for (int r = 0; r < ROWS; r++) x[r] = a.x + (first_row + r) * a.inputs;
    for (int o = 0; o < OUTPUTS; o++)
        weight[o] = static_cast<const uint16_t*>(a.weight) + (first_output + o) * a.inputs;
    const int64_t whole = a.inputs / W * W;
    for (int64_t at = 0; at < whole; at += W) add_products<DTYPE>(x, weight, at, sums);
    if (whole < a.inputs) {
        // The rest with zeros behind it.
        const size_t rest = size_t(a.inputs - whole);
        float row_rest[ROWS][W] = {};
        uint16_t weight_rest[OUTPUTS][W] = {};
        for (int r = 0; r < ROWS; r++) std::memcpy(row_rest[r], x[r] + whole, 4 * rest), x[r] = row_rest[r];
        for (int o = 0; o < OUTPUTS; o++)
            std::memcpy(weight_rest[o], weight[o] + whole, 2 * rest), weight[o] = weight_rest[o];
        add_products<DTYPE>(x, weight, 0, sums);
    }
    for (int r = 0; r < ROWS; r++)
        for (int o = 0; o < OUTPUTS; o++) a.out[(first_row + r) * a.outputs + first_output + o] = sum_lanes(sums[r][o]);
}

template <int DTYPE>
static void run_task(const LinearArgs& a, int64_t first, int64_t end) {
    by_tiles<kRows>(int64_t(0), a.rows, [&]<int ROWS>(int64_t row) {
        by_tiles<kOutputs>(first, end,
                           [&]<int OUTPUTS>(int64_t output) { tile<DTYPE, ROWS, OUTPUTS>(a, row, output); });
    });
}

}  // namespace

static void multiply(const LinearArgs& a) {
    const int threads = a.rows * a.outputs * a.inputs < kOneThread ? 1 : a.threads;
    const int64_t tasks = (a.outputs + kTask - 1) / kTask;
    const auto run = a.dtype == kBfloat16 ? run_task<kBfloat16> : run_task<kFloat16>;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (int64_t i = 0; i < tasks; i++) {
        const int64_t first = i * kTask, end = first + kTask;
        run(a, first, end < a.outputs ? end : a.outputs);
    }
}

}  // namespace leankv::LEANKV_NS::linear
