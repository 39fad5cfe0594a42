#pragma once

#include <memory>
#include <string>
#include <vector>

#include "asked_quantities.h"
#include "compute.h"

namespace LAMMPS_NS {

class PairRace;
struct UncertaintyReader;

/// `compute ID group race/atom quantity ...`: columns of per-atom uncertainty.
class ComputeRaceAtom : public Compute {
 public:
  ComputeRaceAtom(LAMMPS*, int, char**);
  ~ComputeRaceAtom() override;
  void init() override;
  void compute_peratom() override;
  double memory_usage() override;

 private:
  void grow();

  std::string where_;  ///< the compute's name in messages
  std::vector<AskedQuantity> asked_;
  int n_columns_ = 0;
  int n_max_ = 0;
  PairRace* pair_ = nullptr;
  std::shared_ptr<UncertaintyReader> reader_;
};

}  // namespace LAMMPS_NS
