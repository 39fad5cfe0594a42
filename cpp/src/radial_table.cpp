// race::radial_table: the radial MLP at the knots, with its first two derivatives in x.
//
//   race::radial_table(Tensor knots, Tensor[] weights) -> Tensor
//
//   knots    [3, N, B]      basis functions at the knots, their first and second derivatives
//   weights  [M, a, b] each  matrices of the MLP, used as they are; scaled SiLU between them, none after the last
//   result   [M, N, 3, K]   R, R' and R'', as race::conv takes them
//
// Differentiable once with respect to the weights (forces see the table, their loss sees its gradient, nothing sees more). The same
// in stock operations is Radial.table in python/race/model/radial.py: some eighty small ones, which here are two passes per layer.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

namespace race {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr double kSiluNorm = 1.6790;  // race.model.radial.silu

// (f', f'', f''') of the scaled SiLU at z, s = sigmoid(z).
template <class T>
struct Slopes {
  T first, second, third;
  Slopes(T z, T s) {
    const T c = s * (1 - s), odd = 1 - 2 * s, inner = 2 + z * odd;
    first = T(kSiluNorm) * (s + z * c);
    second = T(kSiluNorm) * c * inner;
    third = T(kSiluNorm) * c * (odd * inner + odd - 2 * z * c);
  }
};

// Runs body(i, v) for numbers [M, size]: i is the place there, v that of the value in [M, 3, size], slope and curvature being `size`
// and 2 `size` further.
template <class F>
void for_values(int64_t n_members, int64_t size, F body) {
  at::parallel_for(0, n_members * size, 1 << 14, [&](int64_t first, int64_t last) {
    while (first < last) {
      const int64_t member = first / size, end = std::min(last, (member + 1) * size), shift = 2 * member * size;
      for (int64_t i = first; i < end; ++i) body(i, i + shift);
      first = end;
    }
  });
}

// x [M, 3, N, H] -> (f(x0), f' x1, f'' x1^2 + f' x2), the chain rule of f(x(t)); sigmoid [M, N, H] of x0.
Tensor activate(const Tensor& x, const Tensor& sigmoid) {
  Tensor result = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "race::radial_table", [&] {
    const auto *in = x.const_data_ptr<scalar_t>(), *s = sigmoid.const_data_ptr<scalar_t>();
    auto* out = result.data_ptr<scalar_t>();
    const int64_t size = x.size(2) * x.size(3);
    for_values(x.size(0), size, [=](int64_t i, int64_t v) {
      const int64_t d = v + size, dd = d + size;
      const Slopes<scalar_t> f(in[v], s[i]);
      out[v] = scalar_t(kSiluNorm) * in[v] * s[i];
      out[d] = f.first * in[d];
      out[dd] = f.second * in[d] * in[d] + f.first * in[dd];
    });
  });
  return result;
}

// Adjoint of x from that of activate(x), in place of the latter.
void activate_vjp(const Tensor& x, const Tensor& sigmoid, Tensor& bar) {
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "race::radial_table", [&] {
    const auto *in = x.const_data_ptr<scalar_t>(), *s = sigmoid.const_data_ptr<scalar_t>();
    auto* b = bar.data_ptr<scalar_t>();
    const int64_t size = x.size(2) * x.size(3);
    for_values(x.size(0), size, [=](int64_t i, int64_t v) {
      const int64_t d = v + size, dd = d + size;
      const Slopes<scalar_t> f(in[v], s[i]);
      const scalar_t slope = in[d], curvature = in[dd], bv = b[v], bd = b[d], bdd = b[dd];
      b[v] = bv * f.first + bd * f.second * slope + bdd * (f.third * slope * slope + f.second * curvature);
      b[d] = bd * f.first + 2 * bdd * f.second * slope;
      b[dd] = bdd * f.first;
    });
  });
}

Tensor rows(const Tensor& x) { return x.flatten(1, 2); }  // [M, 3, N, H] -> [M, 3 N, H]

struct RadialTable : Function<RadialTable> {
  static Tensor forward(AutogradContext* context, const Tensor& knots, at::TensorList weights) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t M = weights[0].size(0), N = knots.size(1);
    Tensor x = knots.unsqueeze(0).expand({M, -1, -1, -1});
    variable_list saved(weights.begin(), weights.end());
    for (size_t k = 0;; ++k) {
      saved.push_back(rows(x));  // what matrix k multiplies
      x = at::bmm(saved.back(), weights[k]).view({M, 3, N, -1});
      if (k + 1 == weights.size()) break;
      const Tensor sigmoid = x.select(1, 0).sigmoid();
      saved.push_back(x), saved.push_back(sigmoid);
      x = activate(x, sigmoid);
    }
    context->save_for_backward(saved);
    context->saved_data["n"] = static_cast<int64_t>(weights.size());
    return x.transpose(1, 2).contiguous();
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad) {
    const auto saved = context->get_saved_variables();
    const int64_t n = context->saved_data["n"].toInt();
    variable_list result(1 + n);
    if (!grad[0].defined()) return result;
    Tensor bar = grad[0].transpose(1, 2).contiguous();  // [M, 3, N, K]
    for (int64_t k = n - 1; k >= 0; --k) {
      const Tensor& x = saved[n + 3 * k];
      result[1 + k] = at::bmm(x.transpose(1, 2), rows(bar));
      if (k == 0) break;
      bar = at::bmm(rows(bar), saved[k].transpose(1, 2)).view({bar.size(0), 3, bar.size(2), -1});
      activate_vjp(saved[n + 3 * k - 2], saved[n + 3 * k - 1], bar);
    }
    return result;
  }
};

#define RACE_CHECK(condition, name, expected, ...) \
  TORCH_CHECK_VALUE(condition, "race::radial_table: ", name, ": expected ", expected, ", got ", __VA_ARGS__)

void check(const Tensor& knots, at::TensorList weights) {
  RACE_CHECK(knots.dim() == 3 && knots.size(0) == 3, "knots", "[3, n_knots, n_basis]", knots.sizes());
  RACE_CHECK(knots.scalar_type() == at::kFloat || knots.scalar_type() == at::kDouble, "knots", "float32 or float64", knots.scalar_type());
  RACE_CHECK(!weights.empty(), "weights", "at least one matrix", "none");
  int64_t width = knots.size(2);
  for (const Tensor& w : weights) {
    RACE_CHECK(w.dim() == 3 && w.size(0) == weights[0].size(0) && w.size(1) == width, "weights",
               c10::str("[n_members, ", width, ", ..]"), w.sizes());
    RACE_CHECK(w.scalar_type() == knots.scalar_type() && w.device() == knots.device(), "weights",
               c10::str(knots.scalar_type(), " on ", knots.device()), w.scalar_type(), " on ", w.device());
    width = w.size(2);
  }
}

Tensor radial_table_autograd(const Tensor& knots, at::TensorList weights) {
  check(knots, weights);
  return RadialTable::apply(knots, weights);
}

Tensor radial_table(const Tensor& knots, at::TensorList weights) {
  const at::NoGradGuard no_grad;
  return radial_table_autograd(knots, weights);
}

// The first copy of librace in a process registers, see conv_ops.cpp.
const bool registered = [] {
  if (c10::Dispatcher::singleton().findSchema({"race::radial_table", ""})) return false;
  auto* library = new torch::Library(torch::Library::FRAGMENT, "race", std::nullopt, __FILE__, __LINE__);
  library->def("radial_table(Tensor knots, Tensor[] weights) -> Tensor");
  library->impl("radial_table", torch::dispatch(c10::DispatchKey::CPU, TORCH_FN(radial_table)));
  library->impl("radial_table", torch::dispatch(c10::DispatchKey::AutogradCPU, TORCH_FN(radial_table_autograd)));
  return true;
}();

}  // namespace
}  // namespace race
