// One shape's kernel on a CPU, as a library for Python (kernels/cuda/emulated.py); -DLEANKV_SHAPE names the shape.
#define LEANKV_EMULATED

#include "launch.h"
// What the kernel needs of a device comes from device.h.
#include "../attend.cuh"

using namespace leankv::cuda;
using S = Shape<LEANKV_SHAPE>;

extern "C" int leankv_args_bytes() { return sizeof(AttendArgs); }

// Runs a grid, with warps in an order drawn from `seed`; writes what was counted to `report`, a name and a number a
// line.
extern "C" void leankv_attend(const AttendArgs* args, int splits, int heads, int queries, unsigned seed, char* report,
                              int room) {
    emulator::counts.clear();
    const dim3 grid{(unsigned)splits, (unsigned)heads, (unsigned)queries};
    emulator::launch(grid, 32 * S::warps, S::shared_bytes, seed, [&] { attend_committed<S>(*args); });
    std::string text;
    for (auto& [name, n] : emulator::counts) text += name + " " + std::to_string(n) + "\n";
    snprintf(report, room, "%s", text.c_str());
}
