#pragma once
// Adapters of the schemas of race::gate to functions of its operands, for every dispatch key.
#include <optional>
#include <tuple>

#include "race/gate.h"

namespace race::gate {

using OptionalTensor = std::optional<at::Tensor>;
using Two = std::tuple<at::Tensor, at::Tensor>;
using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

template <at::Tensor (*function)(const GateOperands&)>
at::Tensor forward(const at::Tensor& u, const at::Tensor& gates, c10::IntArrayRef blocks,
                   int64_t n_members, double silu_norm, double sigmoid_norm) {
  return function({u, gates, blocks, n_members, silu_norm, sigmoid_norm});
}

template <std::array<at::Tensor, 2> (*function)(const at::Tensor&, const GateOperands&)>
Two backward(const at::Tensor& grad, const at::Tensor& u, const at::Tensor& gates,
             c10::IntArrayRef blocks, int64_t n_members, double silu_norm, double sigmoid_norm) {
  return std::tuple_cat(function(grad, {u, gates, blocks, n_members, silu_norm, sigmoid_norm}));
}

template <std::array<at::Tensor, 3> (*function)(const GateBars&, const at::Tensor&,
                                                const GateOperands&)>
Three double_backward(const OptionalTensor& bar_u, const OptionalTensor& bar_gates,
                      const at::Tensor& grad, const at::Tensor& u, const at::Tensor& gates,
                      c10::IntArrayRef blocks, int64_t n_members, double silu_norm,
                      double sigmoid_norm) {
  return std::tuple_cat(function({bar_u.value_or(at::Tensor()), bar_gates.value_or(at::Tensor())},
                                 grad, {u, gates, blocks, n_members, silu_norm, sigmoid_norm}));
}

}  // namespace race::gate
