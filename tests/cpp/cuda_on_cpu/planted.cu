// Kernels with one error each, which the emulation is to find.
#include "planted.h"

namespace cuda_on_cpu {
namespace {

struct Numbers {
  int* out;
  int n;
};

// Lanes hand numbers to each other without waiting.
__global__ void missing_barrier(const __grid_constant__ Numbers job) {
  __shared__ int numbers[kLanes];
  const unsigned lane = threadIdx.x;
  numbers[lane] = static_cast<int>(lane);
  job.out[lane] = numbers[(lane + 1) % kLanes];
}

// The same with the barrier: no error.
__global__ void barrier(const __grid_constant__ Numbers job) {
  __shared__ int numbers[kLanes];
  const unsigned lane = threadIdx.x;
  numbers[lane] = static_cast<int>(lane);
  __syncwarp();
  job.out[lane] = numbers[(lane + 1) % kLanes];
}

// Two warps write the same number.
__global__ void race(const __grid_constant__ Numbers job) { job.out[threadIdx.x % kLanes] = 1; }

// The last lane has no number.
__global__ void off_by_one(const __grid_constant__ Numbers job) {
  if (static_cast<int>(threadIdx.x) <= job.n) job.out[threadIdx.x] = 1;
}

// Half of the lanes read what nobody wrote.
__global__ void uninitialised(const __grid_constant__ Numbers job) {
  __shared__ int numbers[kLanes];
  const unsigned lane = threadIdx.x;
  if (lane < kLanes / 2) numbers[lane] = 1;
  __syncwarp();
  job.out[lane] = numbers[lane];
}

}  // namespace

cudaError_t launch_planted(const std::string& error, int* out, int n) {
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(error == "race" ? 2 * kLanes : kLanes);
  const Numbers job{out, n};
  if (error == "missing barrier") return cudaLaunchKernelEx(&config, missing_barrier, job);
  if (error == "race") return cudaLaunchKernelEx(&config, race, job);
  if (error == "off by one") return cudaLaunchKernelEx(&config, off_by_one, job);
  if (error == "uninitialised") return cudaLaunchKernelEx(&config, uninitialised, job);
  return cudaLaunchKernelEx(&config, barrier, job);
}

}  // namespace cuda_on_cpu
