// Registration of race::radial_spline and its derivatives; see conv_ops.cpp for why a library may find them registered already.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "race/spline.h"

namespace race {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr const char* kSpline = "radial_spline(Tensor x, Tensor table) -> Tensor";
constexpr const char* kBackward = "radial_spline_backward(Tensor grad, Tensor x, Tensor table, bool[2] mask) -> (Tensor, Tensor)";
constexpr const char* kDoubleBackward =
    "radial_spline_double_backward(Tensor bar_x, Tensor grad, Tensor x, Tensor table, bool[2] mask) -> (Tensor, Tensor)";

template <class F>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

std::tuple<Tensor, Tensor> call_backward(const Tensor& grad, const Tensor& x, const Tensor& table, std::array<bool, 2> mask) {
  static const auto handle = op<decltype(radial_spline_backward_cpu)>("race::radial_spline_backward");
  return handle.call(grad, x, table, mask);
}

struct SplineBackward : Function<SplineBackward> {
  static variable_list forward(AutogradContext* context, const Tensor& grad, const Tensor& x, const Tensor& table, std::array<bool, 2> mask) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({grad, x, table});
    context->set_materialize_grads(false);
    auto [dx, dtable] = call_backward(grad, x, table, mask);
    return {dx.defined() ? dx : grad.new_empty({0}), dtable.defined() ? dtable : grad.new_empty({0})};
  }

  static variable_list backward(AutogradContext* context, const variable_list& bar) {
    const auto saved = context->get_saved_variables();
    const std::array<bool, 2> mask{context->needs_input_grad(0), context->needs_input_grad(2)};
    variable_list result(4);
    if (bar[0].defined() && (mask[0] || mask[1])) {
      static const auto handle = op<decltype(radial_spline_double_backward_cpu)>("race::radial_spline_double_backward");
      std::tie(result[0], result[2]) = handle.call(bar[0], saved[0], saved[1], saved[2], mask);
    }
    if (bar[1].defined() && mask[0]) {  // the table's adjoint is linear in grad: its transpose interpolates
      static const auto handle = op<decltype(radial_spline_cpu)>("race::radial_spline");
      const Tensor term = handle.call(saved[1], bar[1]);
      result[0] = result[0].defined() ? result[0] + term : term;
    }
    return result;
  }
};

struct Spline : Function<Spline> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& table) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({x, table});
    context->set_materialize_grads(false);
    static const auto handle = op<decltype(radial_spline_cpu)>("race::radial_spline");
    return handle.call(x, table);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad) {
    const std::array<bool, 2> mask{context->needs_input_grad(0), context->needs_input_grad(1)};
    variable_list result(2);
    if (!grad[0].defined() || !(mask[0] || mask[1])) return result;
    const auto saved = context->get_saved_variables();
    std::tie(result[0], result[1]) = call_backward(grad[0], saved[0], saved[1], mask);
    for (size_t k = 0; k < 2; ++k)
      if (!mask[k]) result[k] = Tensor();
    return result;
  }
};

Tensor spline_autograd(const Tensor& x, const Tensor& table) { return Spline::apply(x, table); }

std::tuple<Tensor, Tensor> backward_autograd(const Tensor& grad, const Tensor& x, const Tensor& table, std::array<bool, 2> mask) {
  auto result = SplineBackward::apply(grad, x, table, mask);
  return {result[0], result[1]};
}

Tensor spline_meta(const Tensor& x, const Tensor& table) { return table.new_empty({table.size(0), x.size(0), table.size(3)}); }

const bool registered = [] {
  if (c10::Dispatcher::singleton().findSchema({"race::radial_spline", ""})) return false;
  auto* library = new torch::Library(torch::Library::FRAGMENT, "race", std::nullopt, __FILE__, __LINE__);
  for (const char* schema : {kSpline, kBackward, kDoubleBackward}) library->def(schema);
  const auto add = [library](c10::DispatchKey key, const char* name, auto function) {
    library->impl(name, torch::dispatch(key, torch::CppFunction(function)));
  };
  add(c10::DispatchKey::CPU, "radial_spline", TORCH_FN(radial_spline_cpu));
  add(c10::DispatchKey::CPU, "radial_spline_backward", TORCH_FN(radial_spline_backward_cpu));
  add(c10::DispatchKey::CPU, "radial_spline_double_backward", TORCH_FN(radial_spline_double_backward_cpu));
  add(c10::DispatchKey::Autograd, "radial_spline", TORCH_FN(spline_autograd));
  add(c10::DispatchKey::Autograd, "radial_spline_backward", TORCH_FN(backward_autograd));
  library->impl("radial_spline_double_backward", torch::dispatch(c10::DispatchKey::Autograd, torch::autograd::autogradNotImplementedFallback()));
  add(c10::DispatchKey::Meta, "radial_spline", TORCH_FN(spline_meta));
  return true;
}();

}  // namespace
}  // namespace race
