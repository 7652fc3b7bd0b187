// One unit, a header's kernels at one shape, for a device: LEANKV_UNIT names the header and, where its kernels have
// one, LEANKV_SHAPE the shape (kernels/cuda/unit.py). Beside every kernel lie its facts: threads of a block, dynamic
// shared bytes, bytes of its arguments.
#define LEANKV_KERNEL(name, Args, threads, blocks, shared)                          \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                   \
        name(const __grid_constant__ leankv::cuda::Args args) {                     \
        leankv::cuda::take_turn();                                                  \
        leankv::cuda::name<S>(args);                                                \
    }                                                                               \
    extern "C" {                                                                    \
    __device__ int name##_facts[3] = {threads, shared, sizeof(leankv::cuda::Args)}; \
    }

#include LEANKV_UNIT
