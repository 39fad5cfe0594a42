#pragma once
// The arguments of race::linear, checked and unpacked: what every implementation starts with.
#include <vector>

#include "../simd/linear_kernel.h"
#include "race/linear.h"

namespace race::linear {

struct Sizes {
  int64_t atoms, dim_in, members, species, numel;
};

Sizes check(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& species,
            c10::IntArrayRef blocks);

// rows [n, dim_out] of the dtype and device of x.
void check_rows(const char* name, const at::Tensor& rows, const at::Tensor& x);

[[noreturn]] void refuse_species(int64_t got, int64_t n_species);

// All blocks inside dim_in, dim_out and numel, and no output column written twice.
std::vector<Block> parse(const Sizes& n, c10::IntArrayRef blocks, int64_t dim_out);

}  // namespace race::linear
