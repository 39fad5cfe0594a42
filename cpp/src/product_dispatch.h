#pragma once
// Adapters of the schemas of race::product to functions of its operands, for every dispatch key.
#include <optional>
#include <tuple>

#include "race/product.h"

namespace race::product {

using OptionalTensor = std::optional<at::Tensor>;
using Two = std::tuple<at::Tensor, at::Tensor>;
using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

template <at::Tensor (*function)(const ProductOperands&)>
at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& species,
                   c10::IntArrayRef paths, const at::Tensor& cg) {
  return function({x, weight, species, paths, cg});
}

template <std::array<at::Tensor, 2> (*function)(const at::Tensor&, const ProductOperands&,
                                                std::array<bool, 2>)>
Two backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
             const at::Tensor& species, c10::IntArrayRef paths, const at::Tensor& cg,
             std::array<bool, 2> mask) {
  return std::tuple_cat(function(grad, {x, weight, species, paths, cg}, mask));
}

template <std::array<at::Tensor, 3> (*function)(const ProductBars&, const at::Tensor&,
                                                const ProductOperands&, std::array<bool, 3>)>
Three double_backward(const OptionalTensor& bar_x, const OptionalTensor& bar_weight,
                      const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                      const at::Tensor& species, c10::IntArrayRef paths, const at::Tensor& cg,
                      std::array<bool, 3> mask) {
  return std::tuple_cat(function({bar_x.value_or(at::Tensor()), bar_weight.value_or(at::Tensor())},
                                 grad, {x, weight, species, paths, cg}, mask));
}

}  // namespace race::product
