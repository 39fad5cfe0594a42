#pragma once
#include <cuda_runtime.h>

#include <string>

namespace cuda_on_cpu {

// `error`: missing barrier, race, off by one, uninitialised, or none. out: n numbers.
cudaError_t launch_planted(const std::string& error, int* out, int n);

}  // namespace cuda_on_cpu
