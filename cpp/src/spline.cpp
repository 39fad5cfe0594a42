// race::spline: the coefficients of the quintic spline through given values, as race::conv reads
// them.
//
//   race::spline(Tensor values) -> Tensor
//
//   values  [M, N, W]      at the knots x_n = n / (N - 1), N >= 4; the last is taken as zero.
//                          float32 or float64
//   result  [M, N + 4, W]  coefficients: even at x = 0; value, slope and curvature zero at x = 1
//
// Without the eliminated ends the conditions at the knots, (c[n-2] + 26 c[n-1] + 66 c[n] + 26
// c[n+1] + c[n+2]) / 120 = v[n], are a diagonally dominant band of five. One sweep down and one up
// solve it, vectorised over W. Differentiable once. The dense twin is in
// python/race/model/radial.py.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "check.h"
#include "operators.h"

namespace race {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kWeight[5] = {1.0 / 120, 26.0 / 120, 66.0 / 120, 26.0 / 120, 1.0 / 120};
// At x = 1 the coefficients c[N-1], c[N], c[N+1] follow from c[N-3] and c[N-2], as value, slope and
// curvature vanish.
constexpr double kEnd[3][2] = {{-1.0 / 9, -10.0 / 9}, {1.0 / 3, 7.0 / 3}, {-7.0 / 3, -40.0 / 3}};

// L U of the conditions for c[0] .. c[n - 1], n = N - 1: row k of L is (l2, l1, 1), row k of U (d,
// u1, u2).
struct Band {
  std::vector<double> l1, l2, d, u1, u2;

  explicit Band(int64_t n) : l1(n), l2(n), d(n), u1(n), u2(n) {
    for (int64_t k = 0; k < n; ++k) {
      std::array<double, 5> row{};  // columns k - 2 .. k + 2
      const auto add = [&](int64_t column, double w) { row[column - k + 2] += w; };
      for (int64_t j = k - 2; j <= k + 2; ++j) {
        const double w = kWeight[j - k + 2];
        if (j < n)
          add(std::abs(j), w);
        else
          for (int64_t i = 0; i < 2; ++i) add(n - 2 + i, w * kEnd[j - n][i]);
      }
      if (k >= 2) {
        l2[k] = row[0] / d[k - 2];
        row[1] -= l2[k] * u1[k - 2];
        row[2] -= l2[k] * u2[k - 2];
      }
      if (k >= 1) {
        l1[k] = row[1] / d[k - 1];
        row[2] -= l1[k] * u1[k - 1];
        row[3] -= l1[k] * u2[k - 1];
      }
      d[k] = row[2];
      u1[k] = row[3];
      u2[k] = row[4];
    }
  }
};

// row[k] = (row[k] - a row[k + first] - b row[k + second]) / d; a row outside 0 .. n - 1 counts as
// zero.
template <class T>
void eliminate(T* rows, int64_t k, int64_t n, int64_t width, int64_t step, double a, double b,
               double d) {
  T* row = rows + k * width;
  const bool has_first = k + step >= 0 && k + step < n,
             has_second = k + 2 * step >= 0 && k + 2 * step < n;
  const T *first = has_first ? row + step * width : row,
          *second = has_second ? row + 2 * step * width : row;
  const T fa = has_first ? static_cast<T>(a) : T(0), fb = has_second ? static_cast<T>(b) : T(0),
          scale = static_cast<T>(1 / d);
  for (int64_t c = 0; c < width; ++c) row[c] = (row[c] - fa * first[c] - fb * second[c]) * scale;
}

// rows [n, W] in place: A^-1 rows, or A^-T rows.
template <class T>
void solve(const Band& band, T* rows, int64_t n, int64_t width, bool transposed) {
  for (int64_t k = 0; k < n; ++k) {
    if (transposed)
      eliminate(rows, k, n, width, -1, k >= 1 ? band.u1[k - 1] : 0, k >= 2 ? band.u2[k - 2] : 0,
                band.d[k]);
    else
      eliminate(rows, k, n, width, -1, band.l1[k], band.l2[k], 1);
  }
  for (int64_t k = n - 1; k >= 0; --k) {
    if (transposed)
      eliminate(rows, k, n, width, 1, k + 1 < n ? band.l1[k + 1] : 0,
                k + 2 < n ? band.l2[k + 2] : 0, 1);
    else
      eliminate(rows, k, n, width, 1, band.u1[k], band.u2[k], band.d[k]);
  }
}

void check(const Tensor& values) {
  RACE_CHECK("spline", values.dim() == 3 && values.size(1) >= 4, "values",
             "[n_members, n_knots >= 4, width]", values.sizes());
  RACE_CHECK("spline", values.scalar_type() == at::kFloat || values.scalar_type() == at::kDouble,
             "values", "float32 or float64", values.scalar_type());
}

Tensor spline_cpu(const Tensor& values) {
  check(values);
  const int64_t M = values.size(0), n = values.size(1) - 1, W = values.size(2);
  const Band band(n);
  const Tensor result = at::empty({M, n + 5, W}, values.options());
  result.narrow(1, 2, n).copy_(values.narrow(1, 0, n));
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "race::spline", [&] {
    for (int64_t m = 0; m < M; ++m) {
      scalar_t* rows = result.mutable_data_ptr<scalar_t>() + m * (n + 5) * W;  // row k + 2 is c[k]
      solve(band, rows + 2 * W, n, W, false);
      for (int64_t c = 0; c < W; ++c) {
        rows[c] = rows[4 * W + c];
        rows[W + c] = rows[3 * W + c];
        for (int64_t i = 0; i < 3; ++i)
          rows[(n + 2 + i) * W + c] = static_cast<scalar_t>(kEnd[i][0] * rows[n * W + c] +
                                                            kEnd[i][1] * rows[(n + 1) * W + c]);
      }
    }
  });
  return result;
}

Tensor spline_transposed(const Tensor& grad) {
  const int64_t M = grad.size(0), n = grad.size(1) - 5, W = grad.size(2);
  const Band band(n);
  Tensor result = at::empty({M, n + 1, W}, grad.options());
  result.narrow(1, 0, n).copy_(grad.narrow(1, 2, n));
  result.select(1, n).zero_();
  const Tensor bars = grad.contiguous();
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "race::spline", [&] {
    for (int64_t m = 0; m < M; ++m) {
      scalar_t* rows = result.mutable_data_ptr<scalar_t>() + m * (n + 1) * W;
      const scalar_t* bar = bars.const_data_ptr<scalar_t>() + m * (n + 5) * W;
      for (int64_t c = 0; c < W; ++c) {
        rows[2 * W + c] += bar[c];
        rows[W + c] += bar[W + c];
        for (int64_t i = 0; i < 3; ++i)
          for (int64_t k = 0; k < 2; ++k)
            rows[(n - 2 + k) * W + c] +=
                static_cast<scalar_t>(kEnd[i][k] * bar[(n + 2 + i) * W + c]);
      }
      solve(band, rows, n, W, true);
    }
  });
  return result;
}

// The whole map as a matrix [N + 4, N], for devices on which one product is faster than a sweep.
Tensor spline_matrix(int64_t n_knots, const at::TensorOptions& options) {
  static std::mutex mutex;
  static auto& kept = *new std::map<std::tuple<int64_t, at::ScalarType, std::string>, Tensor>;
  const std::lock_guard lock(mutex);
  Tensor& matrix =
      kept[{n_knots, c10::typeMetaToScalarType(options.dtype()), options.device().str()}];
  if (!matrix.defined())
    matrix = spline_cpu(at::eye(n_knots, at::kDouble).unsqueeze(0)).squeeze(0).to(options);
  return matrix;
}

Tensor spline_aten(const Tensor& values) {
  check(values);
  return at::matmul(spline_matrix(values.size(1), values.options()), values);
}

struct Spline : torch::autograd::Function<Spline> {
  static Tensor forward(AutogradContext*, const Tensor& values) {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto handle = find_operator<decltype(spline_cpu)>("race::spline");
    return handle.call(values);
  }

  static variable_list backward(AutogradContext*, variable_list grads) {
    const Tensor& bar = grads[0];
    TORCH_CHECK_NOT_IMPLEMENTED(!(at::GradMode::is_enabled() && bar.requires_grad()),
                                "race::spline is differentiable once");
    if (bar.is_cpu()) return {spline_transposed(bar)};
    return {at::matmul(spline_matrix(bar.size(1) - 4, bar.options()).t(), bar)};
  }
};

Tensor spline_autograd(const Tensor& values) { return Spline::apply(values); }

const bool registered =
    register_operators("race::spline", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, "spline(Tensor values) -> Tensor")
          .cpu(TORCH_FN(spline_cpu))
          .portable(TORCH_FN(spline_aten))
          .autograd(TORCH_FN(spline_autograd));
    });

}  // namespace
}  // namespace race
