// Registration of race::product and its derivatives: product's backward is product_backward, whose
// own backward is product_double_backward.
#include <torch/csrc/autograd/custom_function.h>

#include "product_dispatch.h"
#include "operators.h"
#ifdef RACE_CUDA
#include "../cuda/product_cuda.h"
#endif

namespace race {
namespace {

using at::Tensor;
using product::OptionalTensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

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
  return {t[0], t[1], t[2], paths, t[3]};
}

// Autograd looks for operands among the arguments, not inside objects. A Function cannot return
// undefined tensors: results that the mask leaves out are left out of its list.
struct ProductBackward : Function<ProductBackward> {
  static variable_list forward(AutogradContext* context, const Tensor& grad, const Tensor& x,
                               const Tensor& weight, const ProductOperands& o,
                               std::array<bool, 2> mask) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(context, {grad}, o);
    context->saved_data["mask"] = c10::List<bool>({mask[0], mask[1]});
    const auto [dx, dweight] = call_backward(grad, o, mask);
    variable_list result;
    for (const Tensor& t : {dx, dweight})
      if (t.defined()) result.push_back(t);
    return result;
  }

  static variable_list backward(AutogradContext* context, const variable_list& bars) {
    const auto saved = context->get_saved_variables();
    const auto wanted = context->saved_data["mask"].toBoolList();
    std::array<Tensor, 2> bar;
    for (size_t k = 0, next = 0; k < 2; ++k)
      if (wanted[k]) bar[k] = bars[next++];
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
  const auto results = ProductBackward::apply(grad, o.x, o.weight, o, mask);
  std::array<Tensor, 2> d;
  for (size_t k = 0, next = 0; k < 2; ++k)
    if (mask[k]) d[k] = results[next++];
  return d;
}

Tensor product_meta(const ProductOperands& o) { return o.x.new_empty(o.x.sizes()); }

std::array<Tensor, 2> backward_meta(const Tensor& grad, const ProductOperands& o,
                                    std::array<bool, 2> mask) {
  const auto like = [](const Tensor& t, bool wanted) {
    return wanted ? t.new_empty(t.sizes()) : Tensor();
  };
  return {like(o.x, mask[0]), like(o.weight, mask[1])};
}

const bool registered =
    register_operators("race::product", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, kProductSchemas[0])
          .cpu(TORCH_FN(product::forward<product_cpu>)) RACE_ON_CUDA(product::forward<product_cuda>)
          .autograd(TORCH_FN(product::forward<product_autograd>))
          .meta(TORCH_FN(product::forward<product_meta>));
      Operator(library, kProductSchemas[1])
          .cpu(TORCH_FN(product::backward<product_backward_cpu>))
              RACE_ON_CUDA(product::backward<product_backward_cuda>)
          .autograd(TORCH_FN(product::backward<backward_autograd>))
          .meta(TORCH_FN(product::backward<backward_meta>));
      Operator(library, kProductSchemas[2])
          .cpu(TORCH_FN(product::double_backward<product_double_backward_cpu>))
              RACE_ON_CUDA(product::double_backward<product_double_backward_cuda>)
          .not_differentiable();
    });

}  // namespace
}  // namespace race
