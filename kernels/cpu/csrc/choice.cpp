#include "choice.h"

#include <atomic>
#include <stdexcept>

namespace leankv {
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
        found.push_back(&avx512::kernels);
    if (avx2) found.push_back(&avx2::kernels);
#endif
    found.push_back(&portable::kernels);
    return found;
}

const std::vector<const Kernels*> choices = runnable();
std::atomic<const Kernels*> current = choices.front();

}  // namespace

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
    throw std::invalid_argument("instruction set \"" + name + "\" is not available: choose one of " + known + ".");
}

}  // namespace leankv
