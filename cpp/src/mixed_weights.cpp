// race::mixed_weights: one matrix per species out of one per species feature, in a form that reads
// the large operand once.
//
//   race::mixed_weights(Tensor a, Tensor weight) -> Tensor
//
//   a       [M, S, F]  features of the species, float32 or float64
//   weight  [M, F, N]  all numbers of the matrices, flat
//   result  [M, S, N]  sum_f a[m, s, f] weight[m, f, n]
//
// The result equals torch.bmm(a, weight). But S is a few species and F N most of a model's
// parameters: general matrix products are then several times slower than memory. Differentiable
// once.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "../simd/simd.h"
#include "check.h"
#include "operators.h"

namespace race {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kColumns = 512;  // columns of which kRows rows stay in the first-level cache
constexpr int64_t kRows = 8;  // rows that are taken together: each number of the result is loaded
                              // and stored once for all of them

// Over columns [0, n) of rows that are `stride` apart: to[s] (+)= sum_f a[s, f] from[f], for up to
// kRows features.
template <bool first, class T>
RACE_INLINE void add_rows(int64_t n, int64_t n_species, int64_t n_features, const T* a,
                          int64_t a_species, int64_t a_feature, const T* from, T* to,
                          int64_t stride) {
  const T* x[kRows];
  for (int64_t f = 0; f < kRows; ++f) x[f] = from + (f < n_features ? f : 0) * stride;
  for (int64_t s = 0; s < n_species; ++s) {
    T c[kRows];
    for (int64_t f = 0; f < kRows; ++f)
      c[f] = f < n_features ? a[s * a_species + f * a_feature] : T(0);
    T* y = to + s * stride;
    static_assert(kRows == 8, "written out below");
    for (int64_t k = 0; k < n; ++k) {
      const T low = c[0] * x[0][k] + c[1] * x[1][k] + c[2] * x[2][k] + c[3] * x[3][k];
      const T high = c[4] * x[4][k] + c[5] * x[5][k] + c[6] * x[6][k] + c[7] * x[7][k];
      y[k] = first ? low + high : y[k] + (low + high);
    }
  }
}

// Computes `to` [S, N] = a [S, F] from [F, N], with a's strides given: the transposed product is
// the same with S and F exchanged.
template <class T>
RACE_INLINE void product(int64_t S, int64_t F, int64_t N, const T* a, int64_t a_species,
                         int64_t a_feature, const T* from, T* to) {
  for (int64_t n = 0; n < N; n += kColumns) {
    const int64_t width = std::min(kColumns, N - n);
    add_rows<true>(width, S, std::min(kRows, F), a, a_species, a_feature, from + n, to + n, N);
    for (int64_t f = kRows; f < F; f += kRows)
      add_rows<false>(width, S, std::min(kRows, F - f), a + f * a_feature, a_species, a_feature,
                      from + f * N + n, to + n, N);
  }
}

RACE_EVERY_ISA void multiply(int64_t S, int64_t F, int64_t N, const float* a, int64_t s, int64_t f,
                             const float* from, float* to) {
  product(S, F, N, a, s, f, from, to);
}
RACE_EVERY_ISA void multiply(int64_t S, int64_t F, int64_t N, const double* a, int64_t s, int64_t f,
                             const double* from, double* to) {
  product(S, F, N, a, s, f, from, to);
}

// Computes `to` [S, F] = g [S, N] times the transpose of x [F, N]: by columns, so that kRows rows
// of x wait in the cache for every row of g.
template <class T>
RACE_INLINE void products_of_rows(int64_t S, int64_t F, int64_t N, const T* g, const T* x, T* to) {
  typedef T Lanes __attribute__((vector_size(64)));
  constexpr int64_t lanes = 64 / sizeof(T);
  std::fill_n(to, S * F, T(0));
  for (int64_t f = 0; f < F; f += kRows) {
    const int64_t n_features = std::min(kRows, F - f);
    for (int64_t first = 0; first < N; first += kColumns) {
      const int64_t width = std::min(kColumns, N - first), whole = width - width % lanes;
      const T* v[kRows];
      for (int64_t k = 0; k < kRows; ++k) v[k] = x + (f + std::min(k, n_features - 1)) * N + first;
      for (int64_t s = 0; s < S; ++s) {
        const T* u = g + s * N + first;
        Lanes sum[kRows] = {}, of_u, of_v;
        for (int64_t n = 0; n < whole; n += lanes) {
          __builtin_memcpy(&of_u, u + n, sizeof of_u);
          for (int64_t k = 0; k < kRows; ++k) {
            __builtin_memcpy(&of_v, v[k] + n, sizeof of_v);
            sum[k] += of_u * of_v;
          }
        }
        for (int64_t k = 0; k < n_features; ++k) {
          T total = 0;
          for (int64_t i = 0; i < lanes; ++i) total += sum[k][i];
          for (int64_t n = whole; n < width; ++n) total += u[n] * v[k][n];
          to[s * F + f + k] += total;
        }
      }
    }
  }
}

RACE_EVERY_ISA void contract(int64_t S, int64_t F, int64_t N, const float* g, const float* x,
                             float* to) {
  products_of_rows(S, F, N, g, x, to);
}
RACE_EVERY_ISA void contract(int64_t S, int64_t F, int64_t N, const double* g, const double* x,
                             double* to) {
  products_of_rows(S, F, N, g, x, to);
}

void check(const Tensor& a, const Tensor& weight) {
  RACE_CHECK("mixed_weights",
             a.dim() == 3 && (a.scalar_type() == at::kFloat || a.scalar_type() == at::kDouble), "a",
             "float32 or float64 [n_members, n_species, n_features]", a.scalar_type(), " ",
             a.sizes());
  RACE_CHECK(
      "mixed_weights",
      weight.dim() == 3 && weight.size(0) == a.size(0) && weight.size(1) == a.size(2) &&
          weight.scalar_type() == a.scalar_type() && weight.device() == a.device(),
      "weight",
      c10::str(a.scalar_type(), " [", a.size(0), ", ", a.size(2), ", numel] on ", a.device()),
      weight.scalar_type(), " ", weight.sizes(), " on ", weight.device());
}

// a [M, S, F] times x [M, F, N], or with `transposed` a^T times x [M, S, N].
Tensor times(const Tensor& a_in, const Tensor& x_in, bool transposed) {
  const Tensor a = a_in.contiguous(), x = x_in.contiguous();
  const int64_t M = a.size(0), S = a.size(1), F = a.size(2), N = x.size(2),
                rows = transposed ? F : S;
  if (a.numel() == 0) return at::zeros({M, rows, N}, a.options());
  const Tensor result = at::empty({M, rows, N}, a.options());
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "race::mixed_weights", [&] {
    for (int64_t m = 0; m < M; ++m) {
      const scalar_t *of_a = a.const_data_ptr<scalar_t>() + m * S * F,
                     *of_x = x.const_data_ptr<scalar_t>() + m * (S + F - rows) * N;
      scalar_t* to = result.mutable_data_ptr<scalar_t>() + m * rows * N;
      if (transposed)
        multiply(F, S, N, of_a, 1, F, of_x, to);
      else
        multiply(S, F, N, of_a, F, 1, of_x, to);
    }
  });
  return result;
}

// The adjoint of a [M, S, F] from that of the result, [M, S, N].
Tensor adjoint_of_features(const Tensor& bar_in, const Tensor& weight_in) {
  const Tensor bar = bar_in.contiguous(), weight = weight_in.contiguous();
  const int64_t M = bar.size(0), S = bar.size(1), F = weight.size(1), N = bar.size(2);
  const Tensor result = at::empty({M, S, F}, bar.options());
  AT_DISPATCH_FLOATING_TYPES(bar.scalar_type(), "race::mixed_weights", [&] {
    for (int64_t m = 0; m < M; ++m)
      contract(S, F, N, bar.const_data_ptr<scalar_t>() + m * S * N,
               weight.const_data_ptr<scalar_t>() + m * F * N,
               result.mutable_data_ptr<scalar_t>() + m * S * F);
  });
  return result;
}

Tensor mixed_weights_cpu(const Tensor& a, const Tensor& weight) {
  check(a, weight);
  return times(a, weight, false);
}

// For devices whose matrix products take few rows well.
Tensor mixed_weights_aten(const Tensor& a, const Tensor& weight) {
  check(a, weight);
  return at::bmm(a, weight);
}

struct MixedWeights : torch::autograd::Function<MixedWeights> {
  static Tensor forward(AutogradContext* context, const Tensor& a, const Tensor& weight) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({a, weight});
    static const auto handle = find_operator<decltype(mixed_weights_cpu)>("race::mixed_weights");
    return handle.call(a, weight);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK_NOT_IMPLEMENTED(!(at::GradMode::is_enabled() && grads[0].requires_grad()),
                                "race::mixed_weights is differentiable once");
    const auto saved = context->get_saved_variables();
    const Tensor &a = saved[0], &weight = saved[1], &bar = grads[0];
    variable_list result(2);
    if (context->needs_input_grad(0))
      result[0] = a.is_cpu() ? adjoint_of_features(bar, weight) : bar.bmm(weight.transpose(1, 2));
    if (context->needs_input_grad(1))
      result[1] = a.is_cpu() ? times(a, bar, true) : a.transpose(1, 2).bmm(bar);
    return result;
  }
};

Tensor mixed_weights_autograd(const Tensor& a, const Tensor& weight) {
  return MixedWeights::apply(a, weight);
}

const bool registered =
    register_operators("race::mixed_weights", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, "mixed_weights(Tensor a, Tensor weight) -> Tensor")
          .cpu(TORCH_FN(mixed_weights_cpu))
          .portable(TORCH_FN(mixed_weights_aten))
          .autograd(TORCH_FN(mixed_weights_autograd));
    });

}  // namespace
}  // namespace race
