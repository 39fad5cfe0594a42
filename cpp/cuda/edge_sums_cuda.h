#pragma once
// race::edge_sums and race::periodic_fold on CUDA tensors, without float atomics: the same bits at
// every call.
#include "../src/edge_sums.h"

namespace race {

EdgeSumsFunction edge_sums_cuda;

// See ../src/periodic_fold.cpp.
void periodic_fold_cuda(const at::Tensor& rows, const at::Tensor& owner);

}  // namespace race
