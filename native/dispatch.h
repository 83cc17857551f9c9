// Which instruction set: the best that the CPU has, or the one that was asked for.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace fewbit {

std::vector<const Kernels*> available();        // on this CPU, best first
std::vector<std::string> built();               // all that this build holds
const Kernels& choose(const std::string& name); // "": the best; throws std::runtime_error with what there is

}  // namespace fewbit
