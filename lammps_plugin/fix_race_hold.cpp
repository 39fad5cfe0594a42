#include "fix_race_hold.h"

#include <algorithm>

#include "atom.h"
#include "error.h"
#include "memory.h"
#include "modify.h"

using namespace LAMMPS_NS;

FixRaceHold::FixRaceHold(LAMMPS* lmp, int narg, char** arg) : Fix(lmp, narg, arg) {
  if (narg != 4)
    error->all(FLERR, "fix RACE/HOLD belongs to pair_style race; use its keyword uq every N");
  n_columns_ = utils::inumeric(FLERR, arg[3], false, lmp);
  if (n_columns_ < 1)
    error->all(FLERR, "fix RACE/HOLD: expected a number of columns > 0, got {}", n_columns_);
  maxexchange = 1 + n_columns_;
  create_attribute = !atom->tag_enable;  // without IDs no value tells whose it is
  grow_arrays(atom->nmax);
  atom->add_callback(Atom::GROW);
}

FixRaceHold::~FixRaceHold() {
  unfollow();
  memory->destroy(values_);
}

// Does Atom::add_callback()'s work for a fix under construction.
void FixRaceHold::follow() {
  if (atom->nmax > n_max_) grow_arrays(atom->nmax);
  if (follows()) return;
  if (atom->nextra_grow == atom->nextra_grow_max)
    memory->grow(atom->extra_grow, ++atom->nextra_grow_max, "atom:extra_grow");
  atom->extra_grow[atom->nextra_grow++] = modify->find_fix(id);
  std::sort(atom->extra_grow, atom->extra_grow + atom->nextra_grow);
}

void FixRaceHold::unfollow() {
  if (follows()) atom->delete_callback(id, Atom::GROW);
}

// Other commands may put another Atom there, which has none of this fix's callbacks.
bool FixRaceHold::follows() const {
  const int here = modify->find_fix(id);
  int* end = atom->extra_grow + atom->nextra_grow;
  return here >= 0 && std::find(atom->extra_grow, end, here) != end;
}

void FixRaceHold::grow_arrays(int n_max) {
  memory->grow(values_, n_max, 1 + n_columns_, "race:hold");
  const int first = n_max_;
  n_max_ = n_max;
  for (int i = first; i < n_max; ++i) set_arrays(i);
}

void FixRaceHold::copy_arrays(int i, int j, int) {
  std::copy_n(values_[i], 1 + n_columns_, values_[j]);
}

void FixRaceHold::set_arrays(int i) {
  values_[i][0] = ubuf(static_cast<tagint>(-1)).d;
  std::fill_n(values_[i] + 1, n_columns_, 0.0);
}

double* FixRaceHold::hold(int i) {
  values_[i][0] = ubuf(atom->tag_enable ? atom->tag[i] : 0).d;
  return values_[i] + 1;
}

const double* FixRaceHold::held(int i) const {
  if (i >= n_max_) return nullptr;
  const auto tag = static_cast<tagint>(ubuf(values_[i][0]).i);
  return tag == (atom->tag_enable ? atom->tag[i] : 0) ? values_[i] + 1 : nullptr;
}

int FixRaceHold::pack_exchange(int i, double* buffer) {
  std::copy_n(values_[i], 1 + n_columns_, buffer);
  return 1 + n_columns_;
}

int FixRaceHold::unpack_exchange(int i, double* buffer) {
  std::copy_n(buffer, 1 + n_columns_, values_[i]);
  return 1 + n_columns_;
}

double FixRaceHold::memory_usage() {
  return static_cast<double>(n_max_) * (1 + n_columns_) * sizeof(double);
}
