#pragma once

#include <string>
#include <vector>

#include "race/quantities.h"

namespace LAMMPS_NS {

class LAMMPS;
class PairRace;

/// What a compute was asked for: rows of the table, those of intervals with their probability.
struct AskedQuantity {
  const race::Quantity* quantity;
  double probability = 0;  ///< of an interval
  double factor = 1;       ///< on the row's values: of an interval, once the model is known
};

/// Reads the arguments `quantity [P] quantity ...`. On a mistake every rank stops with one error.
/// @param where "compute ID race", for messages.
std::vector<AskedQuantity> read_quantities(LAMMPS* lmp, const std::string& where, bool per_atom,
                                           int narg, char** arg);

/// Stops where the model cannot give one of them, and looks up the factors of intervals.
void resolve_quantities(LAMMPS* lmp, const std::string& where, const PairRace& pair,
                        std::vector<AskedQuantity>& asked);

}  // namespace LAMMPS_NS
