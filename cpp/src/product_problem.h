#pragma once
// The checked and unpacked product: the one object that every device starts with.
#include "race/product.h"

namespace race::product {

constexpr int64_t kMaxComponents = 32;  // both parities of l = 0 to 3
constexpr size_t kPathFields = 8;       // integers of a row of the path table

struct Problem {
  int64_t n_atoms, n_components, n_members, n_species, n_paths, n_channels;
  c10::IntArrayRef paths;  // its rows are checked by plan_for (product_plan.h)

  // The arguments of product, of product_backward and of product_double_backward. An error names
  // the argument, the expected and the received value. The device that reads the species checks
  // their values.
  explicit Problem(const ProductOperands& operands);
  Problem(const at::Tensor& grad, const ProductOperands& operands);
  Problem(const ProductBars& bars, const at::Tensor& grad, const ProductOperands& operands);
};

}  // namespace race::product
