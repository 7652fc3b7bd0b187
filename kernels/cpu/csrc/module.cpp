// leankv_kernels._cpu: the kernels with tensors for arguments, whose dtype, shape, contiguity and device are checked
// here. What tensors say (page ids, counts) is taken as it is.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>

#include "choice.h"
#include "kernels.h"
#include "pool.h"
#include "tensor.h"

namespace nb = nanobind;
using namespace nb::literals;
using leankv::kernels;
using leankv::Pool;
using leankv::RecordShape;
using leankv::Tensor;

namespace {

// A RecordShape from its fields by name.
void make_shape(RecordShape* self, const nb::kwargs& given) {
    new (self) RecordShape{};
    size_t fields = 0;
#define LEANKV_TAKE(type, name) self->name = nb::cast<type>(given[#name]), fields++;
    LEANKV_RECORD_SHAPE(LEANKV_TAKE)
#undef LEANKV_TAKE
    if (given.size() != fields) throw nb::type_error("a RecordShape has no other fields.");
    if (!kernels().has_planes(*self))
        throw nb::value_error("the cpu kernels are not written for planes of these tiers.");
}

// The row of the page table that is a layer's.
int32_t* layer_table(const Tensor& page_table, int64_t layer) {
    int32_t* table = page_table.numbers<int32_t>("page_table", {-1, -1});
    if (layer < 0 || layer >= page_table.size(0)) throw nb::value_error("the page table has no such layer.");
    return table + layer * page_table.size(1);
}

// Query heads per KV head.
int64_t group_of(int64_t query_heads, int64_t heads) {
    if (!heads || !query_heads || query_heads % heads)
        throw nb::value_error("query heads must be a multiple of KV heads.");
    return query_heads / heads;
}

void check_group(int64_t group) {
    if (group > leankv::kMaxGroup)
        throw nb::value_error(("the cpu kernels take at most " + std::to_string(leankv::kMaxGroup) +
                               " query heads per KV head, not " + std::to_string(group) + ".")
                                  .c_str());
}

void check_dims(int64_t key_dim, int64_t value_dim) {
    for (const int64_t dim : {key_dim, value_dim})
        if (dim % 16 || dim < 16 || dim > leankv::kMaxDim)
            throw nb::value_error(("the cpu kernels take heads of 16 to " + std::to_string(leankv::kMaxDim) +
                                   " channels in steps of 16, not " + std::to_string(dim) + ".")
                                      .c_str());
}

void attend_open(const Tensor& q, const Tensor& key, const Tensor& value, const Tensor& scores, const Tensor& at,
                 const Tensor& tiles, const Tensor& out, const Tensor& lse, float scale, float cap, int threads) {
    const int64_t queries = q.size(0), query_heads = q.size(1), dim = q.size(2);
    const int64_t pages = key.size(0), page_size = key.size(1), heads = key.size(2), num_tiles = tiles.size(0);
    const int64_t value_dim = value.size(3);
    const int64_t group = group_of(query_heads, heads);
    check_group(group);
    check_dims(dim, value_dim);
    if (value.dtype("value") != key.dtype("key")) throw nb::value_error("keys and values must have one dtype.");
    kernels().attend_open({
        .q = q.model_numbers("q", {queries, query_heads, dim}),
        .key = key.model_numbers("key", {pages, page_size, heads, dim}),
        .value = value.model_numbers("value", {pages, page_size, heads, value_dim}),
        .scores = scores.numbers<int32_t>("scores", {pages, query_heads, page_size}),
        .at = at.numbers<int64_t>("at", {num_tiles}),
        .tiles = tiles.numbers<int64_t>("tiles", {num_tiles, 5}),
        .out = out.numbers<float>("out", {queries, query_heads, value_dim}),
        .lse = lse.numbers<float>("lse", {queries, query_heads}),
        .num_tiles = num_tiles,
        .query_heads = query_heads,
        .heads = heads,
        .group = group,
        .head_dim = dim,
        .value_dim = value_dim,
        .page_size = page_size,
        .scale = scale,
        .cap = cap,
        .dtype = q.dtype("q"),
        .raw_dtype = key.dtype("key"),
        .threads = threads,
    });
}

void attend_committed(const RecordShape& shape, const Tensor& blocks, const Tensor& page_table, int64_t layer,
                      const Tensor& q, const Tensor& tiles, const Tensor& pages, const Tensor& groups,
                      const Tensor& members, const Tensor& out, const Tensor& lse, int64_t near_pages, float scale,
                      float cap, bool rotated, int threads) {
    const int64_t queries = q.size(0), query_heads = q.size(1);
    kernels().attend_committed({
        .shape = shape,
        .blocks = blocks.numbers<uint8_t>("blocks", {-1, shape.block_bytes}),
        .page_table = layer_table(page_table, layer),
        .q = q.model_numbers("q", {queries, query_heads, shape.head_dim}),
        .tiles = tiles.numbers<int64_t>("tiles", {-1, 5}),
        .pages = pages.numbers<int64_t>("pages", {-1}),
        .groups = groups.numbers<int64_t>("groups", {-1, 5}),
        .members = members.numbers<int64_t>("members", {-1}),
        .out = out.numbers<float>("out", {queries, query_heads, shape.v_head_dim}),
        .lse = lse.numbers<float>("lse", {queries, query_heads}),
        .num_tiles = tiles.size(0),
        .num_groups = groups.size(0),
        .query_heads = query_heads,
        .group = group_of(query_heads, shape.heads),
        .near_pages = near_pages,
        .scale = scale,
        .cap = cap,
        .rotated = rotated,
        .dtype = q.dtype("q"),
        .threads = threads,
    });
}

void merge_states(const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b, const Tensor& lse_b,
                  const Tensor& sinks, const Tensor& out, const Tensor& lse, int threads) {
    const int64_t queries = out.size(0), heads = out.size(1), dim = out.size(2);
    kernels().merge_states({
        .out_a = out_a.numbers<float>("out_a", {queries, heads, dim}),
        .lse_a = lse_a.numbers<float>("lse_a", {queries, heads}),
        .out_b = out_b.numbers<float>("out_b", {queries, heads, dim}),
        .lse_b = lse_b.numbers<float>("lse_b", {queries, heads}),
        .sinks = sinks.numbers<float>("sinks", {heads}),
        .out = out.numbers<float>("out", {queries, heads, dim}),
        .lse = lse.numbers<float>("lse", {queries, heads}),
        .rows = queries * heads,
        .heads = heads,
        .head_dim = dim,
        .threads = threads,
    });
}

void attend_window(const Tensor& q, const Tensor& key, const Tensor& value, const Tensor& slots, const Tensor& requests,
                   const Tensor& sinks, const Tensor& out, int64_t window, float scale, float cap, int threads) {
    const int64_t queries = q.size(0), query_heads = q.size(1), key_dim = q.size(2);
    const int64_t rows = key.size(0), heads = key.size(1), value_dim = value.size(2), n = slots.size(0);
    const int64_t group = group_of(query_heads, heads);
    check_group(group);
    check_dims(key_dim, value_dim);
    if (value.dtype("value") != key.dtype("key")) throw nb::value_error("keys and values must have one dtype.");
    const int64_t* from = slots.numbers<int64_t>("slots", {n});
    for (int64_t i = 0; i < n; i++)
        if (from[i] < 0 || from[i] >= rows) throw nb::value_error("there is no such slot.");
    kernels().attend_window({
        .q = q.model_numbers("q", {queries, query_heads, key_dim}),
        .key = key.model_numbers("key", {rows, heads, key_dim}),
        .value = value.model_numbers("value", {rows, heads, value_dim}),
        .slots = from,
        .requests = requests.numbers<int64_t>("requests", {-1, 5}),
        .sinks = sinks.numbers<float>("sinks", {query_heads}),
        .out = const_cast<void*>(out.model_numbers("out", {queries, query_heads, value_dim})),
        .num_requests = requests.size(0),
        .query_heads = query_heads,
        .heads = heads,
        .group = group,
        .key_dim = key_dim,
        .value_dim = value_dim,
        .window = window,
        .scale = scale,
        .cap = cap,
        .dtype = q.dtype("q"),
        .raw_dtype = key.dtype("key"),
        .out_dtype = out.dtype("out"),
        .threads = threads,
    });
}

void commit_pages(const RecordShape& shape, const Tensor& blocks, const Tensor& page_table, int64_t layer,
                  const Tensor& ring, const Tensor& ring_head, const Tensor& ring_free, const Tensor& usage,
                  const Tensor& pages, const Tensor& key, const Tensor& value, const Tensor& at, const Tensor& tiers,
                  bool rotated, int threads) {
    const Pool pool{blocks, page_table, ring, ring_head, ring_free, usage};
    const int64_t n = pages.size(0), layers = key.size(0), rows = key.size(1);
    if (layer + layers > page_table.size(0)) throw nb::value_error("the page table has no such layers.");
    const int64_t* from = at.numbers<int64_t>("at", {n});
    for (int64_t i = 0; i < n; i++)
        if (from[i] < 0 || from[i] >= rows) throw nb::value_error("there is no such raw page.");
    if (value.dtype("value") != key.dtype("key")) throw nb::value_error("keys and values must have one dtype.");
    kernels().commit_pages({
        .shape = shape,
        .blocks = pool.block_data(shape),
        .page_table = layer_table(page_table, layer),
        .ring = pool.ring_ids(),
        .ring_head = pool.head(),
        .ring_free = pool.free(),
        .usage = pool.counts(),
        .num_blocks = pool.num_blocks(),
        .table_stride = page_table.size(1),
        .pages = pages.numbers<int64_t>("pages", {n}),
        .at = from,
        .key = key.model_numbers("key", {layers, rows, shape.page_size, shape.heads, shape.head_dim}),
        .value = value.model_numbers("value", {layers, rows, shape.page_size, shape.heads, shape.v_head_dim}),
        .tiers = tiers.numbers<uint8_t>("tiers", {layers, n, shape.heads, shape.page_size}),
        .n = n,
        .layers = layers,
        .rows = rows,
        .layer = layer,
        .rotated = rotated,
        .dtype = key.dtype("key"),
        .threads = threads,
    });
}

}  // namespace

NB_MODULE(_cpu, m) {
    // Python keeps the shapes of layouts in use until it ends, which nanobind would report as leaks.
    nb::set_leak_warnings(false);
    using release = nb::call_guard<nb::gil_scoped_release>;
    Tensor::bind();

    auto shape = nb::class_<RecordShape>(m, "RecordShape").def("__init__", make_shape);
#define LEANKV_FIELD(type, name) shape.def_ro(#name, &RecordShape::name);
    LEANKV_RECORD_SHAPE(LEANKV_FIELD)
#undef LEANKV_FIELD

    m.def("isas", leankv::isas);
    m.def("isa", [] { return std::string(kernels().name); });
    m.def("use_isa", [](const std::string& name) { leankv::use_isa(name); }, "name"_a);

    m.def("attend_open", attend_open, nb::kw_only(), "q"_a, "key"_a, "value"_a, "scores"_a, "at"_a, "tiles"_a, "out"_a,
          "lse"_a, "scale"_a, "cap"_a, "threads"_a, release());
    m.def("attend_committed", attend_committed, nb::kw_only(), "shape"_a, "blocks"_a, "page_table"_a, "layer"_a, "q"_a,
          "tiles"_a, "pages"_a, "groups"_a, "members"_a, "out"_a, "lse"_a, "near_pages"_a, "scale"_a, "cap"_a,
          "rotated"_a, "threads"_a, release());
    m.def("merge_states", merge_states, nb::kw_only(), "out_a"_a, "lse_a"_a, "out_b"_a, "lse_b"_a, "sinks"_a, "out"_a,
          "lse"_a, "threads"_a, release());
    m.def("attend_window", attend_window, nb::kw_only(), "q"_a, "key"_a, "value"_a, "slots"_a, "requests"_a, "sinks"_a,
          "out"_a, "window"_a, "scale"_a, "cap"_a, "threads"_a, release());
    m.def("commit_pages", commit_pages, nb::kw_only(), "shape"_a, "blocks"_a, "page_table"_a, "layer"_a, "ring"_a,
          "ring_head"_a, "ring_free"_a, "usage"_a, "pages"_a, "key"_a, "value"_a, "at"_a, "tiers"_a, "rotated"_a,
          "threads"_a, release());
    leankv::bind_pages(m);
    leankv::bind_dense(m);
}
