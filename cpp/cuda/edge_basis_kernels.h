#pragma once
// What edge_basis_cuda.cpp hands to the CUDA kernels: plain data and a stream, no torch. Formulas
// are those of ../src/harmonics.h. A thread has one edge, of the derivatives one edge and group.
#include <cstdint>

#include <cuda_runtime.h>

namespace race::cuda {

// Where component k of group g of edge e lies.
template <class T>
struct EdgeRows {
  T* data;
  int64_t edge, group, component;
};

template <class T>
struct EdgeBasis {
  int64_t n_edges, n_groups;
  T per_r_max;
  EdgeRows<const T> vector;
  EdgeRows<const T> bar_x, bar_sh, tangent;  // of the map's arguments those that it has
  EdgeRows<T> x, sh, bar_vector;             // of its results likewise
};

enum class EdgeMap { values, vjp, jvp };

template <class T>
cudaError_t launch_edge_basis(EdgeMap map, int64_t lmax, const EdgeBasis<T>& job,
                              cudaStream_t stream);

}  // namespace race::cuda
