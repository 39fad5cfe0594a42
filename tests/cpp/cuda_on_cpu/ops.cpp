// torch.ops.race_on_cpu.*: the functions of cpp/cuda, kernels included, on CPU tensors.
#include <torch/library.h>

#include "conv_cuda.h"

namespace {

using at::Tensor;
using Optional = const std::optional<Tensor>&;

Tensor plain(Optional t) { return t.value_or(Tensor()); }

Tensor forward(const Tensor& g, const Tensor& radial, Optional table, const Tensor& sh,
               const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
               const Tensor& cg, int64_t dim_out) {
  return race::conv_cuda(g, radial, plain(table), sh, sender, row_ptr, paths, cg, dim_out);
}

auto backward(const Tensor& grad, const Tensor& g, const Tensor& radial, Optional table,
              const Tensor& sh, const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
              const Tensor& cg, std::array<bool, 4> mask) {
  return std::tuple_cat(race::conv_backward_cuda(grad, g, radial, plain(table), sh, sender, row_ptr,
                                                 paths, cg, mask));
}

auto double_backward(Optional bar_g, Optional bar_radial, Optional bar_sh, const Tensor& grad,
                     const Tensor& g, const Tensor& radial, Optional table, const Tensor& sh,
                     const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                     const Tensor& cg, std::array<bool, 5> mask) {
  return std::tuple_cat(
      race::conv_double_backward_cuda(plain(bar_g), plain(bar_radial), plain(bar_sh), grad, g,
                                      radial, plain(table), sh, sender, row_ptr, paths, cg, mask));
}

}  // namespace

TORCH_LIBRARY(race_on_cpu, m) {
  m.def(
      "conv(Tensor g, Tensor radial, Tensor? table, Tensor sh, Tensor sender, Tensor row_ptr, int[] paths, Tensor cg, int dim_out) -> Tensor",
      TORCH_FN(forward));
  m.def(
      "conv_backward(Tensor grad, Tensor g, Tensor radial, Tensor? table, Tensor sh, Tensor sender, Tensor row_ptr, int[] paths, Tensor cg, "
      "bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)",
      TORCH_FN(backward));
  m.def(
      "conv_double_backward(Tensor? bar_g, Tensor? bar_radial, Tensor? bar_sh, Tensor grad, Tensor g, Tensor radial, Tensor? table, "
      "Tensor sh, Tensor sender, Tensor row_ptr, int[] paths, Tensor cg, bool[5] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      TORCH_FN(double_backward));
}
