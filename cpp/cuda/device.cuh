#pragma once
// Common parts of all kernels: launches, the numbers of warps and threads, sums over lanes, the
// logistic function.
#include <cmath>
#include <cstdint>

#include <cuda_runtime.h>

#include "warp.h"

namespace race::cuda {

constexpr int kWarpsPerBlock = 4;

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}

// The sum over lanes, in every lane, added up in the same order at every call.
template <class T>
__device__ __forceinline__ T over_lanes(T value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
  return value;
}

template <class T>
__device__ __forceinline__ T sigmoid(T x) {
  return T(1) / (T(1) + std::exp(-x));
}

template <class Kernel, class Arguments>
cudaError_t launch(Kernel kernel, const Arguments& args, int64_t warps, cudaStream_t stream) {
  if (warps == 0) return cudaSuccess;
  const int64_t blocks = (warps + kWarpsPerBlock - 1) / kWarpsPerBlock;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kWarp * kWarpsPerBlock);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args);
}

__device__ __forceinline__ int64_t global_warp() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}

// Launches one thread per item.
template <class Kernel, class Arguments>
cudaError_t launch_threads(Kernel kernel, const Arguments& args, int64_t threads,
                           cudaStream_t stream) {
  return launch(kernel, args, (threads + kWarp - 1) / kWarp, stream);
}

__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * (kWarp * kWarpsPerBlock) + threadIdx.x;
}

}  // namespace race::cuda
