#pragma once
// The interface of product.cpp to the kernels, which are compiled once per instruction set: plain
// data only (see conv_kernel.h).
#include <cstdint>

#include "../src/bilinear_map.h"

namespace race::product {

// The polynomial out = x + P2 + P3 and its derivatives, atom by atom and channel by channel.
//   first order   out;  grad given: dx and dweight of <grad, out>
//   second order  the same of S = <grad, d/d epsilon out(x + epsilon bar_x, weight + epsilon
//                 bar_weight)>, out being dS/dgrad
// All results but dweight are overwritten, and each may be null.
template <class T>
struct Arguments {
  BilinearMaps<T> maps;
  int64_t n_components, n_paths, n_members, n_channels, n_species;
  // Atoms grouped by species: position p holds atom order[p] (null: p itself), and species s the
  // positions begin[s] .. begin[s + 1].
  const int64_t *order, *begin;
  const T *x, *grad;            // [n, n_components, M, C]; grad null: no dx, no dweight
  const T* weight;              // [M, S, n_paths, C]
  const T *bar_x, *bar_weight;  // second order; bar_weight null: zero
  T *out, *dx;                  // as x
  T* dweight;                   // as weight, added to
  T* scratch;                   // scratch_size() numbers
};

constexpr int kVectors = 4;    // vectors of channels worked on together, at most
constexpr int kMaxBytes = 64;  // bytes of a vector, at most

// Numbers of T: six values of every component and three of every path, two parts each.
template <class T>
constexpr int64_t scratch_size(int64_t n_components, int64_t n_paths) {
  return (6 * n_components + 3 * n_paths) * 2 * kVectors * kMaxBytes / sizeof(T);
}

template <class T>
struct Kernels {
  void (*first)(const Arguments<T>&, int64_t begin, int64_t end);  // positions
  void (*second)(const Arguments<T>&, int64_t begin, int64_t end);
};

struct KernelSet {
  Kernels<float> f32;
  Kernels<double> f64;
};

const KernelSet* kernels_baseline();
const KernelSet* kernels_avx2();  // x86-64 only, like the next
const KernelSet* kernels_avx512();

}  // namespace race::product
