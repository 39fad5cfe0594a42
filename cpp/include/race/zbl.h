#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "race/artifact.h"
#include "race/graph.h"

namespace race {

struct Prediction;

/// The screened repulsion of two nuclei, added to a model's energy at distances shorter than any in
/// its training set:
///
///     E = sum_pairs s(r) Z_i Z_j e^2 / r phi(r / a),   a = 0.4685 A / (Z_i^0.23 + Z_j^0.23)
///     phi(x) = 0.18175 exp(-3.1998 x) + 0.50986 exp(-0.94229 x) + 0.28022 exp(-0.4029 x) + 0.02817
///     exp(-0.20162 x)
///
/// (Ziegler, Biersack, Littmark: The Stopping and Range of Ions in Matter, 1985; e^2 = 14.399645 eV
/// A). The switch s has two continuous derivatives. It is 0 from the two elements' shortest
/// distance in the training set on, and 1 below `full` times that distance. A pair of elements that
/// the training set does not have within its cutoff has no core.
///
/// Every member has the same core: energies, forces and virials change, covariances do not.
class Zbl {
 public:
  static constexpr double full = 0.7;

  /// `name` is the file, for messages.
  /// @throws Error if the model does not know the shortest distances of its training set, or if a
  /// symbol is no element.
  Zbl(const Metadata& metadata, const std::string& name);

  /// False for a pair of elements, by index of the model, that has no core.
  bool has(int64_t a, int64_t b) const { return pairs_[a * n_ + b].outer > 0; }

  /// Adds the core to energies of atoms (half of a pair to each), forces, virials and, if defined,
  /// atom virials. `graph` is the graph of `prediction`: it holds each pair as two edges, in the
  /// domains of their receivers. With velocity [n_total, 3] (Request::velocity) it also adds to
  /// heat_flux; to_sender is that of Receivers.
  void add(const Graph& graph, Prediction& prediction, const at::Tensor& velocity,
           double to_sender) const;

 private:
  struct Pair {
    double outer = 0, charges = 0, length = 0;  ///< Angstrom, where the switch is 0 (0: no core);
                                                ///< Z_i Z_j e^2, eV Angstrom; a, Angstrom
    /// Energy in eV and its derivative by r in eV/Angstrom.
    double operator()(double r, double& derivative) const;
  };

  int64_t n_;                ///< elements
  std::vector<Pair> pairs_;  ///< [n, n]
  double reach_ = 0;         ///< the largest `outer`
};

}  // namespace race
