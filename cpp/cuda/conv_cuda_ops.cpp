// Registration of race::conv and its derivatives for CUDA tensors; schemas and autograd are in
// src/conv_ops.cpp.
#include <torch/library.h>

#include "conv_cuda.h"

namespace race {
namespace {

using at::Tensor;
using Optional = const std::optional<Tensor>&;

Tensor plain(Optional t) { return t.value_or(Tensor()); }

Tensor forward(const Tensor& g, const Tensor& radial, Optional table, const Tensor& sh,
               const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
               const Tensor& cg, int64_t dim_out) {
  return conv_cuda(g, radial, plain(table), sh, sender, row_ptr, paths, cg, dim_out);
}

auto backward(const Tensor& grad, const Tensor& g, const Tensor& radial, Optional table,
              const Tensor& sh, const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
              const Tensor& cg, std::array<bool, 4> mask) {
  return std::tuple_cat(
      conv_backward_cuda(grad, g, radial, plain(table), sh, sender, row_ptr, paths, cg, mask));
}

auto double_backward(Optional bar_g, Optional bar_radial, Optional bar_sh, const Tensor& grad,
                     const Tensor& g, const Tensor& radial, Optional table, const Tensor& sh,
                     const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                     const Tensor& cg, std::array<bool, 5> mask) {
  return std::tuple_cat(conv_double_backward_cuda(plain(bar_g), plain(bar_radial), plain(bar_sh),
                                                  grad, g, radial, plain(table), sh, sender,
                                                  row_ptr, paths, cg, mask));
}

// Module and LAMMPS plugin each carry librace: the first to come registers, for good (see
// src/conv_ops.cpp).
const bool registered = [] {
  const auto known = c10::Dispatcher::singleton().findOp({"race::conv", ""});
  if (known && known->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) return false;
  auto* library =
      new torch::Library(torch::Library::FRAGMENT, "race", std::nullopt, __FILE__, __LINE__);
  const auto add = [library](const char* name, auto function) {
    library->impl(name, torch::dispatch(c10::DispatchKey::CUDA, torch::CppFunction(function)));
  };
  add("conv", TORCH_FN(forward));
  add("conv_backward", TORCH_FN(backward));
  add("conv_double_backward", TORCH_FN(double_backward));
  return true;
}();

}  // namespace
}  // namespace race
