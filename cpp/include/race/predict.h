#pragma once

#include <ATen/ATen.h>

#include "race/conventions.h"
#include "race/graph.h"
#include "race/halo.h"
#include "race/model.h"
#include "race/zbl.h"

namespace race {

/// What to compute beside the mean. Every domain must ask for the same: it decides what is
/// exchanged.
struct Request {
  bool members = false;  ///< forces and virial of each member (G = M) instead of the mean (G = 1)
  bool uncertainty =
      false;  ///< node_energy_var, cov_aleatoric, cov_epistemic, logdet_aleatoric, virial_cov
  bool atom_virial = false;
  int64_t n_parts = 1;  ///< receivers are taken in this many parts, layer by layer: less memory at
                        ///< once, more work; the same result to rounding. Domains need not agree on
                        ///< it: exchanges stand between layers, not between parts
  bool on_device = false;    ///< the prediction stays on the model's device, and nothing waits for
                             ///< it: for a caller whose atoms are there
  const Zbl* zbl = nullptr;  ///< a core to add; null: none
  at::Tensor velocity;       ///< float64 [n_owned, 3], Angstrom per unit of time; undefined: no
                             ///< heat_flux
};

/// All float64, on the CPU, or with Request::on_device on the model's device. M members; G = M when
/// Request::members, else 1.
struct Prediction {
  /// [n_owned, M] eV. The energy of member m is the sum over all owned atoms of all domains; the
  /// model's is the mean over m.
  at::Tensor node_energy;

  /// [n_total, G, 3] eV/Angstrom. Ghost rows hold what must be added to their owners (LAMMPS:
  /// reverse_comm with newton on; HaloExchange::reverse on forces.view(n_total, 3 G)). A force is
  /// complete only after that.
  at::Tensor forces;

  /// [G, 9] eV, row-major: -sum over this domain's edges of edge_vector_a dE/d edge_vector_b. Sum
  /// over domains; symmetric then (to rounding) because E is rotation invariant. LAMMPS's sign (r
  /// f); stress = -virial / volume in ASE's sign.
  at::Tensor virial;

  /// [n_total, 9] eV, row-major, mean over members: -edge_vector_a dE/d edge_vector_b. Of one layer
  /// all of it goes to the sender: that is the centroid form, from which a heat flux is right. More
  /// layers have no such form; then half goes to either end. Ghost rows are to be added to their
  /// owners; the sum over all rows is the virial. Undefined unless asked for.
  at::Tensor atom_virial;

  at::Tensor node_energy_var;  ///< [n_owned, M] eV^2, aleatoric; 0 for heads without. Undefined
                               ///< unless asked for
  at::Tensor cov_aleatoric;    ///< [n_owned, 6] (eV/Angstrom)^2, mean over members; 0 for heads
                               ///< without. Undefined unless asked for
  at::Tensor cov_epistemic;  ///< [n_owned, 6] (eV/Angstrom)^2, the evidential head's own, mean over
                             ///< members, else 0. The spread of the members is member_covariance()
                             ///< (moments.h) and adds to it. Undefined unless asked for

  /// [n_owned], mean over members of ln det Sigma_m, the members' aleatoric covariances in
  /// (eV/Angstrom)^2. With the total one it makes the mutual information of force and member, 1/2
  /// ln det Sigma - 1/2 mean_m ln det Sigma_m (BALD). Undefined unless asked for, and for heads
  /// without a covariance.
  at::Tensor logdet_aleatoric;

  at::Tensor grade;  ///< [n_owned], see Model::grade. Undefined unless uncertainties were asked
                     ///< for, and of models without

  /// [6, 6] eV^2, columns xx, yy, zz, xy, xz, yz: covariance of the noise of this domain's part of
  /// the virial, mean over members. Atoms are independent: sum over domains. That of the stress is
  /// it over volume^2, beside the members' spread. 0 without a stress head. Undefined unless asked
  /// for.
  at::Tensor virial_cov;

  /// [G, 3] eV Angstrom per unit of the velocities' time: this domain's part of d/dt sum_i r_i E_i
  /// + sum_i r_i (F_i . v_i), the heat flux times the volume but for the kinetic energy that atoms
  /// carry with them. Sum over domains. Exact for any number of layers:
  ///   sum_i E_i v_i - sum_e edge_vector_e (dE/d edge_vector_e . v_sender + sum_t <bar_g_e,
  ///   dg_sender/dt>)
  /// with bar_g_e what edge e adds to the adjoint of its sender's features in layers t > 0, whose
  /// rates of change are a forward pass of tangents with an exchange of its own before each layer.
  /// Undefined unless velocities were given.
  at::Tensor heat_flux;
};

/// Energies by segments with halo exchanges between them, forces by the explicit transpose of that
/// chain: one r_max of ghosts for any number of layers. Collective: every domain calls it with the
/// same request. Runs on the calling thread, with torch's own thread settings.
Prediction predict(const Model& model, const Graph& graph, HaloExchange& halo,
                   const Request& request = {});

}  // namespace race
