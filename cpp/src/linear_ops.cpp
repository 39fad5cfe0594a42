// Registration of race::linear. The map is bilinear in (x, weight), so that its backward is
// differentiated by the two operators themselves, to any order.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "race/linear.h"

#include "masked.h"
#include "operators.h"

namespace race {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Blocks = std::vector<int64_t>;

constexpr const char* kLinear =
    "linear(Tensor x, Tensor weight, Tensor? species, int[] blocks, int dim_out) -> Tensor";
constexpr const char* kBackward =
    "linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor? species, int[] blocks, "
    "bool[2] mask) -> (Tensor, Tensor)";

Tensor call_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& species,
                   c10::IntArrayRef blocks, int64_t dim_out) {
  static const auto handle = find_operator<decltype(linear_cpu)>("race::linear");
  return handle.call(x, weight, species, blocks, dim_out);
}

std::tuple<Tensor, Tensor> call_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                         const OptionalTensor& species, c10::IntArrayRef blocks,
                                         std::array<bool, 2> mask) {
  static const auto handle = find_operator<decltype(linear_backward_cpu)>("race::linear_backward");
  return handle.call(grad, x, weight, species, blocks, mask);
}

Tensor sum(const Tensor& a, const Tensor& b) { return !a.defined() ? b : b.defined() ? a + b : a; }

// With cotangents (u, v) of (dx, dW), S = <u, dx> + <v, dW> = <grad, u W + x v>.
struct LinearBackward : Function<LinearBackward> {
  static variable_list forward(AutogradContext* context, const Tensor& grad, const Tensor& x,
                               const Tensor& weight, const OptionalTensor& species,
                               c10::IntArrayRef blocks, std::array<bool, 2> mask) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({grad, x, weight, species.value_or(Tensor())});
    context->saved_data["blocks"] = blocks.vec();
    context->saved_data["mask"] = saved(mask);
    context->set_materialize_grads(false);
    return only_defined(call_backward(grad, x, weight, species, blocks, mask));
  }

  static variable_list backward(AutogradContext* context, const variable_list& bars) {
    const auto saved = context->get_saved_variables();
    const Tensor &grad = saved[0], &x = saved[1], &weight = saved[2];
    const OptionalTensor species = optional(saved[3]);
    const Blocks blocks = context->saved_data["blocks"].toIntVector();
    const auto [u, v] = put_back(bars, restored<2>(context->saved_data["mask"].toBoolList()));
    variable_list result(6);
    if (context->needs_input_grad(0)) {
      if (u.defined()) result[0] = call_linear(u, weight, species, blocks, grad.size(1));
      if (v.defined()) result[0] = sum(result[0], call_linear(x, v, species, blocks, grad.size(1)));
    }
    if (context->needs_input_grad(1) && v.defined())
      result[1] = std::get<0>(call_backward(grad, x, v, species, blocks, {true, false}));
    if (context->needs_input_grad(2) && u.defined())
      result[2] = std::get<1>(call_backward(grad, u, weight, species, blocks, {false, true}));
    return result;
  }
};

struct Linear : Function<Linear> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const OptionalTensor& species, c10::IntArrayRef blocks, int64_t dim_out) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({x, weight, species.value_or(Tensor())});
    context->saved_data["blocks"] = blocks.vec();
    context->set_materialize_grads(false);
    return call_linear(x, weight, species, blocks, dim_out);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad) {
    variable_list result(5);
    const std::array<bool, 2> mask{context->needs_input_grad(0), context->needs_input_grad(1)};
    if (!grad[0].defined() || !(mask[0] || mask[1])) return result;
    const auto saved = context->get_saved_variables();
    const Blocks blocks = context->saved_data["blocks"].toIntVector();
    std::tie(result[0], result[1]) =
        call_backward(grad[0], saved[0], saved[1], optional(saved[2]), blocks, mask);
    return result;
  }
};

Tensor linear_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& species,
                       c10::IntArrayRef blocks, int64_t dim_out) {
  return Linear::apply(x, weight, species, blocks, dim_out);
}

std::tuple<Tensor, Tensor> linear_backward_autograd(const Tensor& grad, const Tensor& x,
                                                    const Tensor& weight,
                                                    const OptionalTensor& species,
                                                    c10::IntArrayRef blocks,
                                                    std::array<bool, 2> mask) {
  return std::tuple_cat(
      put_back(LinearBackward::apply(grad, x, weight, species, blocks, mask), mask));
}

Tensor linear_meta(const Tensor& x, const Tensor& weight, const OptionalTensor& species,
                   c10::IntArrayRef blocks, int64_t dim_out) {
  return x.new_empty({x.size(0), dim_out});
}

std::tuple<Tensor, Tensor> linear_backward_meta(const Tensor& grad, const Tensor& x,
                                                const Tensor& weight, const OptionalTensor& species,
                                                c10::IntArrayRef blocks, std::array<bool, 2> mask) {
  return {empty_if(mask[0], x), empty_if(mask[1], weight)};
}

const bool registered =
    register_operators("race::linear", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, kLinear)
          .cpu(TORCH_FN(linear_cpu))
          .portable(TORCH_FN(linear_aten))
          .autograd(TORCH_FN(linear_autograd))
          .meta(TORCH_FN(linear_meta));
      Operator(library, kBackward)
          .cpu(TORCH_FN(linear_backward_cpu))
          .portable(TORCH_FN(linear_backward_aten))
          .autograd(TORCH_FN(linear_backward_autograd))
          .meta(TORCH_FN(linear_backward_meta));
      library->def("linear_isa() -> str", [] { return std::string(linear_isa()); });
    });

}  // namespace
}  // namespace race
