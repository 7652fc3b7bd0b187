// The kernels, compiled once per instruction set into namespace leankv::LEANKV_NS.
//
// All but the table is static and nothing of the standard library's templates or inline functions is used: such code
// is emitted once per translation unit under one name, and the linker could keep the copy that this CPU cannot run.
// The build refuses weak symbols.

#include "kernels.h"

#include "simd.inl"

#include "gemm.inl"

#include "lanes.inl"

#include "planes.inl"

#include "record.inl"

#include "prefetch.inl"

#include "softmax.inl"

#include "query.inl"

#include "products.inl"

#include "committed.inl"

#include "schedule.inl"

#include "open.inl"

#include "window.inl"

#include "linear.inl"

#include "quantize.inl"

#include "commit.inl"

#include "shrink.inl"

#include "packing.inl"

#include "dense.inl"

#define LEANKV_STRING_(x) #x
#define LEANKV_STRING(x) LEANKV_STRING_(x)

namespace leankv::LEANKV_NS {

const Kernels kernels = {
    .name = LEANKV_STRING(LEANKV_NS),
    .has_planes = has_planes,
    .attend_open = attend_open,
    .attend_committed = attend_committed,
    .merge_states = merge_states,
    .attend_window = window::attend,
    .linear = linear::multiply,
    .commit_pages = commit_pages,
    .free_pages = free_pages,
    .cut_pages = cut_pages,
    .count_pages = count_pages,
    .count_heads = count_heads,
    .measure_packed = measure_packed,
    .pack_pages = pack_pages,
    .unpack_pages = unpack_pages,
    .dense_decode = dense::decode,
    .read_bandwidth = dense::read_bandwidth,
};

}  // namespace leankv::LEANKV_NS
