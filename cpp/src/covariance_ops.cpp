// Operators of the algebra of uncertainty, in float64, for each atom by itself:
//
//   race::force_covariance(Tensor raw, Tensor basis, str head, float sigma0, float jitter,
//                          float noise_bound=4.) -> Tensor
//
//   raw     [n, M, n_out]  channels of python/race/model/heads.py, float32 or float64: scalars
//                          first, the five of the tensor last, any others between
//   basis   [5, 9]         symmetric traceless matrices B_m of the log-Euclidean heads:
//                          Q = sum_m t_m B_m
//   head                   cholesky:    Sigma = L L^T + jitter I
//                          equivariant: Sigma = sigma0^2 expm(a I + Q)
//                          evidential:  the same times nu / (nu - 4)
//                          eip:         diag(beta_k / (alpha_k - 1))
//   noise_bound            of |a|, which saturates beyond; artifacts from before name none
//   result  [n, M, 6]      (eV/Angstrom)^2, in the order of race/conventions.h
//
//   race::member_covariance(Tensor forces) -> Tensor    [n, M, 3] -> float64 [n, 6]
//   race::log_determinant(Tensor six) -> Tensor         [..., 6] -> float64 [...]
//
// Each is one pass over the atoms instead of a hundred small operations. The twins in Python are
// ForceCovariance.matrix and race/predict/moments.py. Not differentiable.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "covariance_check.h"
#include "operators.h"

namespace race {
namespace {

using at::Tensor;
using covariance::check_columns;
using covariance::check_forces;
using covariance::check_raw;
using covariance::Head;
using covariance::Parameters;

Tensor force_covariance(const Tensor& raw, const Tensor& basis, c10::string_view name,
                        double sigma0, double jitter, double noise_bound) {
  const Head head = check_raw(raw, basis, name);
  Parameters p{sigma0, jitter, noise_bound, {}};
  const Tensor b = basis.to(at::kDouble).contiguous(), rows = raw.contiguous();
  for (int m = 0; m < 5; ++m)
    for (int k = 0; k < 6; ++k) p.basis[m][k] = b.const_data_ptr<double>()[9 * m + six_to_nine[k]];

  const int64_t n_out = raw.size(2);
  const Tensor result = at::empty({raw.size(0), raw.size(1), 6}, raw.options());
  AT_DISPATCH_FLOATING_TYPES(raw.scalar_type(), "race::force_covariance", [&] {
    const scalar_t* from = rows.const_data_ptr<scalar_t>();
    scalar_t* to = result.mutable_data_ptr<scalar_t>();
    for (int64_t k = 0; k < raw.size(0) * raw.size(1); ++k, from += n_out, to += 6) {
      double six[6];
      covariance::of_head(head, p, from, n_out, six);
      for (int c = 0; c < 6; ++c) to[c] = static_cast<scalar_t>(six[c]);
    }
  });
  return result;
}

Tensor force_covariance_meta(const Tensor& raw, const Tensor& basis, c10::string_view name, double,
                             double, double) {
  check_raw(raw, basis, name);
  return at::empty({raw.size(0), raw.size(1), 6}, raw.options());
}

Tensor columns_like(const Tensor& forces) {
  check_forces(forces);
  return at::empty({forces.size(0), 6}, forces.options().dtype(at::kDouble));
}

Tensor member_covariance_cpu(const Tensor& forces) {
  const Tensor result = columns_like(forces), rows = forces.contiguous();
  double* to = result.mutable_data_ptr<double>();
  AT_DISPATCH_FLOATING_TYPES(forces.scalar_type(), "race::member_covariance", [&] {
    const auto* from = rows.const_data_ptr<scalar_t>();
    for (int64_t k = 0; k < rows.size(0); ++k, from += 3 * rows.size(1), to += 6)
      covariance::of_members(from, rows.size(1), to);
  });
  return result;
}

// For devices without a kernel of their own.
Tensor member_covariance_on_host(const Tensor& forces) {
  return member_covariance_cpu(forces.cpu()).to(forces.device());
}

Tensor numbers_like(const Tensor& six) {
  check_columns(six);
  return at::empty(six.sizes().slice(0, six.dim() - 1), six.options().dtype(at::kDouble));
}

Tensor log_determinant_cpu(const Tensor& six) {
  const Tensor result = numbers_like(six), rows = six.to(at::kDouble).contiguous();
  const double* from = rows.const_data_ptr<double>();
  double* to = result.mutable_data_ptr<double>();
  for (int64_t k = 0; k < result.numel(); ++k, from += 6) to[k] = covariance::log_determinant(from);
  return result;
}

Tensor log_determinant_on_host(const Tensor& six) {
  return log_determinant_cpu(six.cpu()).to(six.device());
}

const bool registered =
    register_operators("race::force_covariance", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library,
               "force_covariance(Tensor raw, Tensor basis, str head, float sigma0, float jitter, "
               "float noise_bound=4.) -> Tensor")
          .cpu(TORCH_FN(force_covariance))
          .meta(TORCH_FN(force_covariance_meta));
      Operator(library, "member_covariance(Tensor forces) -> Tensor")
          .cpu(TORCH_FN(member_covariance_cpu))
          .portable(TORCH_FN(member_covariance_on_host))
          .meta(TORCH_FN(columns_like));
      Operator(library, "log_determinant(Tensor six) -> Tensor")
          .cpu(TORCH_FN(log_determinant_cpu))
          .portable(TORCH_FN(log_determinant_on_host))
          .meta(TORCH_FN(numbers_like));
    });

}  // namespace
}  // namespace race
