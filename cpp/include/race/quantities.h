#pragma once

#include <span>
#include <string>
#include <string_view>

#include "race/artifact.h"
#include "race/moments.h"

namespace race {

/// The table of uncertainty quantities. The computes of LAMMPS, extract_peratom, `uq every`, the
/// ASE calculator, the names of dumped columns and the reference tables are drawn from it. A new
/// quantity is a row here and a line in each README.

enum class Dimension {
  energy,
  force,
  force_squared,
  stress,  ///< formulas give a virial in eV: the caller divides by the volume
  stress_squared,
  nats,
  ratio  ///< a number without unit
};
const char* name_of(Dimension dimension);  ///< "energy", "force", "force^2", ...

/// Capabilities of a model, as bits.
enum Capability : unsigned {
  ensemble = 1,          ///< more than one member
  energy_variance = 2,   ///< a head with an energy variance
  force_covariance = 4,  ///< a head with a force covariance
  evidential = 8,        ///< a head with its own epistemic part: Metadata::has_own_epistemic
  stress_noise = 16,     ///< a stress_head
  extensive = 32,        ///< atoms' energy variances sum to the structure's
  graded = 64,           ///< the export had the training set
};
unsigned capabilities(const Metadata& metadata);

struct Quantity {
  std::string_view name = {};      ///< name in computes
  std::string_view symbol = {};    ///< symbol in extract_peratom; empty: not there
  std::string_view property = {};  ///< property of the ASE calculator; empty: not there
  int n_columns = 1;               ///< 0: one per member
  Dimension dimension = Dimension::nats;
  unsigned needs[2] = {};             ///< the model must have a capability of each that is not 0
  std::string_view interval_of = {};  ///< target of Metadata::interval_factor(): the values are a
                                      ///< standard deviation times that factor. Empty: none
  std::string_view meaning = {};      ///< description in the reference pages

  // The values in model units. At most one of the two functions is set: per atom [n] or [n,
  // n_columns], or of the whole structure [n_columns]. A quantity without is too large for LAMMPS:
  // only the calculator gives it.
  at::Tensor (*of_atoms)(const AtomMoments&) = nullptr;
  at::Tensor (*of_frame)(const FrameMoments&) = nullptr;
  bool per_atom = false;

  int columns(const Metadata& metadata) const {
    return n_columns ? n_columns : static_cast<int>(metadata.n_members);
  }
};

std::span<const Quantity> quantities();

/// Finds a quantity by its name in compute race/atom (`per_atom`) or compute race; nullptr if there
/// is none.
const Quantity* find_quantity(std::string_view name, bool per_atom);

/// The names for error messages: "force/std, force/cov or interval P".
std::string quantity_names(bool per_atom);

/// The reason why a model cannot give a quantity, in one line with what it has and what is
/// expected; empty if it can.
std::string missing(const Metadata& metadata, const Quantity& quantity);
inline bool available(const Metadata& metadata, const Quantity& quantity) {
  return missing(metadata, quantity).empty();
}

}  // namespace race
