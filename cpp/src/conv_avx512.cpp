// The convolution kernels for machines with AVX512; conv.cpp asks the processor before it calls
// them.
#ifdef __AVX512F__
#define RACE_ISA kernels_avx512
#define RACE_BYTES 64
#include "conv_kernel.inl"
#else
#include "conv_kernel.h"
const race::conv::KernelSet* race::conv::kernels_avx512() { return nullptr; }
#endif
