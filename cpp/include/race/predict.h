#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "race/conventions.h"
#include "race/graph.h"
#include "race/halo.h"
#include "race/model.h"
#include "race/zbl.h"

namespace race {

/// The outputs to compute beside the mean. Every domain must request the same, because the request
/// decides what is exchanged.
struct Request {
  bool forces = true;    ///< false: energies alone, from a forward pass without its transpose;
                         ///< forces, virial and all that needs them are undefined
  bool members = false;  ///< forces and virial of each member (G = M) instead of the mean (G = 1)
  bool uncertainty =
      false;  ///< node_energy_var, cov_aleatoric, cov_epistemic, logdet_aleatoric, virial_cov
  bool atom_virial = false;
  int64_t n_parts = 1;  ///< number of parts in which each layer takes its receivers: more parts
                        ///< need less memory at once and more work, with the same result to
                        ///< rounding. Domains may differ in it: exchanges stand between layers, not
                        ///< between parts
  bool on_device = false;    ///< the prediction stays on the model's device without a
                             ///< synchronisation: for a caller whose atoms are there
  const Zbl* zbl = nullptr;  ///< a core to add; null: none
  at::Tensor velocity = {};  ///< float64 [n_owned, 3], Angstrom per unit of time; undefined: no
                             ///< heat_flux
  bool moving() const { return forces && velocity.defined(); }
};

/// All tensors are float64, on the CPU or, with Request::on_device, on the model's device. M is the
/// number of members; G = M with Request::members, else 1.
struct Prediction {
  /// [n_owned, M] eV. The energy of member m is the sum over all owned atoms of all domains; the
  /// model's energy is the mean over m.
  at::Tensor node_energy;

  /// [n_total, G, 3] eV/Angstrom, as the virials undefined without Request::forces. Ghost rows must
  /// be added to their owners' rows (LAMMPS: reverse_comm with newton on; HaloExchange::reverse on
  /// forces.view(n_total, 3 G)). A force is complete only after that.
  at::Tensor forces;

  /// [G, 9] eV, row-major: -sum over this domain's edges of edge_vector_a dE/d edge_vector_b. The
  /// sum over domains is symmetric (to rounding), because E is rotation invariant. The sign is
  /// LAMMPS's (r f); stress = -virial / volume in ASE's sign.
  at::Tensor virial;

  /// [n_total, 9] eV, row-major, mean over members: -edge_vector_a dE/d edge_vector_b. With one
  /// layer, all of it goes to the sender: the centroid form, which gives the right heat flux.
  /// Several layers have no such form; half then goes to either end. Ghost rows must be added to
  /// their owners' rows; the sum over all rows is the virial. Undefined unless requested.
  at::Tensor atom_virial;

  at::Tensor node_energy_var;  ///< [n_owned, M] eV^2, aleatoric; 0 if the head has none. Undefined
                               ///< unless requested
  at::Tensor cov_aleatoric;    ///< [n_owned, 6] (eV/Angstrom)^2, mean over members; 0 if the head
                               ///< has none. Undefined unless requested
  at::Tensor cov_epistemic;  ///< [n_owned, 6] (eV/Angstrom)^2, mean over members of the evidential
                             ///< head's own part; 0 for other heads. The spread of the members is
                             ///< member_covariance() (moments.h) and adds to it. Undefined unless
                             ///< requested

  /// [n_owned], mean over members of ln det Sigma_m, the members' aleatoric covariances in
  /// (eV/Angstrom)^2. With the total covariance it gives the mutual information of force and
  /// member, 1/2 ln det Sigma - 1/2 mean_m ln det Sigma_m (BALD). Undefined unless requested, and
  /// for heads without a covariance.
  at::Tensor logdet_aleatoric;

  at::Tensor grade;  ///< [n_owned], see Model::grade. Undefined unless uncertainties are requested,
                     ///< and for models without a grade

  /// [6, 6] eV^2, columns xx, yy, zz, xy, xz, yz: covariance of the noise of this domain's part of
  /// the virial, mean over members. Atoms are independent: sum over domains. The covariance of the
  /// stress is this over volume^2, plus the members' spread. 0 without a stress head. Undefined
  /// unless requested.
  at::Tensor virial_cov;

  /// [G, 3] eV Angstrom per unit of the velocities' time: this domain's part of d/dt sum_i r_i E_i
  /// + sum_i r_i (F_i . v_i). This is the heat flux times the volume, without the kinetic energy
  /// that atoms carry with them. Sum over domains. Exact for any number of layers:
  ///   sum_i E_i v_i - sum_e edge_vector_e (dE/d edge_vector_e . v_sender + sum_t <bar_g_e,
  ///   dg_sender/dt>)
  /// with bar_g_e the contribution of edge e to the adjoint of its sender's features in layers t >
  /// 0. A forward pass of tangents, with an exchange of its own before each layer, gives the
  /// features' rates of change. Undefined unless velocities are given.
  at::Tensor heat_flux;

  std::vector<at::Tensor> tensors() const;           ///< all of the above, in a fixed order
  void set(const std::vector<at::Tensor>& tensors);  ///< the reverse
};

/// Computes energies by segments with halo exchanges between them, and forces by the explicit
/// transpose of that chain. One r_max of ghosts is enough for any number of layers. Collective:
/// every domain calls it with the same request. It runs on the calling thread, with torch's own
/// thread settings.
Prediction predict(const Model& model, const Graph& graph, HaloExchange& halo,
                   const Request& request = {});

/// The same for topology.at(edge_vector), of a topology on the model's device. Where nothing in
/// the step waits for the host (HaloExchange::fixed(), one part, no velocities), a device that can
/// records it and replays it.
Prediction predict(const Model& model, const Topology& topology, const at::Tensor& edge_vector,
                   HaloExchange& halo, const Request& request = {});

}  // namespace race
