#include "fix_race_hold.h"

#include <algorithm>

#include "atom.h"
#include "error.h"
#include "memory.h"

using namespace LAMMPS_NS;

FixRaceHold::FixRaceHold(LAMMPS* lmp, int narg, char** arg) : Fix(lmp, narg, arg) {
  if (narg != 4)
    error->all(FLERR, "fix RACE/HOLD belongs to pair_style race; use its keyword uq every N");
  n_columns_ = utils::inumeric(FLERR, arg[3], false, lmp);
  if (n_columns_ < 1)
    error->all(FLERR, "fix RACE/HOLD: expected a number of columns > 0, got {}", n_columns_);
  maxexchange = n_columns_;
  create_attribute = 1;
  grow_arrays(atom->nmax);
  for (int i = 0; i < n_max_; ++i) set_arrays(i);
  atom->add_callback(Atom::GROW);
}

FixRaceHold::~FixRaceHold() {
  atom->delete_callback(id, Atom::GROW);
  memory->destroy(values);
}

void FixRaceHold::grow_arrays(int n_max) {
  n_max_ = n_max;
  memory->grow(values, n_max, n_columns_, "race:hold");
}

void FixRaceHold::copy_arrays(int i, int j, int) { std::copy_n(values[i], n_columns_, values[j]); }
void FixRaceHold::set_arrays(int i) { std::fill_n(values[i], n_columns_, 0.0); }

int FixRaceHold::pack_exchange(int i, double* buffer) {
  std::copy_n(values[i], n_columns_, buffer);
  return n_columns_;
}

int FixRaceHold::unpack_exchange(int i, double* buffer) {
  std::copy_n(buffer, n_columns_, values[i]);
  return n_columns_;
}

double FixRaceHold::memory_usage() {
  return static_cast<double>(n_max_) * n_columns_ * sizeof(double);
}
