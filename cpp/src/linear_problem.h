#pragma once
// The checked and unpacked arguments of race::linear: the one object that every device starts with.
#include <utility>
#include <vector>

#include "../simd/linear_kernel.h"
#include "race/linear.h"

namespace race::linear {

struct Operands {
  const at::Tensor &x, &weight;
  const OptionalTensor& species;
  c10::IntArrayRef blocks;
};

struct Problem {
  int64_t n_atoms, dim_in, dim_out, n_members, n_species;
  int64_t n_weights;  // numbers of the matrices of one member and species
  // All inside dim_in, dim_out and the matrices; no column of the result is written twice.
  std::vector<Block> blocks;

  // The arguments of linear and of linear_backward. An error names the argument, the expected and
  // the received value. The device that reads the species checks their values.
  Problem(const Operands& operands, int64_t dim_out);
  Problem(const at::Tensor& grad, const Operands& operands);
};

using Range = std::pair<int64_t, int64_t>;  // [begin, end)

bool overlap(std::vector<Range> ranges);

// Whether two blocks have numbers of a matrix in common.
bool share_matrices(const std::vector<Block>& blocks);

// The error of a species outside [0, n_species).
[[noreturn]] void refuse_species(const char* op, int64_t got, int64_t n_species);

}  // namespace race::linear
