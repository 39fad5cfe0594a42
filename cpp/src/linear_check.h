#pragma once
// The checked and unpacked arguments of race::linear; every implementation starts with them.
#include <vector>

#include "../simd/linear_kernel.h"
#include "race/linear.h"

namespace race::linear {

struct Sizes {
  int64_t atoms, dim_in, members, species, numel;
};

Sizes check(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& species,
            c10::IntArrayRef blocks);

// Checks that rows are [n, dim_out] with the dtype and device of x.
void check_rows(const char* name, const at::Tensor& rows, const at::Tensor& x);

[[noreturn]] void refuse_species(int64_t got, int64_t n_species);

// Unpacks the blocks: all must lie inside dim_in, dim_out and numel, and no output column may be
// written twice.
std::vector<Block> parse(const Sizes& n, c10::IntArrayRef blocks, int64_t dim_out);

}  // namespace race::linear
