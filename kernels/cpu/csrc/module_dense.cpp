// The part of leankv_kernels._cpu that knows no pages: linear layers, and the baseline that kernels are measured
// against.

#include <nanobind/nanobind.h>

#include <memory>
#include <string>

#include "choice.h"
#include "kernels.h"
#include "pool.h"
#include "tensor.h"

namespace leankv {

using namespace nb::literals;

namespace {

void dense_decode(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, float scale, int threads,
                  bool cpu_bf16) {
    const int64_t batch = k.size(0), kv_heads = k.size(1), tokens = k.size(2), dim = k.size(3), query_heads = q.size(1);
    const int64_t group = kv_heads ? query_heads / kv_heads : 0;
    if (group < 1 || group > kDenseGroup) throw nb::value_error("the group must be from 1 to 8.");
    if (dim < 16 || dim > kDenseDim || dim % 16)
        throw nb::value_error("the head's width must be a multiple of 16 up to 256.");
    if (tokens < 1) throw nb::value_error("there must be a token to attend to.");
    auto bf16 = [](const Tensor& x, const char* name, std::initializer_list<int64_t> shape) {
        if (x.dtype(name) != kBfloat16) throw nb::value_error("the dense baseline is of bfloat16.");
        return static_cast<const uint16_t*>(x.model_numbers(name, shape));
    };
    const int64_t splits = (tokens + kDenseSplit - 1) / kDenseSplit;
    const std::unique_ptr<float[]> workspace(new float[batch * query_heads * splits * (kDenseDim + 2)]);
    kernels().dense_decode({
        .q = bf16(q, "q", {batch, query_heads, dim}),
        .k = bf16(k, "k", {batch, kv_heads, tokens, dim}),
        .v = bf16(v, "v", {batch, kv_heads, tokens, dim}),
        .out = out.numbers<float>("out", {batch, query_heads, dim}),
        .workspace = workspace.get(),
        .batch = batch,
        .kv_heads = kv_heads,
        .group = group,
        .tokens = tokens,
        .dim = int(dim),
        .scale = scale,
        .threads = threads,
        .cpu_bf16 = cpu_bf16,
    });
}

void linear(const Tensor& x, const Tensor& weight, const Tensor& out, int threads) {
    const int64_t rows = x.size(0), inputs = x.size(1), outputs = weight.size(0);
    const int dtype = weight.dtype("weight");
    if (dtype == kFloat32) throw nb::value_error("the cpu kernels take weights of 16 bits, not float32.");
    kernels().linear({
        .x = x.numbers<float>("x", {-1, -1}),
        .weight = weight.model_numbers("weight", {-1, inputs}),
        .out = out.numbers<float>("out", {rows, outputs}),
        .rows = rows,
        .outputs = outputs,
        .inputs = inputs,
        .dtype = dtype,
        .threads = threads,
    });
}

uint64_t read_bandwidth(const Tensor& words, int threads) {
    uint64_t sum = 0;
    const void* data = words.numbers<int32_t>("words", {-1});
    kernels().read_bandwidth({.data = data, .bytes = words.bytes(), .sum = &sum, .threads = threads});
    return sum;
}

}  // namespace

void bind_dense(nb::module_& m) {
    using release = nb::call_guard<nb::gil_scoped_release>;
    m.def("linear", linear, nb::kw_only(), "x"_a, "weight"_a, "out"_a, "threads"_a, release());
    m.def("dense_decode", dense_decode, "q"_a, "k"_a, "v"_a, "out"_a, nb::kw_only(), "scale"_a, "threads"_a,
          "cpu_bf16"_a = true, release());
    m.def("read_bandwidth", read_bandwidth, "words"_a, "threads"_a, release());
}

}  // namespace leankv
