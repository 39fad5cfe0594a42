#include "compute_race_atom.h"

#include <algorithm>
#include <cmath>

#include "atom.h"
#include "compute_race.h"
#include "error.h"
#include "memory.h"
#include "pair_race.h"
#include "race/error.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace {

int columns_of(const std::string& name) {
  if (name == "force/std" || name == "energy/std" || name == "bald") return 1;
  if (name == "force/cov" || name == "force/aleatoric" || name == "force/epistemic") return 6;
  return name == "interval" ? 3 : 0;
}

}  // namespace

ComputeRaceAtom::ComputeRaceAtom(LAMMPS* lmp, int narg, char** arg) : Compute(lmp, narg, arg) {
  if (narg < 4) utils::missing_cmd_args(FLERR, "compute race/atom", error);
  for (int k = 3; k < narg; ++k) {
    Quantity quantity{arg[k], columns_of(arg[k])};
    if (quantity.columns == 0)
      error->all(
          FLERR,
          "compute {} race/atom: expected force/std, force/cov, force/aleatoric, force/epistemic, energy/std, bald or interval P, "
          "got {}",
          id, quantity.name);
    if (quantity.name == "interval") {
      if (++k >= narg) utils::missing_cmd_args(FLERR, "compute race/atom interval", error);
      quantity.probability = utils::numeric(FLERR, arg[k], false, lmp);
      if (!(quantity.probability > 0 && quantity.probability < 1))
        error->all(FLERR,
                   "compute {} race/atom interval: expected a probability between 0 and 1, got {}",
                   id, arg[k]);
    }
    n_columns_ += quantity.columns;
    quantities_.push_back(quantity);
  }
  peratom_flag = 1;
  size_peratom_cols = n_columns_ == 1 ? 0 : n_columns_;
  timeflag = 1;
}

ComputeRaceAtom::~ComputeRaceAtom() {
  memory->destroy(vector_atom);
  memory->destroy(array_atom);
}

void ComputeRaceAtom::init() {
  pair_ = find_pair_race(lmp, fmt::format("compute {}", id));
  const race::Metadata& metadata = *pair_->metadata();
  const bool ensemble = metadata.n_members > 1;
  const auto refuse = [&](const Quantity& quantity, const char* expected) {
    error->all(FLERR, "compute {} race/atom {}: model {} has {} member(s) and head {}; expected {}",
               id, quantity.name, pair_->file(), metadata.n_members, metadata.head, expected);
  };
  for (Quantity& quantity : quantities_) {
    const std::string& name = quantity.name;
    if (name == "energy/std" && !ensemble && !metadata.has_energy_var())
      refuse(quantity, "an ensemble or another head");
    if (name == "energy/std" && metadata.has_energy_var() && metadata.energy_aggregation == "paper")
      refuse(
          quantity,
          "energy_aggregation extensive, without which atoms have no energy variance of their own");
    if (name == "force/aleatoric" && !metadata.has_force_cov())
      refuse(quantity, "a head with a force covariance");
    if (name == "force/epistemic" && !ensemble && metadata.head != "evidential")
      refuse(quantity, "an ensemble or head evidential");
    if (name == "bald" &&
        !(metadata.has_force_cov() && (ensemble || metadata.head == "evidential")))
      refuse(quantity, "a head with a force covariance, in an ensemble or evidential");
    if ((name == "force/std" || name == "force/cov" || name == "interval") && !ensemble &&
        !metadata.has_force_cov())
      refuse(quantity, "an ensemble or a head with a force covariance");
    if (name == "interval") {
      try {
        quantity.half_width = metadata.interval_factor("forces", quantity.probability);
      } catch (const race::Error& wrong) {
        error->all(FLERR, "compute {} race/atom interval: model {}: {}", id, pair_->file(),
                   wrong.what());
      }
    }
  }
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
    if (!(atom->mask[i] & groupbit)) {
      std::fill_n(to, n_columns_, 0.0);
      continue;
    }
    for (const Quantity& quantity : quantities_) {
      write(quantity, i, to);
      to += quantity.columns;
    }
  }
}

void ComputeRaceAtom::write(const Quantity& quantity, int i, double* to) const {
  const std::string& name = quantity.name;
  if (name == "energy/std") *to = pair_->e_std.vector[i];
  if (name == "force/std") *to = pair_->f_std.vector[i];
  if (name == "bald") *to = pair_->bald.vector[i];
  if (name == "force/cov") std::copy_n(pair_->f_cov.array[i], 6, to);
  if (name == "force/aleatoric") std::copy_n(pair_->f_aleatoric.array[i], 6, to);
  if (name == "force/epistemic") std::copy_n(pair_->f_epistemic.array[i], 6, to);
  if (name == "interval")
    for (int a = 0; a < 3; ++a) to[a] = quantity.half_width * std::sqrt(pair_->f_cov.array[i][a]);
}

double ComputeRaceAtom::memory_usage() {
  return static_cast<double>(n_max_) * n_columns_ * sizeof(double);
}
