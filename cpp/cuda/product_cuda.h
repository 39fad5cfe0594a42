#pragma once
// race::product and its derivatives on CUDA tensors; arguments, results and errors are those of
// race/product.h. One differs, to avoid waiting for the device: a species outside [0, S) gives NaN.
#include "race/product.h"

namespace race {

at::Tensor product_cuda(const ProductOperands& operands);

std::array<at::Tensor, 2> product_backward_cuda(const at::Tensor& grad,
                                                const ProductOperands& operands,
                                                std::array<bool, 2> mask);

std::array<at::Tensor, 3> product_double_backward_cuda(const ProductBars& bars,
                                                       const at::Tensor& grad,
                                                       const ProductOperands& operands,
                                                       std::array<bool, 3> mask);

}  // namespace race
