#pragma once
// The algebra of force covariances, one atom at a time, for every device: a head's channels to a
// covariance, the spread of members, ln det. Symmetric 3x3 matrices are six columns
// (race/conventions.h).
#include <cmath>
#include <cstdint>

#include "everywhere.h"

namespace race::covariance {

enum class Head { cholesky, equivariant, evidential, eip };

// The heads with a force covariance: the name in an artifact, and the fewest channels of raw.
struct NamedHead {
  const char* name;
  Head head;
  int64_t n_out;
};
inline constexpr NamedHead kHeads[] = {{"cholesky", Head::cholesky, 8},
                                       {"equivariant", Head::equivariant, 8},
                                       {"evidential", Head::evidential, 10},
                                       {"eip", Head::eip, 20}};

struct Parameters {
  double sigma0, jitter, noise_bound;
  double basis[5][6];
};

RACE_EVERYWHERE double soft_bound(double x, double limit) {
  const double size = std::abs(x);
  return size > limit ? std::copysign(limit + std::tanh(size - limit), x) : x;
}

// As torch's: x itself above 20.
RACE_EVERYWHERE double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

template <class T>
RACE_EVERYWHERE void cholesky(const Parameters& p, const T* raw, double* six) {
  constexpr double limit = 4;
  const T* c = raw + 2;
  const double l11 = p.sigma0 * std::exp(soft_bound(c[0], limit)),
               l22 = p.sigma0 * std::exp(soft_bound(c[1], limit)),
               l33 = p.sigma0 * std::exp(soft_bound(c[2], limit));
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
RACE_EVERYWHERE void expm_traceless(const double* q_six, double* six) {
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
RACE_EVERYWHERE void log_euclidean(const Parameters& p, const T* raw, const T* t, double factor,
                                   double* six) {
  double norm = 0, q[6] = {};
  for (int m = 0; m < 5; ++m) norm += static_cast<double>(t[m]) * t[m];
  norm = std::sqrt(norm);
  const double bound = norm > 4 ? (4 + std::tanh(norm - 4)) / norm : 1;
  for (int m = 0; m < 5; ++m)
    for (int k = 0; k < 6; ++k) q[k] += bound * t[m] * p.basis[m][k];
  expm_traceless(q, six);
  const double scale = factor * p.sigma0 * p.sigma0 * std::exp(soft_bound(raw[2], p.noise_bound));
  for (int k = 0; k < 6; ++k) six[k] *= scale;
}

template <class T>
RACE_EVERYWHERE void evidential(const Parameters& p, const T* raw, const T* t, double* six) {
  const double nu = 5 + softplus(raw[3]);
  log_euclidean(p, raw, t, nu / (nu - 4), six);
}

// beta / (alpha - 1) of each component k; a parameter is softplus(s + Q_kk(t)). t: the tensors of
// nu, alpha and beta.
template <class T>
RACE_EVERYWHERE void eip(const Parameters& p, const T* raw, const T* t, double* six) {
  constexpr double floor = 1e-6;  // race.model.heads.EIP_FLOOR
  for (int k = 0; k < 3; ++k) {
    double alpha = raw[3], beta = raw[4];
    for (int m = 0; m < 5; ++m) {
      alpha += t[5 + m] * p.basis[m][k];
      beta += t[10 + m] * p.basis[m][k];
    }
    six[k] = p.sigma0 * p.sigma0 * (softplus(beta) + floor) / (softplus(alpha) + floor);
    six[3 + k] = 0;
  }
}

template <class T>
RACE_EVERYWHERE void of_head(Head head, const Parameters& p, const T* raw, int64_t n_out,
                             double* six) {
  const T* t = raw + n_out - 5;
  switch (head) {
    case Head::cholesky: return cholesky(p, raw, six);
    case Head::equivariant: return log_euclidean(p, raw, t, 1, six);
    case Head::evidential: return evidential(p, raw, t, six);
    case Head::eip: return eip(p, raw, raw + n_out - 15, six);
  }
}

// ln det by the pivots of L D L^T: the terms of a determinant of six products would cancel. NaN if
// a matrix is not positive definite.
RACE_EVERYWHERE double log_determinant(const double* c) {
  const double d0 = c[0], d1 = c[1] - c[3] * c[3] / d0, yz = c[5] - c[3] * c[4] / d0;
  return std::log(d0) + std::log(d1) + std::log(c[2] - c[4] * c[4] / d0 - yz * yz / d1);
}

// The spread mean_m (F_m - F)(F_m - F)^T of forces [M, 3], F = mean_m F_m.
template <class T>
RACE_EVERYWHERE void of_members(const T* forces, int64_t n_members, double* six) {
  const double per_member = 1.0 / static_cast<double>(n_members);
  double mean[3] = {};
  for (int64_t m = 0; m < n_members; ++m)
    for (int a = 0; a < 3; ++a) mean[a] += per_member * static_cast<double>(forces[3 * m + a]);
  for (int k = 0; k < 6; ++k) six[k] = 0;
  for (int64_t m = 0; m < n_members; ++m) {
    double d[3];
    for (int a = 0; a < 3; ++a) d[a] = static_cast<double>(forces[3 * m + a]) - mean[a];
    six[0] += per_member * d[0] * d[0];
    six[1] += per_member * d[1] * d[1];
    six[2] += per_member * d[2] * d[2];
    six[3] += per_member * d[0] * d[1];
    six[4] += per_member * d[0] * d[2];
    six[5] += per_member * d[1] * d[2];
  }
}

}  // namespace race::covariance
