#pragma once

#include <span>
#include <string>
#include <string_view>

#include "race/artifact.h"
#include "race/moments.h"

namespace race {

/// One table of what a prediction says of its own error. Both computes of LAMMPS, extract_peratom,
/// `uq every`, the ASE calculator, the names by which dumps are read back and the reference tables
/// are drawn from it: a new column is a row here, and a line in each README.

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

/// What a model may have: bits.
enum Capability : unsigned {
  ensemble = 1,          ///< more than one member
  energy_variance = 2,   ///< a head that says how noisy an energy is
  force_covariance = 4,  ///< a head that says how noisy a force is
  evidential = 8,        ///< a head with an epistemic part of its own
  stress_noise = 16,     ///< a stress_head
  extensive = 32,        ///< an atom's part of the energy variance is its own
  graded = 64,           ///< an export that knew the training set
};
unsigned capabilities(const Metadata& metadata);

struct Quantity {
  std::string_view name = {};      ///< in computes
  std::string_view symbol = {};    ///< in extract_peratom; empty: not there
  std::string_view property = {};  ///< of the ASE calculator; empty: not there
  int n_columns = 1;               ///< 0: one per member
  Dimension dimension = Dimension::nats;
  unsigned needs[2] = {};  ///< of each that is not 0, the model must have one capability
  std::string_view interval_of =
      {};                         ///< a target of Metadata::interval_factor(): the values are those
                                  ///< of a standard deviation, times that factor. Empty: none
  std::string_view meaning = {};  ///< of the reference pages

  // The values in model units. Of each pair, one: per atom [n] or [n, n_columns], or of the whole
  // structure [n_columns]. Neither: too large for LAMMPS, the calculator's alone.
  at::Tensor (*of_atoms)(const AtomMoments&) = nullptr;
  at::Tensor (*of_frame)(const FrameMoments&) = nullptr;
  bool per_atom = false;

  int columns(const Metadata& metadata) const {
    return n_columns ? n_columns : static_cast<int>(metadata.n_members);
  }
};

std::span<const Quantity> quantities();

/// By its name in compute race/atom (`per_atom`) or compute race; nullptr: there is none.
const Quantity* find_quantity(std::string_view name, bool per_atom);

/// The names for error messages: "force/std, force/cov or interval P".
std::string quantity_names(bool per_atom);

/// Why a model cannot give a quantity, in one line that says what it has and what was expected;
/// empty where it can.
std::string missing(const Metadata& metadata, const Quantity& quantity);
inline bool available(const Metadata& metadata, const Quantity& quantity) {
  return missing(metadata, quantity).empty();
}

}  // namespace race
