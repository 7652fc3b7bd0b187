// The pool as Python gives it, and as ops over pages of all layers take it.
#pragma once

#include <nanobind/nanobind.h>

#include "kernels.h"
#include "tensor.h"

namespace leankv {

// The pool as ops change it.
struct Pool {
    Tensor blocks, page_table, ring, ring_head, ring_free, usage;

    uint8_t* block_data(const RecordShape& shape) const {
        return blocks.numbers<uint8_t>("blocks", {-1, shape.block_bytes});
    }
    int32_t* table() const { return page_table.numbers<int32_t>("page_table", {-1, -1}); }
    int32_t* ring_ids() const { return ring.numbers<int32_t>("ring", {-1}); }
    int64_t* head() const { return ring_head.numbers<int64_t>("ring_head", {}); }
    int64_t* free() const { return ring_free.numbers<int64_t>("ring_free", {}); }
    int64_t* counts() const { return usage.numbers<int64_t>("usage", {leankv::kUsageCounts}); }
    int64_t num_blocks() const { return ring.size(0) - 1; }  // one slot is spare
};

// Has the module know the ops over pages of all layers.
void bind_pages(nb::module_& m);

// And those that know no pages.
void bind_dense(nb::module_& m);

}  // namespace leankv
