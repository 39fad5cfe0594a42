// Registration of race::conv and its derivatives. The map is trilinear in (g, R, sh), so conv's
// backward is conv_backward, whose own backward is conv_double_backward.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>

#include "race/conv.h"

#include "operators.h"

namespace race {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Paths = std::vector<int64_t>;
using Optional = const std::optional<Tensor>&;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kConv =
    "conv(Tensor g, Tensor radial, Tensor? table, Tensor sh, Tensor sender, Tensor row_ptr, int[] paths, Tensor cg, int dim_out) -> Tensor";
constexpr const char* kBackward =
    "conv_backward(Tensor grad, Tensor g, Tensor radial, Tensor? table, Tensor sh, Tensor sender, Tensor row_ptr, int[] paths, Tensor cg, "
    "bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)";
constexpr const char* kDoubleBackward =
    "conv_double_backward(Tensor? bar_g, Tensor? bar_radial, Tensor? bar_sh, Tensor grad, Tensor g, Tensor radial, Tensor? table, Tensor sh, "
    "Tensor sender, Tensor row_ptr, int[] paths, Tensor cg, bool[5] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)";

Tensor plain(Optional t) { return t.value_or(Tensor()); }
std::optional<Tensor> optional(const Tensor& t) {
  return t.defined() ? std::optional<Tensor>(t) : std::nullopt;
}

Tensor forward_cpu(const Tensor& g, const Tensor& radial, Optional table, const Tensor& sh,
                   const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                   const Tensor& cg, int64_t dim_out) {
  return conv_cpu(g, radial, plain(table), sh, sender, row_ptr, paths, cg, dim_out);
}

Four backward_cpu(const Tensor& grad, const Tensor& g, const Tensor& radial, Optional table,
                  const Tensor& sh, const Tensor& sender, const Tensor& row_ptr,
                  c10::IntArrayRef paths, const Tensor& cg, std::array<bool, 4> mask) {
  return std::tuple_cat(
      conv_backward_cpu(grad, g, radial, plain(table), sh, sender, row_ptr, paths, cg, mask));
}

Five double_backward_cpu(Optional bar_g, Optional bar_radial, Optional bar_sh, const Tensor& grad,
                         const Tensor& g, const Tensor& radial, Optional table, const Tensor& sh,
                         const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                         const Tensor& cg, std::array<bool, 5> mask) {
  return std::tuple_cat(conv_double_backward_cpu(plain(bar_g), plain(bar_radial), plain(bar_sh),
                                                 grad, g, radial, plain(table), sh, sender, row_ptr,
                                                 paths, cg, mask));
}

Four call_backward(const Tensor& grad, const Tensor& g, const Tensor& radial, Optional table,
                   const Tensor& sh, const Tensor& sender, const Tensor& row_ptr,
                   c10::IntArrayRef paths, const Tensor& cg, std::array<bool, 4> mask) {
  static const auto handle = find_operator<decltype(backward_cpu)>("race::conv_backward");
  return handle.call(grad, g, radial, table, sh, sender, row_ptr, paths, cg, mask);
}

// Which of `before` operands, the table (or none) and sh ask for a gradient. Autograd counts only
// the operands that are there.
template <size_t Before>
std::array<bool, Before + 2> needed(AutogradContext* context, bool has_table) {
  std::array<bool, Before + 2> mask{};
  for (size_t k = 0; k < Before; ++k) mask[k] = context->needs_input_grad(k);
  mask[Before] = has_table && context->needs_input_grad(Before);
  mask[Before + 1] = context->needs_input_grad(Before + has_table);
  return mask;
}

// A Function cannot return undefined tensors: results that the mask leaves out are left out of its
// list.
struct ConvBackward : Function<ConvBackward> {
  static variable_list forward(AutogradContext* context, const Tensor& grad, const Tensor& g,
                               const Tensor& radial, Optional table, const Tensor& sh,
                               const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                               const Tensor& cg, std::array<bool, 4> mask) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({grad, g, radial, plain(table), sh, sender, row_ptr, cg});
    context->saved_data["paths"] = paths.vec();
    context->set_materialize_grads(false);
    context->saved_data["mask"] = c10::List<bool>({mask[0], mask[1], mask[2], mask[3]});
    const auto [dg, dradial, dtable, dsh] =
        call_backward(grad, g, radial, table, sh, sender, row_ptr, paths, cg, mask);
    variable_list result;
    for (const Tensor& t : {dg, dradial, dtable, dsh})
      if (t.defined()) result.push_back(t);
    return result;
  }

  static variable_list backward(AutogradContext* context, const variable_list& bars) {
    const auto saved = context->get_saved_variables();
    const auto wanted = context->saved_data["mask"].toBoolList();
    std::array<Tensor, 4> bar;
    for (size_t k = 0, next = 0; k < 4; ++k)
      if (wanted[k]) bar[k] = bars[next++];
    TORCH_CHECK_NOT_IMPLEMENTED(
        !bar[2].defined(),
        "race::conv: second derivatives through the gradient of the radial table are not implemented");
    const auto mask = needed<3>(context, saved[3].defined());
    const Paths paths = context->saved_data["paths"].toIntVector();
    variable_list result(10);
    const bool idle = !bar[0].defined() && !bar[1].defined() && !bar[3].defined();
    if (idle || !(mask[0] || mask[1] || mask[2] || mask[3] || mask[4])) return result;
    static const auto handle =
        find_operator<decltype(double_backward_cpu)>("race::conv_double_backward");
    std::tie(result[0], result[1], result[2], result[3], result[4]) = handle.call(
        optional(bar[0]), optional(bar[1]), optional(bar[3]), saved[0], saved[1], saved[2],
        optional(saved[3]), saved[4], saved[5], saved[6], paths, saved[7], mask);
    return result;
  }
};

struct Conv : Function<Conv> {
  static Tensor forward(AutogradContext* context, const Tensor& g, const Tensor& radial,
                        Optional table, const Tensor& sh, const Tensor& sender,
                        const Tensor& row_ptr, c10::IntArrayRef paths, const Tensor& cg,
                        int64_t dim_out) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({g, radial, plain(table), sh, sender, row_ptr, cg});
    context->saved_data["paths"] = paths.vec();
    context->set_materialize_grads(false);
    static const auto handle = find_operator<decltype(forward_cpu)>("race::conv");
    return handle.call(g, radial, table, sh, sender, row_ptr, paths, cg, dim_out);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad) {
    variable_list result(9);
    const auto saved = context->get_saved_variables();
    const auto mask = needed<2>(context, saved[2].defined());
    if (!grad[0].defined() || !(mask[0] || mask[1] || mask[2] || mask[3])) return result;
    const Paths paths = context->saved_data["paths"].toIntVector();
    std::tie(result[0], result[1], result[2], result[3]) =
        call_backward(grad[0], saved[0], saved[1], optional(saved[2]), saved[3], saved[4], saved[5],
                      paths, saved[6], mask);
    return result;
  }
};

Tensor forward_autograd(const Tensor& g, const Tensor& radial, Optional table, const Tensor& sh,
                        const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                        const Tensor& cg, int64_t dim_out) {
  return Conv::apply(g, radial, table, sh, sender, row_ptr, paths, cg, dim_out);
}

Four backward_autograd(const Tensor& grad, const Tensor& g, const Tensor& radial, Optional table,
                       const Tensor& sh, const Tensor& sender, const Tensor& row_ptr,
                       c10::IntArrayRef paths, const Tensor& cg, std::array<bool, 4> mask) {
  const auto results =
      ConvBackward::apply(grad, g, radial, table, sh, sender, row_ptr, paths, cg, mask);
  std::array<Tensor, 4> d;
  const bool possible[4] = {true, true, table.has_value() && table->defined(), true};
  for (size_t k = 0, next = 0; k < 4; ++k)
    if (mask[k] && possible[k]) d[k] = results[next++];
  return std::tuple_cat(d);
}

Tensor forward_meta(const Tensor& g, const Tensor& radial, Optional table, const Tensor& sh,
                    const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                    const Tensor& cg, int64_t dim_out) {
  return g.new_empty({row_ptr.size(0) - 1, dim_out});
}

Four backward_meta(const Tensor& grad, const Tensor& g, const Tensor& radial, Optional table,
                   const Tensor& sh, const Tensor& sender, const Tensor& row_ptr,
                   c10::IntArrayRef paths, const Tensor& cg, std::array<bool, 4> mask) {
  const auto like = [](const Tensor& t, bool wanted) {
    return wanted && t.defined() ? t.new_empty(t.sizes()) : Tensor();
  };
  return {like(g, mask[0]), like(radial, mask[1]), like(plain(table), mask[2]), like(sh, mask[3])};
}

const bool registered = [] {
  auto* library = claim_operators("race::conv", __FILE__, __LINE__);
  if (!library) return false;
  for (const char* schema : {kConv, kBackward, kDoubleBackward}) library->def(schema);
  library->def("conv_isa() -> str", [] { return std::string(conv_isa()); });
  add_kernel(library, c10::DispatchKey::CPU, "conv", TORCH_FN(forward_cpu));
  add_kernel(library, c10::DispatchKey::CPU, "conv_backward", TORCH_FN(backward_cpu));
  add_kernel(library, c10::DispatchKey::CPU, "conv_double_backward", TORCH_FN(double_backward_cpu));
  add_kernel(library, c10::DispatchKey::Autograd, "conv", TORCH_FN(forward_autograd));
  add_kernel(library, c10::DispatchKey::Autograd, "conv_backward", TORCH_FN(backward_autograd));
  library->impl("conv_double_backward",
                torch::dispatch(c10::DispatchKey::Autograd,
                                torch::autograd::autogradNotImplementedFallback()));
  add_kernel(library, c10::DispatchKey::Meta, "conv", TORCH_FN(forward_meta));
  add_kernel(library, c10::DispatchKey::Meta, "conv_backward", TORCH_FN(backward_meta));
  return true;
}();

}  // namespace
}  // namespace race
