#pragma once

#include <stdexcept>
#include <string>

#include "race/error.h"

/// What one unit of the model is in LAMMPS's units.
struct RaceUnits {
  double energy = 1;  ///< 1 eV
  double length = 1;  ///< 1 Angstrom

  double force() const { return energy / length; }
  double force_squared() const { return force() * force(); }
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
