#pragma once
// The checked arguments of one call of race::chain; every device starts with them.
#include <optional>
#include <vector>

#include "../simd/linear_kernel.h"
#include "race/chain.h"

namespace race::chain {

struct Link {
  int64_t from, to;
  linear::Block block;
  int64_t weight_step;
};

struct Problem {
  std::vector<at::Tensor> tensors;  // the given tensors, then the new ones, not yet written
  std::vector<Link> links;
  int64_t n_given, n_atoms, n_species;
  at::Tensor species, weight, rows;  // rows undefined: new tensors start with zero

  Problem(at::TensorList x, const std::optional<at::Tensor>& rows, const at::Tensor& species,
          const at::Tensor& weight, int64_t n_species, c10::IntArrayRef widths,
          c10::IntArrayRef blocks);

  std::vector<at::Tensor> made() const { return {tensors.begin() + n_given, tensors.end()}; }
  // Writes the initial values of the new tensors.
  void start() const;
  void start(size_t tensor) const;

 private:
  void add(size_t k, const int64_t* row);
};

}  // namespace race::chain
