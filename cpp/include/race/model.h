#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "race/artifact.h"

namespace race {

/// A loaded artifact, cut into the segments between which domains exchange rows. Shapes: E edges, G = 1 or M groups,
/// B radial basis functions, S spherical harmonics, K readout channels. Segments take and return tensors in dtype() on
/// device(), may be called from several threads at once, and record autograd when their inputs require it.
class Model {
 public:
  /// @param device  where the model runs.
  /// @param dtype   at::kFloat or at::kDouble; nullopt: as stored.
  /// @param selftest replay the artifact's own configurations in this dtype on this device.
  /// On the CPU the process then keeps memory that it has once used, as far as glibc is concerned: see src/allocator.h.
  /// @throws race::Error on anything that would give wrong numbers, the self-test included.
  static Model load(const Artifact& artifact, at::Device device = at::kCPU, std::optional<at::ScalarType> dtype = std::nullopt,
                    bool selftest = true);

  /// Reads, verifies and loads a file.
  static Model load(const std::string& path, at::Device device = at::kCPU, std::optional<at::ScalarType> dtype = std::nullopt,
                    bool selftest = true, const std::string& expected_sha256 = "");

  const Metadata& metadata() const;
  const std::string& sha256() const;
  at::Device device() const;
  at::ScalarType dtype() const;

  /// Largest number of scalars of dtype() per atom in one halo exchange (0 for a single layer). The reverse
  /// communication of forces by the caller needs 3 * M float64 beside it.
  int64_t comm_width_max() const;

  struct Edges {
    at::Tensor radial;       ///< [E, B]
    at::Tensor sh;           ///< [E, S]
    at::Tensor radial_grad;  ///< [E, B], d/dr, 1/Angstrom; this and the next are empty, [E, 0], where edges_vjp recomputes them
    at::Tensor sh_grad;      ///< [E, S, 3], 1/Angstrom
  };
  Edges edges(const at::Tensor& edge_vector) const;

  /// [E, G, 3] dE/d edge_vector, from the adjoints bar_radial [E, G, B] and bar_sh [E, G, S]; eV/Angstrom.
  at::Tensor edges_vjp(const at::Tensor& edge_vector, const Edges& edges, const at::Tensor& bar_radial, const at::Tensor& bar_sh) const;

  struct Nodes {
    at::Tensor h;  ///< [n, dim_h] kept by the owner
    at::Tensor g;  ///< [n, dim_g] what ghosts need: the tensor that is exchanged
  };
  /// species int64 [n]. Ghosts compute their own rows: layer 0 needs no exchange.
  Nodes embed(const at::Tensor& species) const;

  struct Layer {
    Nodes nodes;     ///< [n_owned, ...]; g has width 0 after the last layer
    at::Tensor out;  ///< [n_owned, M, K] readout channels of this layer
  };
  Layer layer(int64_t t, const at::Tensor& h, const at::Tensor& g, const at::Tensor& radial, const at::Tensor& sh,
              const at::Tensor& sender, const at::Tensor& row_ptr, const at::Tensor& species) const;

  /// out summed over layers [n_owned, M, K] -> float64 [n_owned, M] node energies, eV, isolated-atom energies included.
  at::Tensor readout(const at::Tensor& out, const at::Tensor& species) const;

  struct Uncertainty {
    at::Tensor node_energy_var;  ///< [n_owned, M] eV^2
    at::Tensor cov_aleatoric;    ///< [n_owned, M, 6] (eV/Angstrom)^2
    at::Tensor cov_epistemic;    ///< [n_owned, M, 6] (eV/Angstrom)^2; the evidential head's own, else 0
  };
  Uncertainty uncertainty(const at::Tensor& out, const at::Tensor& species) const;

 private:
  struct State;
  explicit Model(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

}  // namespace race
