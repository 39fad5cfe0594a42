// The linear kernels for any machine (SSE2 on x86-64, NEON on arm64).
#define RACE_ISA kernels_baseline
#define RACE_BYTES 16
#include "linear_kernel.inl"
