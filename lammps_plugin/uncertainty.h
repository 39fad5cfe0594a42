#pragma once

#include "race/predict.h"

/// Per-atom uncertainty of one rank's owned atoms, from the law of total variance over members.
/// Model units, float64, on the CPU.
struct AtomUncertainty {
  at::Tensor energy_std;  ///< [n_owned] eV
  at::Tensor force_std;  ///< [n_owned] eV/Angstrom, sqrt(tr(cov) / 3): of one component, on average
                         ///< over directions
  at::Tensor cov;        ///< [n_owned, 6] (eV/Angstrom)^2, aleatoric + epistemic
  at::Tensor cov_aleatoric;  ///< [n_owned, 6]
  at::Tensor cov_epistemic;  ///< [n_owned, 6]
  at::Tensor
      bald;  ///< [n_owned] mutual information of force and member; 0 for heads without a covariance
};

/// @param prediction with Request::uncertainty (and members, where there is more than one).
/// @param forces [n_owned, G, 3] *complete*: after reverse communication.
AtomUncertainty atom_uncertainty(const race::Prediction& prediction, const at::Tensor& forces);

/// Sums over one rank's atoms, and maxima: what ranks reduce to global uncertainties. Model units.
struct RankTotals {
  at::Tensor sums;  ///< float64 [1 + M + M + 9 M + 36]: atoms, member energies, their aleatoric
                    ///< variances, member virials, noise of the virial [6, 6]
  double max_force_std = 0;  ///< eV/Angstrom
};
RankTotals rank_totals(const race::Prediction& prediction, const AtomUncertainty& atoms);

/// Global uncertainties, from sums reduced over ranks.
struct GlobalUncertainty {
  double energy_std;     ///< eV
  double virial_std[6];  ///< eV, noise and spread of the members: xx, yy, zz, xy, xz, yz
  double trace_std;      ///< eV, of a third of the trace: what makes a pressure
};
GlobalUncertainty global_uncertainty(const at::Tensor& sums, const race::Metadata& metadata);
