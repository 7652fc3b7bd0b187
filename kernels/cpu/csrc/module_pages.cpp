// The part of leankv_kernels._cpu that frees, cuts, counts, packs and unpacks pages in all layers.

#include <nanobind/nanobind.h>

#include "choice.h"
#include "kernels.h"
#include "pool.h"
#include "tensor.h"

namespace leankv {

using namespace nb::literals;

namespace {

// What free_pages, cut_pages and count_pages have in common; the caller adds levels or counts.
ShrinkArgs shrink_args(const RecordShape& shape, const Pool& pool, const Tensor& pages) {
    return {
        .shape = shape,
        .blocks = pool.block_data(shape),
        .page_table = pool.table(),
        .ring = pool.ring_ids(),
        .ring_head = pool.head(),
        .ring_free = pool.free(),
        .usage = pool.counts(),
        .num_blocks = pool.num_blocks(),
        .pages = pages.numbers<int64_t>("pages", {-1}),
        .level = nullptr,
        .counts = nullptr,
        .n = pages.size(0),
        .layers = pool.page_table.size(0),
        .table_stride = pool.page_table.size(1),
    };
}

void free_pages(const RecordShape& shape, const Tensor& blocks, const Tensor& page_table, const Tensor& ring,
                const Tensor& ring_head, const Tensor& ring_free, const Tensor& usage, const Tensor& pages) {
    kernels().free_pages(shrink_args(shape, {blocks, page_table, ring, ring_head, ring_free, usage}, pages));
}

void cut_pages(const RecordShape& shape, const Tensor& blocks, const Tensor& page_table, const Tensor& ring,
               const Tensor& ring_head, const Tensor& ring_free, const Tensor& usage, const Tensor& pages,
               const Tensor& level) {
    auto args = shrink_args(shape, {blocks, page_table, ring, ring_head, ring_free, usage}, pages);
    args.level = level.numbers<int64_t>("level", {args.n});
    kernels().cut_pages(args);
}

void count_pages(const RecordShape& shape, const Tensor& blocks, const Tensor& page_table, const Tensor& ring,
                 const Tensor& ring_head, const Tensor& ring_free, const Tensor& usage, const Tensor& pages,
                 const Tensor& counts) {
    auto args = shrink_args(shape, {blocks, page_table, ring, ring_head, ring_free, usage}, pages);
    args.counts = counts.numbers<int32_t>("counts", {args.n, kPageCounts});
    kernels().count_pages(args);
}

void count_heads(const RecordShape& shape, const Tensor& blocks, const Tensor& page_table, const Tensor& ring,
                 const Tensor& ring_head, const Tensor& ring_free, const Tensor& usage, const Tensor& pages,
                 const Tensor& counts) {
    auto args = shrink_args(shape, {blocks, page_table, ring, ring_head, ring_free, usage}, pages);
    args.head_counts = counts.numbers<int64_t>("counts", {args.layers, shape.heads, kHeadTotals});
    kernels().count_heads(args);
}

// What packing and unpacking have in common; lengths are checked against each other, not against records.
PackArgs pack_args(const RecordShape& shape, const Pool& pool, const Tensor& pages, const Tensor& far_bytes,
                   const Tensor& near_bytes, const Tensor& held) {
    const auto store = shrink_args(shape, pool, pages);
    return {
        .store = store,
        .far = nullptr,
        .near = nullptr,
        .far_bytes = far_bytes.numbers<int64_t>("far_bytes", {store.n, store.layers}),
        .near_bytes = near_bytes.numbers<int64_t>("near_bytes", {store.n, store.layers}),
        .held = held.numbers<int64_t>("held", {store.n}),
    };
}

// Has the bytes of both parts taken, if they are as long as their lengths say and a record can be so long.
void take_parts(PackArgs& args, const Tensor& far, const Tensor& near) {
    const RecordShape& shape = args.store.shape;
    const int64_t list = 4 * shape.max_blocks, longest = shape.max_blocks * shape.block_bytes - list;
    int64_t sum_far = 0, sum_near = 0;
    for (int64_t i = 0; i < args.store.n * args.store.layers; i++) {
        const int64_t far_bytes = args.far_bytes[i], near_bytes = args.near_bytes[i];
        if (far_bytes < shape.header_bytes - list || near_bytes < 0 || far_bytes > longest ||
            near_bytes > longest - far_bytes)
            throw nb::value_error("no record has parts of such lengths.");
        sum_far += far_bytes, sum_near += near_bytes;
    }
    args.far = far.numbers<uint8_t>("far", {sum_far});
    args.near = near.numbers<uint8_t>("near", {sum_near});
}

void measure_packed(const RecordShape& shape, const Tensor& blocks, const Tensor& page_table, const Tensor& ring,
                    const Tensor& ring_head, const Tensor& ring_free, const Tensor& usage, const Tensor& pages,
                    const Tensor& level, const Tensor& far_bytes, const Tensor& near_bytes, const Tensor& held) {
    const Pool pool{blocks, page_table, ring, ring_head, ring_free, usage};
    auto args = pack_args(shape, pool, pages, far_bytes, near_bytes, held);
    args.store.level = level.numbers<int64_t>("level", {args.store.n});
    kernels().measure_packed(args);
}

// Packs pages, or unpacks them: which way bytes go is the kernel's affair.
template <auto kKernel>
void move_pages(const RecordShape& shape, const Tensor& blocks, const Tensor& page_table, const Tensor& ring,
                const Tensor& ring_head, const Tensor& ring_free, const Tensor& usage, const Tensor& pages,
                const Tensor& far, const Tensor& far_bytes, const Tensor& near, const Tensor& near_bytes,
                const Tensor& held) {
    const Pool pool{blocks, page_table, ring, ring_head, ring_free, usage};
    auto args = pack_args(shape, pool, pages, far_bytes, near_bytes, held);
    take_parts(args, far, near);
    (kernels().*kKernel)(args);
}

}  // namespace

void bind_pages(nb::module_& m) {
    using release = nb::call_guard<nb::gil_scoped_release>;
    m.def("free_pages", free_pages, nb::kw_only(), "shape"_a, "blocks"_a, "page_table"_a, "ring"_a, "ring_head"_a,
          "ring_free"_a, "usage"_a, "pages"_a, release());
    m.def("cut_pages", cut_pages, nb::kw_only(), "shape"_a, "blocks"_a, "page_table"_a, "ring"_a, "ring_head"_a,
          "ring_free"_a, "usage"_a, "pages"_a, "level"_a, release());
    m.def("count_pages", count_pages, nb::kw_only(), "shape"_a, "blocks"_a, "page_table"_a, "ring"_a, "ring_head"_a,
          "ring_free"_a, "usage"_a, "pages"_a, "counts"_a, release());
    m.def("count_heads", count_heads, nb::kw_only(), "shape"_a, "blocks"_a, "page_table"_a, "ring"_a, "ring_head"_a,
          "ring_free"_a, "usage"_a, "pages"_a, "counts"_a, release());

    m.def("measure_packed", measure_packed, nb::kw_only(), "shape"_a, "blocks"_a, "page_table"_a, "ring"_a,
          "ring_head"_a, "ring_free"_a, "usage"_a, "pages"_a, "level"_a, "far_bytes"_a, "near_bytes"_a, "held"_a,
          release());
    const auto move = [&m](const char* name, auto op) {
        m.def(name, op, nb::kw_only(), "shape"_a, "blocks"_a, "page_table"_a, "ring"_a, "ring_head"_a, "ring_free"_a,
              "usage"_a, "pages"_a, "far"_a, "far_bytes"_a, "near"_a, "near_bytes"_a, "held"_a, release());
    };
    move("pack_pages", move_pages<&Kernels::pack_pages>);
    move("unpack_pages", move_pages<&Kernels::unpack_pages>);
}

}  // namespace leankv
