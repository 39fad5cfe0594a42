#pragma once

#include "compute.h"

namespace LAMMPS_NS {

class PairRace;

/// `compute ID group race/heat/flux [members]`: the heat flux times the volume.
class ComputeRaceHeatFlux : public Compute {
 public:
  ComputeRaceHeatFlux(LAMMPS*, int, char**);
  ~ComputeRaceHeatFlux() override;
  void init() override;
  void compute_vector() override;
  void compute_array() override;

 private:
  void evaluate();

  bool members_ = false;
  PairRace* pair_ = nullptr;
};

}  // namespace LAMMPS_NS
