// Registration of race::conv and its derivatives. The map is trilinear in (g, R, sh), so conv's
// backward is conv_backward, whose own backward is conv_double_backward.
#include <torch/csrc/autograd/custom_function.h>

#include "conv_dispatch.h"
#include "masked.h"
#include "operators.h"

namespace race {
namespace {

using at::Tensor;
using conv::OptionalTensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

Tensor call(const ConvOperands& o, int64_t dim_out) {
  static const auto handle = find_operator<decltype(conv::forward<conv_cpu>)>("race::conv");
  return handle.call(o.g, o.radial, optional(o.table), o.sh, o.sender, o.row_ptr, o.paths, o.cg,
                     dim_out);
}

conv::Four call_backward(const Tensor& grad, const ConvOperands& o, std::array<bool, 4> mask) {
  static const auto handle =
      find_operator<decltype(conv::backward<conv_backward_cpu>)>("race::conv_backward");
  return handle.call(grad, o.g, o.radial, optional(o.table), o.sh, o.sender, o.row_ptr, o.paths,
                     o.cg, mask);
}

conv::Five call_double_backward(const ConvBars& bars, const Tensor& grad, const ConvOperands& o,
                                std::array<bool, 5> mask) {
  static const auto handle =
      find_operator<decltype(conv::double_backward<conv_double_backward_cpu>)>(
          "race::conv_double_backward");
  return handle.call(optional(bars.g), optional(bars.radial), optional(bars.sh), grad, o.g,
                     o.radial, optional(o.table), o.sh, o.sender, o.row_ptr, o.paths, o.cg, mask);
}

// Saves the tensors `before` and the operands, and the path table as "paths".
void save(AutogradContext* context, variable_list before, const ConvOperands& o) {
  for (const Tensor& t : {o.g, o.radial, o.table, o.sh, o.sender, o.row_ptr, o.cg})
    before.push_back(t);
  context->save_for_backward(std::move(before));
  context->saved_data["paths"] = o.paths.vec();
  context->set_materialize_grads(false);
}

ConvOperands operands_of(const variable_list& saved, size_t first, c10::IntArrayRef paths) {
  const Tensor* t = saved.data() + first;
  return {.g = t[0],
          .radial = t[1],
          .table = t[2],
          .sh = t[3],
          .sender = t[4],
          .row_ptr = t[5],
          .paths = paths,
          .cg = t[6]};
}

// Whether each of the first `Before` operands, the table (if there is one) and sh need a gradient.
// Autograd counts only the operands that are there.
template <size_t Before>
std::array<bool, Before + 2> needed(AutogradContext* context, bool has_table) {
  std::array<bool, Before + 2> mask{};
  for (size_t k = 0; k < Before; ++k) mask[k] = context->needs_input_grad(k);
  mask[Before] = has_table && context->needs_input_grad(Before);
  mask[Before + 1] = context->needs_input_grad(Before + has_table);
  return mask;
}

// Autograd looks for operands among the arguments, not inside objects.
struct ConvBackward : Function<ConvBackward> {
  static variable_list forward(AutogradContext* context, const Tensor& grad, const Tensor& g,
                               const Tensor& radial, const OptionalTensor& table, const Tensor& sh,
                               const ConvOperands& o, std::array<bool, 4> mask) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(context, {grad}, o);
    context->saved_data["mask"] = saved(mask);
    return only_defined(call_backward(grad, o, mask));
  }

  static variable_list backward(AutogradContext* context, const variable_list& bars) {
    const auto saved = context->get_saved_variables();
    const auto bar = put_back(bars, restored<4>(context->saved_data["mask"].toBoolList()));
    TORCH_CHECK_NOT_IMPLEMENTED(!bar[2].defined(),
                                "race::conv: second derivatives through the gradient of the radial "
                                "table are not implemented");
    const auto paths = context->saved_data["paths"].toIntVector();
    const ConvOperands o = operands_of(saved, 1, paths);
    const auto mask = needed<3>(context, o.table.defined());
    variable_list result(7);
    const bool idle = !bar[0].defined() && !bar[1].defined() && !bar[3].defined();
    if (idle || !(mask[0] || mask[1] || mask[2] || mask[3] || mask[4])) return result;
    std::tie(result[0], result[1], result[2], result[3], result[4]) =
        call_double_backward({bar[0], bar[1], bar[3]}, saved[0], o, mask);
    return result;
  }
};

struct Conv : Function<Conv> {
  static Tensor forward(AutogradContext* context, const Tensor& g, const Tensor& radial,
                        const OptionalTensor& table, const Tensor& sh, const ConvOperands& o,
                        int64_t dim_out) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(context, {}, o);
    return call(o, dim_out);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad) {
    variable_list result(6);
    const auto saved = context->get_saved_variables();
    const auto paths = context->saved_data["paths"].toIntVector();
    const ConvOperands o = operands_of(saved, 0, paths);
    const auto mask = needed<2>(context, o.table.defined());
    if (!grad[0].defined() || !(mask[0] || mask[1] || mask[2] || mask[3])) return result;
    std::tie(result[0], result[1], result[2], result[3]) = call_backward(grad[0], o, mask);
    return result;
  }
};

Tensor conv_autograd(const ConvOperands& o, int64_t dim_out) {
  return Conv::apply(o.g, o.radial, optional(o.table), o.sh, o, dim_out);
}

std::array<Tensor, 4> backward_autograd(const Tensor& grad, const ConvOperands& o,
                                        std::array<bool, 4> mask) {
  mask[2] = mask[2] && o.table.defined();
  return put_back(ConvBackward::apply(grad, o.g, o.radial, optional(o.table), o.sh, o, mask), mask);
}

Tensor conv_meta(const ConvOperands& o, int64_t dim_out) {
  return o.g.new_empty({o.row_ptr.size(0) - 1, dim_out});
}

std::array<Tensor, 4> backward_meta(const Tensor& grad, const ConvOperands& o,
                                    std::array<bool, 4> mask) {
  return {empty_if(mask[0], o.g), empty_if(mask[1], o.radial), empty_if(mask[2], o.table),
          empty_if(mask[3], o.sh)};
}

const bool registered =
    register_operators("race::conv", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, kConvSchemas[0])
          .cpu(TORCH_FN(conv::forward<conv_cpu>))
          .autograd(TORCH_FN(conv::forward<conv_autograd>))
          .meta(TORCH_FN(conv::forward<conv_meta>));
      Operator(library, kConvSchemas[1])
          .cpu(TORCH_FN(conv::backward<conv_backward_cpu>))
          .autograd(TORCH_FN(conv::backward<backward_autograd>))
          .meta(TORCH_FN(conv::backward<backward_meta>));
      Operator(library, kConvSchemas[2])
          .cpu(TORCH_FN(conv::double_backward<conv_double_backward_cpu>))
          .not_differentiable();
      library->def("conv_isa() -> str", [] { return std::string(conv_isa()); });
    });

}  // namespace
}  // namespace race
