// The linear kernels for machines with AVX512; linear.cpp asks the processor before it calls them.
#ifdef __AVX512F__
#define RACE_ISA kernels_avx512
#define RACE_BYTES 64
#include "linear_kernel.inl"
#else
#include "linear_kernel.h"
const race::linear::KernelSet* race::linear::kernels_avx512() { return nullptr; }
#endif
