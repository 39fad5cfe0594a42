#pragma once

#include <ATen/ATen.h>

#include <functional>

#include "race/predict.h"

namespace race {

/// The law of total variance over members: from a Prediction to the moments of each atom and of the
/// whole structure. Units are eV and Angstrom; tensors are float64; sums of frames are on the CPU.
/// The twin in Python, race/predict/moments.py, derives the factors on the standard deviation of
/// the members' spread. Metadata::calibration holds them as "energy_spread_factor" and
/// "forces_spread_factor" (of forces and virials); a factor is 1 if an artifact has none.

/// Epistemic covariance of *complete* forces: [n, M, 3] -> [n, 6], mean_m (F_m - F)(F_m - F)^T with
/// F = mean_m F_m (population), without the factors of the metadata.
at::Tensor member_covariance(const at::Tensor& forces);

/// ln det of symmetric matrices in six columns, [..., 6] -> [...]; NaN if a matrix is not positive
/// definite.
at::Tensor log_determinant(const at::Tensor& six);

/// Moments of each owned atom of one domain.
struct AtomMoments {
  at::Tensor energy_var;     ///< [n] eV^2: mean of the heads' variances + the spread of the members
                             ///< with its factor
  at::Tensor cov_aleatoric;  ///< [n, 6] (eV/Angstrom)^2: mean over members of the heads'
                             ///< covariances
  at::Tensor cov_epistemic;  ///< [n, 6]: spread of the members with its factor + the evidential
                             ///< heads' own part
  at::Tensor bald;           ///< [n] nats, 1/2 ln det cov() - mean_m 1/2 ln det Sigma_m: the mutual
                             ///< information of force and member; 0 for heads without a covariance

  at::Tensor grade;  ///< [n], see Model::grade; 0 for models without a grade

  at::Tensor cov() const { return cov_aleatoric + cov_epistemic; }  ///< [n, 6] total
  at::Tensor force_std() const;  ///< [n] sqrt(tr(cov) / 3): root mean square over the components
};

/// @param prediction made with Request::uncertainty (and members, if there are several).
/// @param forces [n_owned, G, 3] *complete*: after reverse communication.
AtomMoments atom_moments(const Prediction& prediction, const at::Tensor& forces,
                         const Metadata& metadata);

/// One domain's part of the sums and maxima over domains.
struct FrameSums {
  at::Tensor n_atoms;       ///< []
  at::Tensor energies;      ///< [M] eV
  at::Tensor energy_vars;   ///< [M] eV^2, of the heads; with aggregation "paper" the sum of s_i
  at::Tensor virials;       ///< [G, 9] eV
  at::Tensor virial_noise;  ///< [6, 6] eV^2
  at::Tensor bald;          ///< [] nats

  at::Tensor max_bald;       ///< [] nats; -inf without atoms
  at::Tensor max_force_std;  ///< [] eV/Angstrom; -inf without atoms
  at::Tensor max_grade;      ///< []; -inf without atoms

  /// Reduces `n` numbers in place over domains: by MPI_Allreduce, or not at all in one domain.
  using Reduce = std::function<void(double* values, int n)>;
  /// Collective. The sums and maxima over all domains.
  FrameSums reduced(const Reduce& sum, const Reduce& max) const;
};

FrameSums frame_sums(const Prediction& prediction, const AtomMoments& atoms);

/// Moments of the whole structure.
struct FrameMoments {
  at::Tensor energy_members;           ///< [M] eV
  double energy_var = 0;               ///< eV^2, total
  double energy_bald = 0;              ///< nats, of the total energy; 0 without atoms
  double mean_bald = 0, max_bald = 0;  ///< nats, over atoms; 0 without atoms
  double max_force_std = 0;            ///< eV/Angstrom; 0 without atoms
  double max_grade = 0;                ///< 0 without atoms
  at::Tensor virial_members;           ///< [G, 6] eV
  at::Tensor virial_cov_aleatoric;     ///< [6, 6] eV^2
  at::Tensor virial_cov_epistemic;     ///< [6, 6] eV^2
  int n_dimensions = 3;  ///< 2: a pressure is half the trace of xx and yy, and z has no stress

  at::Tensor virial_std() const;   ///< [6] eV, of columns xx, yy, zz, xy, xz, yz
  double virial_mean_std() const;  ///< eV, of the trace over n_dimensions: the numerator of a
                                   ///< pressure
};

/// @param sums over all domains.
FrameMoments frame_moments(const FrameSums& sums, const Metadata& metadata, int n_dimensions = 3);

}  // namespace race
