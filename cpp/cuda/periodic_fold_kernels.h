#pragma once
// The interface of periodic_fold_cuda.cpp to its CUDA kernel: plain data and a stream, no torch.
#include <cstdint>

#include <cuda_runtime.h>

namespace race::cuda {

// A thread has one column of one row: rows[k] += the rows of its ghosts, in their order.
template <class T>
struct Fold {
  int64_t n_owned, width;
  const int64_t *begin, *order;  // ghosts of row k: order[begin[k]] .. order[begin[k + 1]]
  T* rows;                       // [n_owned + n_ghosts, width]
};

template <class T>
cudaError_t launch_fold(const Fold<T>& args, cudaStream_t stream);

}  // namespace race::cuda
