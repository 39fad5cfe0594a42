#pragma once

#include <string>
#include <vector>

#include "compute.h"

namespace LAMMPS_NS {

class PairRace;

/// The race pair style in use; an error that names the `reader` ("compute ID") when there is none,
/// or more than one.
PairRace* find_pair_race(LAMMPS* lmp, const std::string& reader);

/// `compute ID all race keyword ...`: global uncertainties of the structure.
class ComputeRace : public Compute {
 public:
  ComputeRace(LAMMPS*, int, char**);
  ~ComputeRace() override;
  void init() override;
  double compute_scalar() override;
  void compute_vector() override;

 private:
  std::vector<std::string> quantities_;
  PairRace* pair_ = nullptr;
};

}  // namespace LAMMPS_NS
