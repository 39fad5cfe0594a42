#pragma once

#include <stdexcept>
#include <string>

#include "race/error.h"
#include "race/quantities.h"

/// The model's units in LAMMPS's units.
struct RaceUnits {
  double energy = 1;  ///< 1 eV
  double length = 1;  ///< 1 Angstrom

  double force() const { return energy / length; }

  /// The same for a model whose energy is multiplied by `factor`.
  RaceUnits scaled(double factor) const { return {energy * factor, length}; }

  /// The unit of a row of the table of quantities. Those of stress are virials: divide by the
  /// volume.
  double of(race::Dimension dimension) const {
    switch (dimension) {
      case race::Dimension::energy:
      case race::Dimension::stress: return energy;
      case race::Dimension::force: return force();
      case race::Dimension::force_squared: return force() * force();
      case race::Dimension::stress_squared: return energy * energy;
      case race::Dimension::nats:
      case race::Dimension::ratio: return 1;
    }
    return 1;
  }
};

/// @param style the argument of LAMMPS's `units` command. @param angstrom Force::angstrom, so that
/// lengths agree with LAMMPS's own.
inline RaceUnits race_units(const std::string& style, double angstrom) {
  constexpr double kcal_per_mol = 23.060547830619;  // CODATA 2018
  constexpr double joule = 1.602176634e-19;
  constexpr double hartree = 1 / 27.211386245988;
  if (style == "metal") return {1, angstrom};
  if (style == "real") return {kcal_per_mol, angstrom};
  if (style == "si") return {joule, angstrom};
  if (style == "electron") return {hartree, angstrom};
  throw race::Error("pair_style race: expected units metal, real, si or electron, got " + style);
}
