#pragma once

#include <string>
#include <vector>

#include "compute.h"

namespace LAMMPS_NS {

class PairRace;

/// `compute ID group race/atom keyword ...`: columns of per-atom uncertainty.
class ComputeRaceAtom : public Compute {
 public:
  ComputeRaceAtom(LAMMPS*, int, char**);
  ~ComputeRaceAtom() override;
  void init() override;
  void compute_peratom() override;
  double memory_usage() override;

 private:
  struct Quantity {
    std::string name;
    int columns;
    double probability = 0;  ///< of `interval`
    double half_width = 0;   ///< of `interval`, in standard deviations
  };
  void grow();
  void write(const Quantity& quantity, int i, double* to) const;

  std::vector<Quantity> quantities_;
  int n_columns_ = 0;
  int n_max_ = 0;
  PairRace* pair_ = nullptr;
};

}  // namespace LAMMPS_NS
