// Registration of race::conv and its derivatives. The map is trilinear in (g, radial, sh), so conv's backward is conv_backward,
// whose own backward is conv_double_backward.
#include <c10/core/SymIntArrayRef.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "race/conv.h"

namespace race {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using Paths = std::vector<int64_t>;

constexpr const char* kConv =
    "conv(Tensor g, Tensor radial, Tensor sh, Tensor sender, Tensor row_ptr, int[] paths, Tensor cg, int dim_out) -> Tensor";
constexpr const char* kBackward =
    "conv_backward(Tensor grad, Tensor g, Tensor radial, Tensor sh, Tensor sender, Tensor row_ptr, int[] paths, Tensor cg, "
    "bool[3] mask) -> (Tensor, Tensor, Tensor)";
constexpr const char* kDoubleBackward =
    "conv_double_backward(Tensor? bar_g, Tensor? bar_radial, Tensor? bar_sh, Tensor grad, Tensor g, Tensor radial, Tensor sh, "
    "Tensor sender, Tensor row_ptr, int[] paths, Tensor cg, bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)";

using Optional = const std::optional<Tensor>&;

std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward_cpu(Optional bar_g, Optional bar_radial, Optional bar_sh, const Tensor& grad,
                                                               const Tensor& g, const Tensor& radial, const Tensor& sh, const Tensor& sender,
                                                               const Tensor& row_ptr, c10::IntArrayRef paths, const Tensor& cg,
                                                               std::array<bool, 4> mask) {
  return conv_double_backward_cpu(bar_g.value_or(Tensor()), bar_radial.value_or(Tensor()), bar_sh.value_or(Tensor()), grad, g, radial, sh,
                                  sender, row_ptr, paths, cg, mask);
}

template <class F>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

Tensor call_conv(const Tensor& g, const Tensor& radial, const Tensor& sh, const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                 const Tensor& cg, int64_t dim_out) {
  static const auto handle = op<decltype(conv_cpu)>("race::conv");
  return handle.call(g, radial, sh, sender, row_ptr, paths, cg, dim_out);
}

std::tuple<Tensor, Tensor, Tensor> call_backward(const Tensor& grad, const Tensor& g, const Tensor& radial, const Tensor& sh,
                                                 const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths, const Tensor& cg,
                                                 std::array<bool, 3> mask) {
  static const auto handle = op<decltype(conv_backward_cpu)>("race::conv_backward");
  return handle.call(grad, g, radial, sh, sender, row_ptr, paths, cg, mask);
}

std::optional<Tensor> optional(const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; }

// A Function cannot return undefined tensors: results that the mask leaves out are left out of its list.
struct ConvBackward : Function<ConvBackward> {
  static variable_list forward(AutogradContext* context, const Tensor& grad, const Tensor& g, const Tensor& radial, const Tensor& sh,
                               const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths, const Tensor& cg,
                               std::array<bool, 3> mask) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({grad, g, radial, sh, sender, row_ptr, cg});
    context->saved_data["paths"] = paths.vec();
    context->set_materialize_grads(false);
    context->saved_data["mask"] = c10::List<bool>({mask[0], mask[1], mask[2]});
    const auto [dg, dradial, dsh] = call_backward(grad, g, radial, sh, sender, row_ptr, paths, cg, mask);
    variable_list result;
    for (const Tensor& t : {dg, dradial, dsh})
      if (t.defined()) result.push_back(t);
    return result;
  }

  static variable_list backward(AutogradContext* context, const variable_list& bars) {
    const auto saved = context->get_saved_variables();
    const auto wanted = context->saved_data["mask"].toBoolList();
    std::array<Tensor, 3> bar;
    for (size_t k = 0, next = 0; k < 3; ++k)
      if (wanted[k]) bar[k] = bars[next++];
    std::array<bool, 4> mask;
    for (size_t k = 0; k < 4; ++k) mask[k] = context->needs_input_grad(k);
    const Paths paths = context->saved_data["paths"].toIntVector();
    variable_list result(9);
    if ((!bar[0].defined() && !bar[1].defined() && !bar[2].defined()) || !(mask[0] || mask[1] || mask[2] || mask[3])) return result;
    using Signature = decltype(double_backward_cpu);
    static const auto handle = op<Signature>("race::conv_double_backward");
    std::tie(result[0], result[1], result[2], result[3]) = handle.call(optional(bar[0]), optional(bar[1]), optional(bar[2]), saved[0], saved[1],
                                                                       saved[2], saved[3], saved[4], saved[5], paths, saved[6], mask);
    return result;
  }
};

struct Conv : Function<Conv> {
  static Tensor forward(AutogradContext* context, const Tensor& g, const Tensor& radial, const Tensor& sh, const Tensor& sender,
                        const Tensor& row_ptr, c10::IntArrayRef paths, const Tensor& cg, int64_t dim_out) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({g, radial, sh, sender, row_ptr, cg});
    context->saved_data["paths"] = paths.vec();
    context->set_materialize_grads(false);
    return call_conv(g, radial, sh, sender, row_ptr, paths, cg, dim_out);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad) {
    variable_list result(8);
    const std::array<bool, 3> mask{context->needs_input_grad(0), context->needs_input_grad(1), context->needs_input_grad(2)};
    if (!grad[0].defined() || !(mask[0] || mask[1] || mask[2])) return result;
    const auto saved = context->get_saved_variables();
    const Paths paths = context->saved_data["paths"].toIntVector();
    std::tie(result[0], result[1], result[2]) = call_backward(grad[0], saved[0], saved[1], saved[2], saved[3], saved[4], paths, saved[5], mask);
    return result;
  }
};

Tensor conv_autograd(const Tensor& g, const Tensor& radial, const Tensor& sh, const Tensor& sender, const Tensor& row_ptr,
                     c10::IntArrayRef paths, const Tensor& cg, int64_t dim_out) {
  return Conv::apply(g, radial, sh, sender, row_ptr, paths, cg, dim_out);
}

std::tuple<Tensor, Tensor, Tensor> conv_backward_autograd(const Tensor& grad, const Tensor& g, const Tensor& radial, const Tensor& sh,
                                                          const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                                                          const Tensor& cg, std::array<bool, 3> mask) {
  const auto results = ConvBackward::apply(grad, g, radial, sh, sender, row_ptr, paths, cg, mask);
  std::array<Tensor, 3> d;
  for (size_t k = 0, next = 0; k < 3; ++k)
    if (mask[k]) d[k] = results[next++];
  return {d[0], d[1], d[2]};
}

Tensor conv_meta(const Tensor& g, const Tensor& radial, const Tensor& sh, const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                 const Tensor& cg, int64_t dim_out) {
  return g.new_empty({row_ptr.size(0) - 1, dim_out});
}

std::tuple<Tensor, Tensor, Tensor> conv_backward_meta(const Tensor& grad, const Tensor& g, const Tensor& radial, const Tensor& sh,
                                                      const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths, const Tensor& cg,
                                                      std::array<bool, 3> mask) {
  const auto like = [](const Tensor& t, bool wanted) { return wanted ? t.new_empty(t.sizes()) : Tensor(); };
  return {like(g, mask[0]), like(radial, mask[1]), like(sh, mask[2])};
}

// Module and LAMMPS plugin each carry librace, and one process may load both: the first to come registers, for good (its handle is
// never destroyed, and the libraries are linked nodelete).
const bool registered = [] {
  if (c10::Dispatcher::singleton().findSchema({"race::conv", ""})) return false;
  auto* library = new torch::Library(torch::Library::FRAGMENT, "race", std::nullopt, __FILE__, __LINE__);
  library->def(kConv);
  library->def(kBackward);
  library->def(kDoubleBackward);
  library->def("conv_isa() -> str", [] { return std::string(conv_isa()); });
  const auto add = [library](c10::DispatchKey key, const char* name, auto function) {
    library->impl(name, torch::dispatch(key, torch::CppFunction(function)));
  };
  add(c10::DispatchKey::CPU, "conv", TORCH_FN(conv_cpu));
  add(c10::DispatchKey::CPU, "conv_backward", TORCH_FN(conv_backward_cpu));
  add(c10::DispatchKey::CPU, "conv_double_backward", TORCH_FN(double_backward_cpu));
  add(c10::DispatchKey::Autograd, "conv", TORCH_FN(conv_autograd));
  add(c10::DispatchKey::Autograd, "conv_backward", TORCH_FN(conv_backward_autograd));
  library->impl("conv_double_backward", torch::dispatch(c10::DispatchKey::Autograd, torch::autograd::autogradNotImplementedFallback()));
  add(c10::DispatchKey::Meta, "conv", TORCH_FN(conv_meta));
  add(c10::DispatchKey::Meta, "conv_backward", TORCH_FN(conv_backward_meta));
  return true;
}();

}  // namespace
}  // namespace race
