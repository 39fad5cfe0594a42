#include "compute_race.h"

#include "domain.h"
#include "error.h"
#include "force.h"
#include "pair_race.h"
#include "update.h"

using namespace LAMMPS_NS;

PairRace* LAMMPS_NS::find_pair_race(LAMMPS* lmp, const std::string& reader) {
  PairRace* pair = nullptr;
  for (const char* style : {"race", "race/kk", "race/kk/device", "race/kk/host"})
    if (!pair) pair = dynamic_cast<PairRace*>(lmp->force->pair_match(style, 1));
  if (!pair || !pair->metadata())
    lmp->error->all(
        FLERR,
        "{}: expected one pair_style race with a model, got {}; of two in a hybrid style, fix pair reads race:1 and race:2",
        reader, lmp->force->pair_style ? lmp->force->pair_style : "none");
  return pair;
}

ComputeRace::ComputeRace(LAMMPS* lmp, int narg, char** arg) : Compute(lmp, narg, arg) {
  if (narg < 4) utils::missing_cmd_args(FLERR, "compute race", error);
  if (igroup != 0) error->all(FLERR, "compute {} race: expected group all, got {}", id, arg[1]);
  size_vector = 0;
  for (int k = 3; k < narg; ++k) {
    quantities_.emplace_back(arg[k]);
    const std::string& name = quantities_.back();
    if (name != "energy/std" && name != "bald" && name != "max/bald" && name != "max/force/std" &&
        name != "stress/std" && name != "pressure/std")
      error->all(
          FLERR,
          "compute {} race: expected energy/std, bald, max/bald, max/force/std, stress/std or pressure/std, got {}",
          id, name);
    size_vector += name == "stress/std" ? 6 : 1;
  }
  scalar_flag = vector_flag = 1;
  extscalar = extvector = 0;
  timeflag = 1;
  vector = new double[size_vector]();
}

ComputeRace::~ComputeRace() { delete[] vector; }

void ComputeRace::init() {
  pair_ = find_pair_race(lmp, fmt::format("compute {}", id));
  const race::Metadata& metadata = *pair_->metadata();
  const bool ensemble = metadata.n_members > 1;
  for (const std::string& name : quantities_) {
    if (name == "energy/std" && !ensemble && !metadata.has_energy_var())
      error->all(
          FLERR,
          "compute {} race {}: model {} has one member and head {}; expected an ensemble or another head",
          id, name, pair_->file(), metadata.head);
    if (name == "max/force/std" && !ensemble && !metadata.has_force_cov())
      error->all(
          FLERR,
          "compute {} race {}: model {} has one member and head {}; expected an ensemble or head equivariant",
          id, name, pair_->file(), metadata.head);
    if ((name == "bald" || name == "max/bald") &&
        !(metadata.has_force_cov() && (ensemble || metadata.head == "evidential")))
      error->all(
          FLERR,
          "compute {} race {}: model {} has {} member(s) and head {}; expected a head with a force covariance, in an ensemble "
          "or evidential",
          id, name, pair_->file(), metadata.n_members, metadata.head);
    if ((name == "stress/std" || name == "pressure/std") && !ensemble && !metadata.has_stress_cov())
      error->all(FLERR,
                 "compute {} race {}: model {} has one member and no stress_head; expected either",
                 id, name, pair_->file());
  }
}

double ComputeRace::compute_scalar() {
  compute_vector();
  invoked_scalar = update->ntimestep;
  return scalar = vector[0];
}

void ComputeRace::compute_vector() {
  if (invoked_vector == update->ntimestep) return;
  invoked_vector = update->ntimestep;
  PairRace::Totals totals;
  pair_->guarded([&] { totals = pair_->totals(); });
  const double per_volume = force->nktv2p / (domain->xprd * domain->yprd * domain->zprd);
  double* next = vector;
  for (const std::string& name : quantities_) {
    if (name == "energy/std") *next++ = totals.energy_std;
    if (name == "bald") *next++ = totals.mean_bald;
    if (name == "max/bald") *next++ = totals.max_bald;
    if (name == "max/force/std") *next++ = totals.max_force_std;
    if (name == "pressure/std") *next++ = totals.trace_std * per_volume;
    if (name == "stress/std")
      for (const double virial : totals.virial_std) *next++ = virial * per_volume;
  }
}
