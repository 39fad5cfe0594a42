#pragma once

#include <memory>
#include <string>
#include <vector>

#include "asked_quantities.h"
#include "compute.h"

namespace LAMMPS_NS {

class PairRace;
struct UncertaintyReader;

/// `compute ID all race quantity ...`: uncertainties of the whole structure.
class ComputeRace : public Compute {
 public:
  ComputeRace(LAMMPS*, int, char**);
  ~ComputeRace() override;
  void init() override;
  double compute_scalar() override;
  void compute_vector() override;

 private:
  void resize(int n_members);
  double pressure_per_virial() const;

  std::string where_;  ///< the compute's name in messages
  std::vector<AskedQuantity> asked_;
  PairRace* pair_ = nullptr;
  std::shared_ptr<UncertaintyReader> reader_;
};

}  // namespace LAMMPS_NS
