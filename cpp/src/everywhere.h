#pragma once
// Before a function that is written once for the CPU and for CUDA: always inlined into its caller.
#ifdef __CUDACC__
#define RACE_EVERYWHERE __device__ __forceinline__
#else
#define RACE_EVERYWHERE inline __attribute__((always_inline))
#endif
