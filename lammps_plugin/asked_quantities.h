#pragma once

#include <string>
#include <vector>

#include "race/quantities.h"

namespace LAMMPS_NS {

class LAMMPS;
class PairRace;

/// A requested quantity of a compute: a row of the table, and the probability of an interval.
struct AskedQuantity {
  const race::Quantity* quantity;
  double probability = 0;  ///< probability of an interval
  double factor = 1;       ///< factor on the row's values, for an interval, once the model is known
};

/// Reads the arguments `quantity [P] quantity ...`. A mistake stops every rank with one error.
/// @param where "compute ID race", for messages.
std::vector<AskedQuantity> read_quantities(LAMMPS* lmp, const std::string& where, bool per_atom,
                                           int narg, char** arg);

/// Stops if the model cannot give one of them, and looks up the factors of intervals.
void resolve_quantities(LAMMPS* lmp, const std::string& where, const PairRace& pair,
                        std::vector<AskedQuantity>& asked);

}  // namespace LAMMPS_NS
