// One unit on a CPU, as a library for Python (kernels/cuda/emulated.py); see ../unit.cu.
#define LEANKV_EMULATED

#include "launch.h"

using leankv::cuda::emulator::counts;

// Writes what was counted since the last call, a name and a number a line.
extern "C" void leankv_report(char* report, int room) {
    std::string text;
    for (auto& [name, n] : counts) text += name + " " + std::to_string(n) + "\n";
    snprintf(report, room, "%s", text.c_str());
    counts.clear();
}

// Runs a grid, with blocks and warps in an order drawn from `seed`.
#define LEANKV_KERNEL(name, Args, threads, blocks, shared)                                                       \
    extern "C" void name(const leankv::cuda::Args* args, unsigned x, unsigned y, unsigned z, unsigned seed) {    \
        leankv::cuda::emulator::launch({x, y, z}, threads, shared, seed, [&] { leankv::cuda::name<S>(*args); }); \
    }                                                                                                            \
    extern "C" {                                                                                                 \
    int name##_facts[3] = {threads, shared, sizeof(leankv::cuda::Args)};                                         \
    }

// What the kernels need of a device comes from device.h.
#include LEANKV_UNIT
