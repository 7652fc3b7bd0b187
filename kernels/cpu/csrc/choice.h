// Which instruction set the kernels run with: the best one of this CPU, until another is asked for.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace leankv {

// The kernels in use.
const Kernels& kernels();
// Instruction sets that this build has and this CPU runs, best first.
std::vector<std::string> isas();
// Switches; std::invalid_argument, a ValueError in Python, for one that is not among them.
void use_isa(const std::string& name);

}  // namespace leankv
