#pragma once
// The interface of sorted_edges.cpp to its CUDA kernel: plain data and a stream, no torch.
#include <cstdint>

#include <cuda_runtime.h>

namespace race::cuda {

// A graph in CSR form, and where its receivers and a fault of it are written.
struct CsrEdges {
  const int64_t *row_ptr, *sender;
  int64_t n_receivers, n_edges, n_nodes;
  int64_t* receiver;  // [E], of each edge
  int64_t* fault;     // [3] zeros: kind, position and value of some bad entry, if there is one
};

// Kinds of faults. 1: row_ptr decreases or leaves [0, E]; 2: a sender outside [0, n_nodes). A bad
// row is not followed.
cudaError_t launch_receivers(const CsrEdges& args, cudaStream_t stream);

}  // namespace race::cuda
