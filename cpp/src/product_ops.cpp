// Registration of race::product and its derivatives: product's backward is product_backward, whose
// own backward is product_double_backward.
#include <torch/csrc/autograd/custom_function.h>

#include "masked.h"
#include "operators.h"
#include "product_dispatch.h"

namespace race {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

product::Two call_backward(const Tensor& grad, const ProductOperands& o, std::array<bool, 2> mask) {
  static const auto handle =
      find_operator<decltype(product::backward<product_backward_cpu>)>("race::product_backward");
  return handle.call(grad, o.x, o.weight, o.species, o.paths, o.cg, mask);
}

void save(AutogradContext* context, variable_list before, const ProductOperands& o) {
  for (const Tensor& t : {o.x, o.weight, o.species, o.cg}) before.push_back(t);
  context->save_for_backward(std::move(before));
  context->saved_data["paths"] = o.paths.vec();
  context->set_materialize_grads(false);
}

ProductOperands operands_of(const variable_list& saved, size_t first, c10::IntArrayRef paths) {
  const Tensor* t = saved.data() + first;
  return {.x = t[0], .weight = t[1], .species = t[2], .paths = paths, .cg = t[3]};
}

// Autograd looks for operands among the arguments, not inside objects.
struct ProductBackward : Function<ProductBackward> {
  static variable_list forward(AutogradContext* context, const Tensor& grad, const Tensor& x,
                               const Tensor& weight, const ProductOperands& o,
                               std::array<bool, 2> mask) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(context, {grad}, o);
    context->saved_data["mask"] = saved(mask);
    return only_defined(call_backward(grad, o, mask));
  }

  static variable_list backward(AutogradContext* context, const variable_list& bars) {
    const auto saved = context->get_saved_variables();
    const auto bar = put_back(bars, restored<2>(context->saved_data["mask"].toBoolList()));
    variable_list result(5);
    std::array<bool, 3> mask{};
    for (size_t k = 0; k < 3; ++k) mask[k] = context->needs_input_grad(k);
    if (!(bar[0].defined() || bar[1].defined()) || !(mask[0] || mask[1] || mask[2])) return result;
    const auto paths = context->saved_data["paths"].toIntVector();
    const ProductOperands o = operands_of(saved, 1, paths);
    static const auto handle =
        find_operator<decltype(product::double_backward<product_double_backward_cpu>)>(
            "race::product_double_backward");
    std::tie(result[0], result[1], result[2]) =
        handle.call(optional(bar[0]), optional(bar[1]), saved[0], o.x, o.weight, o.species, o.paths,
                    o.cg, mask);
    return result;
  }
};

struct Product : Function<Product> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const ProductOperands& o) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(context, {}, o);
    static const auto handle =
        find_operator<decltype(product::forward<product_cpu>)>("race::product");
    return handle.call(o.x, o.weight, o.species, o.paths, o.cg);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad) {
    variable_list result(3);
    const std::array<bool, 2> mask{context->needs_input_grad(0), context->needs_input_grad(1)};
    if (!grad[0].defined() || !(mask[0] || mask[1])) return result;
    const auto saved = context->get_saved_variables();
    const auto paths = context->saved_data["paths"].toIntVector();
    std::tie(result[0], result[1]) = call_backward(grad[0], operands_of(saved, 0, paths), mask);
    return result;
  }
};

Tensor product_autograd(const ProductOperands& o) { return Product::apply(o.x, o.weight, o); }

std::array<Tensor, 2> backward_autograd(const Tensor& grad, const ProductOperands& o,
                                        std::array<bool, 2> mask) {
  return put_back(ProductBackward::apply(grad, o.x, o.weight, o, mask), mask);
}

Tensor product_meta(const ProductOperands& o) { return o.x.new_empty(o.x.sizes()); }

std::array<Tensor, 2> backward_meta(const Tensor& grad, const ProductOperands& o,
                                    std::array<bool, 2> mask) {
  return {empty_if(mask[0], o.x), empty_if(mask[1], o.weight)};
}

const bool registered =
    register_operators("race::product", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, kProductSchemas[0])
          .cpu(TORCH_FN(product::forward<product_cpu>))
          .autograd(TORCH_FN(product::forward<product_autograd>))
          .meta(TORCH_FN(product::forward<product_meta>));
      Operator(library, kProductSchemas[1])
          .cpu(TORCH_FN(product::backward<product_backward_cpu>))
          .autograd(TORCH_FN(product::backward<backward_autograd>))
          .meta(TORCH_FN(product::backward<backward_meta>));
      Operator(library, kProductSchemas[2])
          .cpu(TORCH_FN(product::double_backward<product_double_backward_cpu>))
          .not_differentiable();
    });

}  // namespace
}  // namespace race
