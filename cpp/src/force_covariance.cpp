// race::force_covariance: what a readout's channels say about the covariance of the force on each
// atom, for deployed models.
//
//   race::force_covariance(Tensor raw, Tensor basis, str head, float sigma0, float jitter) ->
//   Tensor
//
//   raw     [n, M, n_out]  channels of python/race/model/heads.py, float32 or float64, on the CPU;
//   scalars at the beginning of a row,
//                          the tensor's five at its end, and whatever others between
//   basis   [5, 9]         symmetric traceless matrices B_m of the log-Euclidean heads: Q = sum_m
//   t_m B_m head                   cholesky:    Sigma = L L^T + jitter I
//                          equivariant: Sigma = sigma0^2 expm(a I + Q)
//                          evidential:  the same times nu / (nu - 4)
//   result  [n, M, 6]      (eV/Angstrom)^2, in the order of race/conventions.h
//
// One pass over the rows instead of a hundred small operations; the twin is ForceCovariance.matrix
// in Python. Not differentiable.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <cmath>

#include "race/conventions.h"
#include "check.h"
#include "operators.h"

namespace race {
namespace {

using at::Tensor;

struct Parameters {
  double sigma0, jitter;
  double basis[5][6];
};

double soft_bound(double x) {
  const double size = std::abs(x);
  return size > 4 ? std::copysign(4 + std::tanh(size - 4), x) : x;
}

template <class T>
void cholesky(const Parameters& p, const T* raw, double* six) {
  const T* c = raw + 2;
  const double l11 = p.sigma0 * std::exp(soft_bound(c[0])),
               l22 = p.sigma0 * std::exp(soft_bound(c[1])),
               l33 = p.sigma0 * std::exp(soft_bound(c[2]));
  const double l32 = p.sigma0 * c[3], l31 = p.sigma0 * c[4], l21 = p.sigma0 * c[5];
  six[0] = l11 * l11 + p.jitter;
  six[1] = l21 * l21 + l22 * l22 + p.jitter;
  six[2] = l31 * l31 + l32 * l32 + l33 * l33 + p.jitter;
  six[3] = l21 * l11;
  six[4] = l31 * l11;
  six[5] = l31 * l21 + l32 * l22;
}

// expm(Q) of a symmetric traceless Q by Cayley and Hamilton, as race.model.expm: x Q^2 + y Q + z, Q
// scaled by 1/16.
void expm_traceless(const double* q_six, double* six) {
  constexpr int n_squarings = 4, order = 10;
  double q[6], square[6];
  for (int k = 0; k < 6; ++k) q[k] = q_six[k] / (1 << n_squarings);
  const double xx = q[0], yy = q[1], zz = q[2], xy = q[3], xz = q[4], yz = q[5];
  square[0] = xx * xx + xy * xy + xz * xz;
  square[1] = xy * xy + yy * yy + yz * yz;
  square[2] = xz * xz + yz * yz + zz * zz;
  square[3] = xx * xy + xy * yy + xz * yz;
  square[4] = xx * xz + xy * yz + xz * zz;
  square[5] = xy * xz + yy * yz + yz * zz;
  const double p = (square[0] + square[1] + square[2]) / 2;
  const double d = xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz);
  double x = 0, y = 0, z = 1;
  for (int k = order; k > 0; --k) {  // E <- 1 + (q / k) E, with q^3 = p q + d
    const double old = x;
    x = y / k;
    y = (z + old * p) / k;
    z = 1 + old * d / k;
  }
  for (int k = 0; k < n_squarings; ++k) {
    const double two_xy = 2 * x * y, a = x * x;
    const double new_x = a * p + 2 * x * z + y * y, new_y = a * d + two_xy * p + 2 * y * z;
    z = two_xy * d + z * z;
    x = new_x;
    y = new_y;
  }
  for (int k = 0; k < 6; ++k) six[k] = x * square[k] + y * q[k] + (k < 3 ? z : 0);
}

template <class T>
void log_euclidean(const Parameters& p, const T* raw, const T* t, double factor, double* six) {
  double norm = 0, q[6] = {};
  for (int m = 0; m < 5; ++m) norm += static_cast<double>(t[m]) * t[m];
  norm = std::sqrt(norm);
  const double bound = norm > 4 ? (4 + std::tanh(norm - 4)) / norm : 1;
  for (int m = 0; m < 5; ++m)
    for (int k = 0; k < 6; ++k) q[k] += bound * t[m] * p.basis[m][k];
  expm_traceless(q, six);
  for (int k = 0; k < 6; ++k) six[k] *= factor * p.sigma0 * p.sigma0 * std::exp(soft_bound(raw[2]));
}

template <class T>
void evidential(const Parameters& p, const T* raw, const T* t, double* six) {
  const double x = raw[3],
               nu = 5 + std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));  // softplus
  log_euclidean(p, raw, t, nu / (nu - 4), six);
}

Tensor force_covariance(const Tensor& raw, const Tensor& basis, c10::string_view head,
                        double sigma0, double jitter) {
  const bool is_cholesky = head == "cholesky", is_evidential = head == "evidential";
  RACE_CHECK("force_covariance", is_cholesky || is_evidential || head == "equivariant", "head",
             "cholesky, equivariant or evidential", head);
  const int64_t least = is_evidential ? 10 : 8, n_out = raw.dim() == 3 ? raw.size(2) : 0;
  RACE_CHECK("force_covariance", n_out >= least, "raw",
             c10::str("[n_atoms, n_members, ", least, " or more]"), raw.sizes());
  RACE_CHECK("force_covariance", basis.dim() == 2 && basis.size(0) == 5 && basis.size(1) == 9,
             "basis", "[5, 9]", basis.sizes());
  Parameters p{sigma0, jitter, {}};
  const Tensor b = basis.to(at::kDouble).contiguous(), rows = raw.contiguous();
  for (int m = 0; m < 5; ++m)
    for (int k = 0; k < 6; ++k) p.basis[m][k] = b.const_data_ptr<double>()[9 * m + six_to_nine[k]];

  const Tensor result = at::empty({raw.size(0), raw.size(1), 6}, raw.options());
  AT_DISPATCH_FLOATING_TYPES(raw.scalar_type(), "race::force_covariance", [&] {
    const scalar_t* from = rows.const_data_ptr<scalar_t>();
    scalar_t* to = result.mutable_data_ptr<scalar_t>();
    for (int64_t k = 0; k < raw.size(0) * raw.size(1); ++k, from += n_out, to += 6) {
      double six[6];
      const scalar_t* t = from + n_out - 5;
      if (is_cholesky)
        cholesky(p, from, six);
      else if (is_evidential)
        evidential(p, from, t, six);
      else
        log_euclidean(p, from, t, 1, six);
      for (int c = 0; c < 6; ++c) to[c] = static_cast<scalar_t>(six[c]);
    }
  });
  return result;
}

const bool registered =
    register_operators("race::force_covariance", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library,
               "force_covariance(Tensor raw, Tensor basis, str head, float sigma0, float jitter) "
               "-> Tensor")
          .cpu(TORCH_FN(force_covariance));
    });

}  // namespace
}  // namespace race
