// The linear kernels for machines with AVX2; linear.cpp asks the processor before it calls them.
#ifdef __AVX2__
#define RACE_ISA kernels_avx2
#define RACE_BYTES 32
#include "linear_kernel.inl"
#else
#include "linear_kernel.h"
const race::linear::KernelSet* race::linear::kernels_avx2() { return nullptr; }
#endif
