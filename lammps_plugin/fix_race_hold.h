#pragma once

#include "fix.h"

namespace LAMMPS_NS {

/// The internal fix of `pair_style race` with `uq every N`. It keeps the columns of the last
/// evaluated step with their atoms while LAMMPS sorts these and moves them from rank to rank.
///
/// It follows atoms only during a run: replicate, for one, refuses fixes that do so between runs.
/// Each atom's ID is stored beside its columns: if the ID is another's, the values were never
/// filled for this atom.
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

  /// Makes LAMMPS grow, sort and send the values with their atoms until the end of the run.
  void follow();
  double* hold(int i);              ///< the place for atom i's columns
  const double* held(int i) const;  ///< atom i's columns; nullptr if it has none

 private:
  void unfollow();
  bool follows() const;

  double** values_ = nullptr;  ///< [n_max, 1 + n_columns]: the ID, bit for bit, and the columns
  int n_columns_;
  int n_max_ = 0;
};

}  // namespace LAMMPS_NS
