#pragma once
// Adapters of the schemas of race::conv to functions of its operands, for every dispatch key.
#include <optional>
#include <tuple>

#include "race/conv.h"

namespace race::conv {

using OptionalTensor = std::optional<at::Tensor>;
using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Five = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

inline at::Tensor plain(const OptionalTensor& t) { return t.value_or(at::Tensor()); }

template <at::Tensor (*function)(const ConvOperands&, int64_t)>
at::Tensor forward(const at::Tensor& g, const at::Tensor& radial, const OptionalTensor& table,
                   const at::Tensor& sh, const at::Tensor& sender, const at::Tensor& row_ptr,
                   c10::IntArrayRef paths, const at::Tensor& cg, int64_t dim_out) {
  return function({g, radial, plain(table), sh, sender, row_ptr, paths, cg}, dim_out);
}

template <std::array<at::Tensor, 4> (*function)(const at::Tensor&, const ConvOperands&,
                                                std::array<bool, 4>)>
Four backward(const at::Tensor& grad, const at::Tensor& g, const at::Tensor& radial,
              const OptionalTensor& table, const at::Tensor& sh, const at::Tensor& sender,
              const at::Tensor& row_ptr, c10::IntArrayRef paths, const at::Tensor& cg,
              std::array<bool, 4> mask) {
  return std::tuple_cat(
      function(grad, {g, radial, plain(table), sh, sender, row_ptr, paths, cg}, mask));
}

template <std::array<at::Tensor, 5> (*function)(const ConvBars&, const at::Tensor&,
                                                const ConvOperands&, std::array<bool, 5>)>
Five double_backward(const OptionalTensor& bar_g, const OptionalTensor& bar_radial,
                     const OptionalTensor& bar_sh, const at::Tensor& grad, const at::Tensor& g,
                     const at::Tensor& radial, const OptionalTensor& table, const at::Tensor& sh,
                     const at::Tensor& sender, const at::Tensor& row_ptr, c10::IntArrayRef paths,
                     const at::Tensor& cg, std::array<bool, 5> mask) {
  return std::tuple_cat(function({plain(bar_g), plain(bar_radial), plain(bar_sh)}, grad,
                                 {g, radial, plain(table), sh, sender, row_ptr, paths, cg}, mask));
}

}  // namespace race::conv
