#include "compute_race_atom.h"

#include <algorithm>

#include "atom.h"
#include "error.h"
#include "memory.h"
#include "pair_race.h"
#include "uncertainty_readers.h"
#include "update.h"

using namespace LAMMPS_NS;

ComputeRaceAtom::ComputeRaceAtom(LAMMPS* lmp, int narg, char** arg)
    : Compute(lmp, narg, arg), where_(fmt::format("compute {} race/atom", arg[0])) {
  if (narg < 4) utils::missing_cmd_args(FLERR, "compute race/atom", error);
  asked_ = read_quantities(lmp, where_, /*per_atom=*/true, narg - 3, arg + 3);
  for (const AskedQuantity& each : asked_) n_columns_ += each.quantity->n_columns;
  peratom_flag = 1;
  size_peratom_cols = n_columns_ == 1 ? 0 : n_columns_;
  timeflag = 1;
  reader_ = std::make_shared<UncertaintyReader>();
  reader_->wants = [this](bigint step) { return matchstep(step) != 0; };
}

ComputeRaceAtom::~ComputeRaceAtom() {
  memory->destroy(vector_atom);
  memory->destroy(array_atom);
}

void ComputeRaceAtom::init() {
  pair_ = PairRace::need(lmp, where_);
  resolve_quantities(lmp, where_, *pair_, asked_);
  pair_->add_reader(reader_);
}

void ComputeRaceAtom::grow() {
  if (atom->nmax <= n_max_) return;
  n_max_ = atom->nmax;
  if (n_columns_ == 1) {
    memory->grow(vector_atom, n_max_, "race/atom:vector");
  } else {
    memory->grow(array_atom, n_max_, n_columns_, "race/atom:array");
  }
}

void ComputeRaceAtom::compute_peratom() {
  invoked_peratom = update->ntimestep;
  pair_->require_uncertainty();
  pair_->guarded([&] { grow(); });
  for (int i = 0; i < atom->nlocal; ++i) {
    double* to = n_columns_ == 1 ? vector_atom + i : array_atom[i];
    const bool in_group = atom->mask[i] & groupbit;
    for (const AskedQuantity& each : asked_) {
      const double* from = pair_->columns().of(*each.quantity, i);
      for (int k = 0; k < each.quantity->n_columns; ++k)
        *to++ = in_group ? each.factor * from[k] : 0.0;
    }
  }
}

double ComputeRaceAtom::memory_usage() {
  return static_cast<double>(n_max_) * n_columns_ * sizeof(double);
}
