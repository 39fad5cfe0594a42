#pragma once
// The interface of edge_sums_cuda.cpp to the CUDA kernels: plain data and a stream, no torch. Every
// sum has one owner and a fixed order.
#include <cstdint>

#include <cuda_runtime.h>

namespace race::cuda {

// A warp has one row of the domain and one group, or that row's virial. It sums the received edges,
// then the sent ones.
template <class T>
struct ForceSums {
  int64_t n_rows, n_groups, begin, n_receivers;
  const T* grad;                     // [E, G, 3]
  const double* edge_vector;         // [E, 3]
  const int64_t* row_ptr;            // [n_receivers + 1], received edges
  const int64_t *sent_begin, *sent;  // row k sends edges sent[sent_begin[k]] .. [k + 1]
  double to_sender;
  double *forces, *atom_virial;  // added to; atom_virial null: not requested
};

// A warp has one part of the edges and one group.
template <class T>
struct VirialSums {
  int64_t n_edges, n_groups, n_parts;
  const T* grad;
  const double* edge_vector;
  double* parts;  // [n_parts, G, 9]
};

template <class T>
cudaError_t launch_force_sums(const ForceSums<T>& args, cudaStream_t stream);
template <class T>
cudaError_t launch_virial_sums(const VirialSums<T>& args, cudaStream_t stream);

}  // namespace race::cuda
