#pragma once

#include "fix.h"

namespace LAMMPS_NS {

/// Internal to `pair_style race` with `uq every N`: keeps the columns of the last evaluated step
/// with their atoms while these are sorted, and move from rank to rank.
///
/// It follows atoms during a run alone: replicate, for one, refuses fixes that do so between runs.
/// Beside the columns each atom has its ID: a row whose ID is another was never filled for this
/// atom.
class FixRaceHold : public Fix {
 public:
  FixRaceHold(LAMMPS*, int, char**);  ///< fix ID all RACE/HOLD n_columns
  ~FixRaceHold() override;
  int setmask() override { return 0; }
  void post_run() override { unfollow(); }
  void grow_arrays(int) override;
  void copy_arrays(int, int, int) override;
  void set_arrays(int) override;
  int pack_exchange(int, double*) override;
  int unpack_exchange(int, double*) override;
  double memory_usage() override;

  /// Until the end of the run, LAMMPS grows, sorts and sends the values with their atoms.
  void follow();
  double* hold(int i);              ///< where atom i's columns are to be put
  const double* held(int i) const;  ///< atom i's columns; nullptr: it has none

 private:
  void unfollow();
  bool follows() const;

  double** values_ = nullptr;  ///< [n_max, 1 + n_columns]: the ID, bit for bit, and the columns
  int n_columns_;
  int n_max_ = 0;
};

}  // namespace LAMMPS_NS
