// Registration of race::gate and its derivatives: gate's backward is gate_backward, whose own
// backward is gate_double_backward.
#include <torch/csrc/autograd/custom_function.h>

#include "gate_dispatch.h"
#include "gate_problem.h"
#include "masked.h"
#include "operators.h"

namespace race {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

gate::Two call_backward(const Tensor& grad, const GateOperands& o) {
  static const auto handle =
      find_operator<decltype(gate::backward<gate_backward_cpu>)>("race::gate_backward");
  return handle.call(grad, o.u, o.gates, o.blocks, o.n_members, o.silu_norm, o.sigmoid_norm);
}

void save(AutogradContext* context, variable_list before, const GateOperands& o) {
  before.push_back(o.u);
  before.push_back(o.gates);
  context->save_for_backward(std::move(before));
  context->saved_data["blocks"] = o.blocks.vec();
  context->saved_data["n_members"] = o.n_members;
  context->saved_data["silu_norm"] = o.silu_norm;
  context->saved_data["sigmoid_norm"] = o.sigmoid_norm;
  context->set_materialize_grads(false);
}

// The operands that were saved from the `first` of the tensors on; `blocks` keeps theirs.
GateOperands operands_of(AutogradContext* context, const variable_list& saved, size_t first,
                         std::vector<int64_t>& blocks) {
  blocks = context->saved_data["blocks"].toIntVector();
  return {.u = saved[first],
          .gates = saved[first + 1],
          .blocks = blocks,
          .n_members = context->saved_data["n_members"].toInt(),
          .silu_norm = context->saved_data["silu_norm"].toDouble(),
          .sigmoid_norm = context->saved_data["sigmoid_norm"].toDouble()};
}

// Autograd looks for operands among the arguments, not inside objects.
struct GateBackward : Function<GateBackward> {
  static variable_list forward(AutogradContext* context, const Tensor& grad, const Tensor& u,
                               const Tensor& gates, const GateOperands& o) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(context, {grad}, o);
    return only_defined(call_backward(grad, o));
  }

  static variable_list backward(AutogradContext* context, const variable_list& bars) {
    variable_list result(4);
    if (!(bars[0].defined() || bars[1].defined())) return result;
    const auto saved = context->get_saved_variables();
    std::vector<int64_t> blocks;
    const GateOperands o = operands_of(context, saved, 1, blocks);
    static const auto handle =
        find_operator<decltype(gate::double_backward<gate_double_backward_cpu>)>(
            "race::gate_double_backward");
    std::tie(result[0], result[1], result[2]) =
        handle.call(optional(bars[0]), optional(bars[1]), saved[0], o.u, o.gates, o.blocks,
                    o.n_members, o.silu_norm, o.sigmoid_norm);
    return result;
  }
};

struct Gate : Function<Gate> {
  static Tensor forward(AutogradContext* context, const Tensor& u, const Tensor& gates,
                        const GateOperands& o) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(context, {}, o);
    static const auto handle = find_operator<decltype(gate::forward<gate_cpu>)>("race::gate");
    return handle.call(o.u, o.gates, o.blocks, o.n_members, o.silu_norm, o.sigmoid_norm);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad) {
    variable_list result(3);
    if (!grad[0].defined()) return result;
    const auto saved = context->get_saved_variables();
    std::vector<int64_t> blocks;
    std::tie(result[0], result[1]) = call_backward(grad[0], operands_of(context, saved, 0, blocks));
    return result;
  }
};

Tensor gate_autograd(const GateOperands& o) { return Gate::apply(o.u, o.gates, o); }

std::array<Tensor, 2> backward_autograd(const Tensor& grad, const GateOperands& o) {
  const variable_list results = GateBackward::apply(grad, o.u, o.gates, o);
  return {results[0], results[1]};
}

Tensor gate_meta(const GateOperands& o) {
  gate::Problem{o};
  return o.u.new_empty(o.u.sizes());
}

std::array<Tensor, 2> backward_meta(const Tensor& grad, const GateOperands& o) {
  gate::Problem{grad, o};
  return {o.u.new_empty(o.u.sizes()), o.gates.new_empty(o.gates.sizes())};
}

const bool registered =
    register_operators("race::gate", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, kGateSchemas[0])
          .cpu(TORCH_FN(gate::forward<gate_cpu>))
          .autograd(TORCH_FN(gate::forward<gate_autograd>))
          .meta(TORCH_FN(gate::forward<gate_meta>));
      Operator(library, kGateSchemas[1])
          .cpu(TORCH_FN(gate::backward<gate_backward_cpu>))
          .autograd(TORCH_FN(gate::backward<backward_autograd>))
          .meta(TORCH_FN(gate::backward<backward_meta>));
      Operator(library, kGateSchemas[2])
          .cpu(TORCH_FN(gate::double_backward<gate_double_backward_cpu>))
          .not_differentiable();
    });

}  // namespace
}  // namespace race
