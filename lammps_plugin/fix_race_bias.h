#pragma once

#include <memory>

#include "fix.h"

namespace LAMMPS_NS {

class PairRace;
struct UncertaintyReader;

/// `fix ID all race/bias A B`: a bias energy, a function of the ensemble's energy variance, with
/// its exact forces and virial.
class FixRaceBias : public Fix {
 public:
  FixRaceBias(LAMMPS*, int, char**);
  int setmask() override;
  void init() override;
  void setup(int vflag) override { post_force(vflag); }
  void min_setup(int vflag) override { post_force(vflag); }
  void post_force(int) override;
  void min_post_force(int vflag) override { post_force(vflag); }
  double compute_scalar() override { return energy_; }
  double compute_vector(int) override;

 private:
  void add_bias(int vflag);

  double height_, width_;  ///< energy units
  double energy_ = 0;      ///< bias energy
  double energy_std_ = 0;  ///< standard deviation of the ensemble's energy
  PairRace* pair_ = nullptr;
  std::shared_ptr<UncertaintyReader> reader_;
};

}  // namespace LAMMPS_NS
