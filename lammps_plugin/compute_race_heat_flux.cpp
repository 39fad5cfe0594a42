#include "compute_race_heat_flux.h"

#include <algorithm>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "compute_race.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "pair_race.h"
#include "update.h"

using namespace LAMMPS_NS;

ComputeRaceHeatFlux::ComputeRaceHeatFlux(LAMMPS* lmp, int narg, char** arg)
    : Compute(lmp, narg, arg) {
  if (narg > 4 || (narg == 4 && strcmp(arg[3], "members") != 0))
    error->all(FLERR, "compute {} race/heat/flux: expected nothing more, or members, got {}", id,
               arg[3]);
  if (igroup != 0)
    error->all(FLERR, "compute {} race/heat/flux: expected group all, got {}", id, arg[1]);
  members_ = narg == 4;
  vector_flag = 1;
  size_vector = 6;
  extvector = 1;
  vector = new double[size_vector]();
  if (members_) {
    array_flag = 1;
    extarray = 1;
    size_array_cols = 3;
    pair_ = PairRace::need(lmp, fmt::format("compute {} race/heat/flux", id));
    size_array_rows = static_cast<int>(pair_->metadata()->n_members);
    memory->create(array, size_array_rows, 3, "race/heat/flux:array");
  }
  timeflag = 1;
}

ComputeRaceHeatFlux::~ComputeRaceHeatFlux() {
  delete[] vector;
  memory->destroy(array);
}

void ComputeRaceHeatFlux::init() {
  pair_ = PairRace::need(lmp, fmt::format("compute {} race/heat/flux", id));
  if (comm->me == 0 && (pair_ != force->pair || force->bond || force->angle || force->dihedral ||
                        force->improper || force->kspace))
    error->warning(
        FLERR,
        "compute {} race/heat/flux: only pair_style race and the kinetic energy are in it; add what other styles carry",
        id);
  if (members_ && pair_->metadata()->n_members == 1)
    error->all(FLERR,
               "compute {} race/heat/flux members: model {} has one member; expected an ensemble",
               id, pair_->file());
  if (members_ && pair_->metadata()->n_members != size_array_rows)
    error->all(FLERR,
               "compute {} race/heat/flux members: model {} has {} members, the one before had {}; "
               "define the compute again",
               id, pair_->file(), pair_->metadata()->n_members, size_array_rows);
}

// Atoms carry their kinetic energy, whichever member is requested.
void ComputeRaceHeatFlux::evaluate() {
  double mine[3] = {};
  for (int i = 0; i < atom->nlocal; ++i) {
    const double* v = atom->v[i];
    const double mass = atom->rmass ? atom->rmass[i] : atom->mass[atom->type[i]];
    const double kinetic = 0.5 * force->mvv2e * mass * (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    for (int a = 0; a < 3; ++a) mine[a] += kinetic * v[a];
  }
  PairRace::HeatFlux flux;
  pair_->guarded([&] { flux = pair_->heat_flux(members_); });
  double kinetic[3];
  MPI_Allreduce(mine, kinetic, 3, MPI_DOUBLE, MPI_SUM, world);
  for (int a = 0; a < 3; ++a) {
    vector[a] = flux.total[a].item<double>() + kinetic[a];
    vector[3 + a] = flux.convective[a].item<double>() + kinetic[a];
  }
  if (!members_) return;
  for (int m = 0; m < size_array_rows; ++m)
    for (int a = 0; a < 3; ++a) array[m][a] = flux.members[m][a].item<double>() + kinetic[a];
}

void ComputeRaceHeatFlux::compute_vector() {
  if (invoked_vector == update->ntimestep) return;
  invoked_vector = update->ntimestep;
  evaluate();
}

void ComputeRaceHeatFlux::compute_array() {
  invoked_array = update->ntimestep;
  compute_vector();
}
