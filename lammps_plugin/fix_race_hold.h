#pragma once

#include "fix.h"

namespace LAMMPS_NS {

/// Internal to `pair_style race` with `uq every N`: keeps the columns of the last evaluated step
/// with their atoms while these are sorted, and move from rank to rank. Atoms made since then have
/// zeros.
class FixRaceHold : public Fix {
 public:
  FixRaceHold(LAMMPS*, int, char**);  ///< fix ID all RACE/HOLD n_columns
  ~FixRaceHold() override;
  int setmask() override { return 0; }
  void grow_arrays(int) override;
  void copy_arrays(int, int, int) override;
  void set_arrays(int) override;
  int pack_exchange(int, double*) override;
  int unpack_exchange(int, double*) override;
  double memory_usage() override;

  double** values = nullptr;  ///< [nmax, n_columns]

 private:
  int n_columns_;
  int n_max_ = 0;
};

}  // namespace LAMMPS_NS
