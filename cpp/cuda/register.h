#pragma once
// Registration of the kernels of race::* operators for CUDA tensors. Each NAME_cuda.cpp registers
// its own by a static initialiser; arguments, results and errors are those of the CPU.
#include <torch/library.h>

namespace race::cuda {

using DefineKernels = void (*)(torch::Library& library);

/// Calls define(library) for a library of kernels for CUDA tensors, unless the operator `first`,
/// one of them, has such a kernel already (see register_operators of ../src/operators.h).
bool register_kernels(const char* first, DefineKernels define);

/// Whether this library's kernels serve the process: another copy of it may have been first.
bool kernels_serve();

}  // namespace race::cuda
