#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "race/artifact.h"

namespace race {

/// A loaded artifact, cut into the segments between which domains exchange features. Shapes: E
/// edges, T trunks, G = 1 or T groups, B radial basis functions, S spherical harmonics, K readout
/// channels. Segments take and return tensors in dtype() on device() and may be called from several
/// threads at once. They are not differentiable: *_vjp are their transposes.
class Model {
 public:
  /// @param device  where the model runs.
  /// @param dtype   at::kFloat or at::kDouble; nullopt: as stored.
  /// @param selftest replay the artifact's own configurations in this dtype on this device.
  /// On the CPU, glibc then keeps memory that the process has used once: see race/allocator.h.
  /// @throws race::Error on anything that would give wrong numbers, a failed self-test included.
  static Model load(const Artifact& artifact, at::Device device = at::kCPU,
                    std::optional<at::ScalarType> dtype = std::nullopt, bool selftest = true);

  /// Reads, verifies and loads a file.
  static Model load(const std::string& path, at::Device device = at::kCPU,
                    std::optional<at::ScalarType> dtype = std::nullopt, bool selftest = true,
                    const std::string& expected_sha256 = "");

  const Metadata& metadata() const;
  const std::string& sha256() const;
  at::Device device() const;
  at::ScalarType dtype() const;

  /// Largest number of scalars of dtype() per atom in one halo exchange (0 for a single layer). The
  /// caller's reverse communication of forces needs 3 * M float64 in addition.
  int64_t comm_width_max() const;

  struct Edges {
    at::Tensor radial;       ///< [E, B]
    at::Tensor sh;           ///< [E, S]
    at::Tensor radial_grad;  ///< [E, B], d/dr, 1/Angstrom; this and the next are empty, [E, 0],
                             ///< if edges_vjp recomputes them
    at::Tensor sh_grad;      ///< [E, S, 3], 1/Angstrom
  };
  Edges edges(const at::Tensor& edge_vector) const;

  /// [E, G, 3] dE/d edge_vector, from the adjoints bar_radial [E, G, B] and bar_sh [E, G, S];
  /// eV/Angstrom.
  at::Tensor edges_vjp(const at::Tensor& edge_vector, const Edges& edges,
                       const at::Tensor& bar_radial, const at::Tensor& bar_sh) const;

  /// Whether the artifact has the tangents (edges_jvp, layer_jvp, layer_power); artifacts of
  /// earlier exports have none.
  bool has_tangents() const;

  struct EdgeRates {
    at::Tensor radial;  ///< [E, B]
    at::Tensor sh;      ///< [E, S]
  };
  /// Rates of change of the results of edges(), from those of edge_vector, rate [E, 3].
  EdgeRates edges_jvp(const at::Tensor& edge_vector, const at::Tensor& rate) const;

  /// species int64 [n] -> g_0 [n, dim_g]. Ghosts compute their own rows: layer 0 needs no exchange.
  at::Tensor embed(const at::Tensor& species) const;

  /// The edges and receivers that every layer reads.
  struct Neighbors {
    at::Tensor radial;   ///< [E, G, B]
    at::Tensor sh;       ///< [E, G, S]
    at::Tensor sender;   ///< int64 [E]
    at::Tensor row_ptr;  ///< int64 [n_owned + 1]
    at::Tensor species;  ///< int64 [n_owned]
  };

  struct Layer {
    at::Tensor h;    ///< [n_owned, dim_h] features that the owner keeps
    at::Tensor g;    ///< [n_owned, dim_g] features that neighbours read, and the tensor that is
                     ///< exchanged; width 0 after the last layer
    at::Tensor out;  ///< [n_owned, M, K] readout channels of this layer
    at::Tensor z;    ///< input of layer_vjp
  };
  /// h [n_owned, dim_h], width 0 before layer 0; g [n_total, dim_g].
  Layer layer(int64_t t, const at::Tensor& h, const at::Tensor& g,
              const Neighbors& neighbors) const;

  struct LayerVjp {
    at::Tensor h;       ///< adjoint of h; width 0 in layer 0
    at::Tensor g;       ///< [n_total, dim_g] adjoint of g; meaningless in layer 0
    at::Tensor radial;  ///< [E, G, B]
    at::Tensor sh;      ///< [E, G, S]
  };
  /// Adjoints of a layer's inputs, from bar_energy [n_owned, M] (readout_vjp) and the adjoints of
  /// its results, bar_h and bar_g. bar_h is overwritten. g is the input of layer().
  LayerVjp layer_vjp(int64_t t, const at::Tensor& g, const Neighbors& neighbors,
                     const at::Tensor& z, const at::Tensor& bar_energy, const at::Tensor& bar_h,
                     const at::Tensor& bar_g) const;

  struct LayerRates {
    at::Tensor h, g;  ///< as in Layer
  };
  /// Rates of change of a layer's h and g, from those of its inputs: dh, dg, and dradial [E, G, B]
  /// and dsh [E, G, S] of the edges. g is the input of layer(), z its result.
  LayerRates layer_jvp(int64_t t, const at::Tensor& dh, const at::Tensor& dg,
                       const at::Tensor& dradial, const at::Tensor& dsh, const at::Tensor& g,
                       const Neighbors& neighbors, const at::Tensor& z) const;

  /// [E, T] energy per unit of time that the features of each edge's sender give to its receiver,
  /// if they change at the rate dg [n_total, dim_g]. The adjoints are those of layer_vjp and are
  /// not changed.
  at::Tensor layer_power(int64_t t, const at::Tensor& dg, const Neighbors& neighbors,
                         const at::Tensor& z, const at::Tensor& bar_energy, const at::Tensor& bar_h,
                         const at::Tensor& bar_g) const;

  /// out summed over layers [n_owned, M, K] -> float64 [n_owned, M] node energies, eV,
  /// isolated-atom energies included.
  at::Tensor readout(const at::Tensor& out, const at::Tensor& species) const;

  /// The adjoint of the energy channel of every layer's out, [n_owned, M], from those of the
  /// members' energies, float64 [M].
  at::Tensor readout_vjp(const at::Tensor& species, const at::Tensor& bar_energy) const;

  struct Uncertainty {
    at::Tensor node_energy_var;  ///< [n_owned, M] eV^2
    at::Tensor cov_aleatoric;    ///< [n_owned, M, 6] (eV/Angstrom)^2
    at::Tensor cov_epistemic;  ///< [n_owned, M, 6] (eV/Angstrom)^2; the evidential head's own part,
                               ///< 0 for other heads
  };
  Uncertainty uncertainty(const at::Tensor& out, const at::Tensor& species) const;

  /// [n_owned] grade: how unlike the training set's an atom's last features are. It is the
  /// Mahalanobis distance of a fixed random projection of them, per element, in units of the
  /// training set's 99.9 % quantile. z is that of the last layer. Only with Metadata::has_grade.
  at::Tensor grade(const at::Tensor& z, const at::Tensor& species) const;

  /// out summed over layers -> float64 [6, 6] eV^2: covariance of the noise of these atoms' virial,
  /// mean over members; 0 without a stress head. It adds up over atoms, and over domains.
  at::Tensor virial_cov(const at::Tensor& out) const;

  /// Whether both are the same loaded model.
  bool is(const Model& other) const { return state_ == other.state_; }

 private:
  struct State;
  explicit Model(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

}  // namespace race
