#pragma once
// The interface of edge_basis_cuda.cpp to the CUDA kernels: plain data and a stream, no torch.
// Formulas are those of ../src/harmonics.h. One thread has one edge, or in derivatives one edge and
// group.
#include <cstdint>

#include <cuda_runtime.h>

#include "../src/edge_rows.h"

namespace race::cuda {

using edge_basis::EdgeRows;

template <class T>
struct EdgeBasis {
  int64_t n_edges, n_groups;
  T per_r_max;
  EdgeRows<const T> vector;
  EdgeRows<const T> bar_x, bar_sh, tangent;  // those arguments that the map has
  EdgeRows<T> x, sh, bar_vector;             // likewise those results
};

enum class EdgeMap { values, vjp, jvp };

template <class T>
cudaError_t launch_edge_basis(EdgeMap map, int64_t lmax, const EdgeBasis<T>& args,
                              cudaStream_t stream);

}  // namespace race::cuda
