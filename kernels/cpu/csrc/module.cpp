// leankv_kernels._cpu: run-time choice of the instruction set, and functions that take addresses as plain integers.
// Python checks shapes and types before it calls; nothing here does.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;
using leankv::Kernels;

namespace {

// What this CPU can run, best first. The checks name exactly what CMakeLists.txt compiles each table with.
std::vector<const Kernels*> runnable() {
    std::vector<const Kernels*> found;
#ifdef LEANKV_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        found.push_back(&leankv::avx512::kernels);
    if (avx2) found.push_back(&leankv::avx2::kernels);
#endif
    found.push_back(&leankv::portable::kernels);
    return found;
}

const std::vector<const Kernels*> choices = runnable();
std::atomic<const Kernels*> current = choices.front();

const Kernels& kernels() { return *current.load(std::memory_order_relaxed); }

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Kernels* k : choices) names.emplace_back(k->name);
    return names;
}

void use_isa(const std::string& name) {
    std::string known;
    for (const Kernels* k : choices) {
        if (name == k->name) {
            current = k;
            return;
        }
        known += (known.empty() ? "" : ", ") + std::string(k->name);
    }
    throw nb::value_error(("instruction set \"" + name + "\" is not available: choose one of " + known + ".").c_str());
}

// Addresses arrive as integers: torch's Tensor.data_ptr().
template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// A record layout as kernels/cpu/__init__.py writes it: one double per field.
leankv::RecordShape shape_at(uintptr_t address) {
    const double* v = at<const double>(address);
    auto i = [&](int n) { return int64_t(v[n]); };
    return {i(0),  i(1),  i(2),  i(3),  i(4),  i(5),  i(6),  i(7),  i(8),  i(9),  i(10), i(11),
            i(12), i(13), i(14), i(15), i(16), i(17), v[18], v[19], v[20], v[21], v[22], v[23]};
}

// Only benches call it, with nothing in between that would check.
void dense_decode(uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t out, int64_t batch, int64_t kv_heads, int64_t group,
                  int64_t tokens, int dim, float scale, int threads, bool cpu_bf16) {
    if (group < 1 || group > leankv::kDenseGroup) throw nb::value_error("the group must be from 1 to 8.");
    if (dim < 16 || dim > leankv::kDenseDim || dim % 16)
        throw nb::value_error("the head's width must be a multiple of 16 up to 256.");
    if (tokens < 1) throw nb::value_error("there must be a token to attend to.");
    const int64_t splits = (tokens + leankv::kDenseSplit - 1) / leankv::kDenseSplit;
    const std::unique_ptr<float[]> workspace(new float[batch * kv_heads * group * splits * (leankv::kDenseDim + 2)]);
    kernels().dense_decode({at<const uint16_t>(q), at<const uint16_t>(k), at<const uint16_t>(v), at<float>(out),
                            workspace.get(), batch, kv_heads, group, tokens, dim, scale, threads, cpu_bf16});
}

uint64_t read_bandwidth(uintptr_t data, int64_t bytes, int threads) {
    uint64_t sum = 0;
    kernels().read_bandwidth({at<const void>(data), bytes, &sum, threads});
    return sum;
}

}  // namespace

NB_MODULE(_cpu, m) {
    using release = nb::call_guard<nb::gil_scoped_release>;

    m.def("isas", isas);
    m.def("isa", [] { return std::string(kernels().name); });
    m.def("use_isa", use_isa, "name"_a);

    m.def(
        "attend_open",
        [](uintptr_t q, uintptr_t key, uintptr_t value, uintptr_t scores, uintptr_t raw_at, uintptr_t tiles,
           uintptr_t out, uintptr_t lse, int64_t num_tiles, int64_t query_heads, int64_t heads, int64_t head_dim,
           int64_t page_size, float scale, int dtype, int raw_dtype, int threads) {
            kernels().attend_open({at<const void>(q), at<const void>(key), at<const void>(value), at<int32_t>(scores),
                                   at<const int64_t>(raw_at), at<const int64_t>(tiles), at<float>(out), at<float>(lse),
                                   num_tiles, query_heads, heads, query_heads / heads, head_dim, page_size, scale,
                                   dtype, raw_dtype, threads});
        },
        release());
    m.def(
        "attend_committed",
        [](uintptr_t shape, uintptr_t blocks, uintptr_t page_table, uintptr_t q, uintptr_t tiles, uintptr_t pages,
           uintptr_t groups, uintptr_t members, uintptr_t out, uintptr_t lse, int64_t num_tiles, int64_t num_groups,
           int64_t query_heads, int64_t near_pages, float scale, bool rotated, int dtype, int threads) {
            const leankv::RecordShape record = shape_at(shape);
            kernels().attend_committed({record, at<const uint8_t>(blocks), at<const int32_t>(page_table),
                                        at<const void>(q), at<const int64_t>(tiles), at<const int64_t>(pages),
                                        at<const int64_t>(groups), at<const int64_t>(members), at<float>(out),
                                        at<float>(lse), num_tiles, num_groups, query_heads, query_heads / record.heads,
                                        near_pages, scale, rotated, dtype, threads});
        },
        release());
    m.def(
        "merge_states",
        [](uintptr_t out_a, uintptr_t lse_a, uintptr_t out_b, uintptr_t lse_b, uintptr_t out, uintptr_t lse,
           int64_t rows, int64_t head_dim, int threads) {
            kernels().merge_states({at<const float>(out_a), at<const float>(lse_a), at<const float>(out_b),
                                    at<const float>(lse_b), at<float>(out), at<float>(lse), rows, head_dim, threads});
        },
        release());
    m.def(
        "commit_pages",
        [](uintptr_t shape, uintptr_t blocks, uintptr_t page_table, uintptr_t ring, uintptr_t ring_head,
           uintptr_t ring_free, uintptr_t usage, int64_t num_blocks, uintptr_t pages, uintptr_t key, uintptr_t value,
           uintptr_t tiers, int64_t n, int64_t layer, bool rotated, int dtype, int threads) {
            kernels().commit_pages({shape_at(shape), at<uint8_t>(blocks), at<int32_t>(page_table), at<int32_t>(ring),
                                    at<int64_t>(ring_head), at<int64_t>(ring_free), at<int64_t>(usage), num_blocks,
                                    at<const int64_t>(pages), at<const void>(key), at<const void>(value),
                                    at<const uint8_t>(tiers), n, layer, rotated, dtype, threads});
        },
        release());

    const auto shrink = [&m](const char* name, void (*leankv::Kernels::*kernel)(const leankv::ShrinkArgs&)) {
        m.def(
            name,
            [kernel](uintptr_t shape, uintptr_t blocks, uintptr_t page_table, uintptr_t ring, uintptr_t ring_head,
                     uintptr_t ring_free, uintptr_t usage, uintptr_t pages, uintptr_t level, uintptr_t counts,
                     int64_t num_blocks, int64_t n, int64_t layers, int64_t table_stride) {
                (kernels().*kernel)({shape_at(shape), at<uint8_t>(blocks), at<int32_t>(page_table), at<int32_t>(ring),
                                     at<int64_t>(ring_head), at<int64_t>(ring_free), at<int64_t>(usage), num_blocks,
                                     at<const int64_t>(pages), at<const int64_t>(level), at<int32_t>(counts), n, layers,
                                     table_stride});
            },
            release());
    };
    shrink("free_pages", &leankv::Kernels::free_pages);
    shrink("cut_pages", &leankv::Kernels::cut_pages);
    shrink("count_blocks", &leankv::Kernels::count_blocks);

    m.def("dense_decode", dense_decode, "q"_a, "k"_a, "v"_a, "out"_a, "batch"_a, "kv_heads"_a, "group"_a, "tokens"_a,
          "dim"_a, "scale"_a, "threads"_a, "cpu_bf16"_a = true, release());
    m.def("read_bandwidth", read_bandwidth, "data"_a, "bytes"_a, "threads"_a, release());
}
