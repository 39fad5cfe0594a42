#pragma once
// The interface of product_cuda.cpp to the CUDA kernels: plain data and a stream, no torch.
// Arithmetic and layouts are those of race/product.h; the maps are the CPU's, copied to the
// device.
//
// One thread has one channel of one atom. It reads components where they lie, so the threads of a
// warp read neighbouring numbers. It writes intermediate results for the other kernels beside them
// (p2, bar_p2). The adjoint of the weights is a second kernel, in which a thread has one channel of
// some atoms of one species. Nothing is summed atomically.
#include <cstdint>

#include <cuda_runtime.h>

#include "../src/bilinear_map.h"

namespace race::cuda {

// Rows [n, n_components, M C] and their direction (second order).
template <class T, class Pointer = const T*>
struct DualRows {
  Pointer value, tangent;
};

template <class T>
struct ProductArguments {
  product::BilinearMaps<T> maps;
  int64_t n_atoms, n_components, n_paths, n_members, n_channels, n_species;
  const int64_t* species;
  const T* grad;          // null: neither dx nor bar_p2
  DualRows<T> x, weight;  // weight [M, S, P, C]; in second order tangents too, that of weight null:
                          // zero
  DualRows<T, T*> p2, bar_p2;  // scratch
  T *out, *dx;                 // as x, each may be null; in second order their tangents
};

template <class T>
struct ProductWeights {
  product::BilinearMaps<T> maps;
  int64_t n_components, n_paths, width, n_species, n_parts;
  const int64_t *order, *begin;  // atoms of species s: order[begin[s]] .. order[begin[s + 1]]
  const T* grad;
  DualRows<T> x, p2, bar_p2;
  T* dweight;  // [n_parts, S, P, M C], zero; in second order its tangent
};

template <class T>
cudaError_t launch_product(const ProductArguments<T>& args, bool second, cudaStream_t stream);
template <class T>
cudaError_t launch_product_weights(const ProductWeights<T>& args, bool second, cudaStream_t stream);

}  // namespace race::cuda
