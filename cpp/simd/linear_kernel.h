#pragma once
// The interface of linear.cpp to the kernels, which are compiled once per instruction set: plain
// data only (see conv_kernel.h).
#include <cstdint>

namespace race::linear {

// One irrep: x[:, in_offset:] viewed [d, M, mul_in] -> out[:, out_offset:] viewed [d, M, mul_out]
// with a matrix [mul_in, mul_out].
struct Block {
  int64_t d, mul_in, mul_out, in_offset, out_offset, weight_offset;
};

// Atoms grouped by species: position p holds atom order[p] (null: p itself), and species s the
// positions begin[s] .. begin[s + 1].
template <class T>
struct Arguments {
  const Block* blocks;
  int64_t n_blocks, n_members, n_species;
  const int64_t *order, *begin;
  int64_t x_stride, y_stride;  // row widths of x and of y
  int64_t weight_member, weight_species;
  const T* x;
};

// y = x W over positions [begin, end).
template <class T>
struct Multiply : Arguments<T> {
  const T* weight;
  T* y;
  bool accumulate;  // y += x W, for blocks that write the same columns
};

// Rows [row, row + count) of the matrix of one member, species and block.
struct OuterTask {
  int64_t member, species, block, row, count;
};
constexpr int kOuterRows = 6;  // rows of a task at most

// dW += x^T y over tasks [begin, end).
template <class T>
struct Outer : Arguments<T> {
  const OuterTask* tasks;
  const T* y;
  T* dweight;
};

template <class T>
struct Kernels {
  void (*product)(const Multiply<T>&, int64_t begin, int64_t end);
  void (*outer)(const Outer<T>&, int64_t begin, int64_t end);
  void (*transpose)(const T* matrix, int64_t rows, int64_t columns, T* result);
};

struct KernelSet {
  Kernels<float> f32;
  Kernels<double> f64;
};

const KernelSet* kernels_baseline();
const KernelSet* kernels_avx2();  // x86-64 only, like the next
const KernelSet* kernels_avx512();

}  // namespace race::linear
