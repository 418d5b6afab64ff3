// Which kernels this machine can run.
#pragma once

#include <vector>

#include "kernels.h"

namespace ventoux {

// Best first. With `emulated`, for tests, also those whose special instructions are emulated: behind the others.
std::vector<Kernels> usable(bool emulated);

}  // namespace ventoux
