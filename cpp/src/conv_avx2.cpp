// The convolution kernels for machines with AVX2; conv.cpp asks the processor before it calls them.
#ifdef __AVX2__
#define RACE_ISA kernels_avx2
#define RACE_BYTES 32
#include "conv_kernel.inl"
#else
#include "conv_kernel.h"
const race::conv::KernelSet* race::conv::kernels_avx2() { return nullptr; }
#endif
