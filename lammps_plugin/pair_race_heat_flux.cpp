// pair_style race: the heat flux, in an evaluation of its own.
#include "atom.h"
#include "error.h"
#include "pair_race.h"
#include "update.h"

using namespace LAMMPS_NS;

PairRace::HeatFlux PairRace::heat_flux(bool members) {
  if (!model_ || step_ != update->ntimestep || update->whichflag == 0)
    error->all(
        FLERR,
        "compute race/heat/flux: forces are not current on step {}; use the compute in a run, through thermo, fix or variable",
        update->ntimestep);
  warn_unscaled();
  // Angstrom per LAMMPS's unit of time
  const at::Tensor velocity = at::empty({graph().n_owned, 3}, at::kDouble);
  double* to = velocity.data_ptr<double>();
  for (int64_t row = 0; row < velocity.size(0); ++row)
    for (int a = 0; a < 3; ++a) *to++ = atom->v[atom_of_row()[row]][a] / units_.length;

  HeatFlux flux;
  if (members) {
    const at::Tensor rows = heat_flux_rows(*model_, velocity, true);
    flux.members = rows.slice(0, 0, -1);
    flux.total = flux.members.mean(0);
    flux.convective = rows[-1];
  }
  if (!members || leader_) {
    const at::Tensor rows = heat_flux_rows(leader(), velocity, false);
    flux.total = rows[0];
    flux.convective = rows[1];
  }
  return flux;
}

// Collective: [G + 1, 3] over all ranks, in LAMMPS's units: the flux of the model's mean, or of
// `each` member, and below it the convective part of the mean.
at::Tensor PairRace::heat_flux_rows(const race::Model& model, const at::Tensor& velocity,
                                    bool each) {
  race::Request request;
  request.members = each && model.metadata().n_members > 1;
  request.zbl = core_ ? &*core_ : nullptr;
  request.n_parts = budget_.parts(graph(), request.members, settings_.memory_cap);
  request.velocity = velocity;
  const race::Prediction prediction = race::predict(model, graph(), halo(), request);

  const at::Tensor convective =
      prediction.node_energy.mean(1).unsqueeze(0).matmul(velocity);  // [1, 3]
  const double unit = scaled_units().energy * units_.length;
  const at::Tensor mine = (at::cat({prediction.heat_flux.cpu(), convective}) * unit).contiguous();
  at::Tensor sums = at::empty_like(mine);
  MPI_Allreduce(mine.data_ptr<double>(), sums.data_ptr<double>(), static_cast<int>(mine.numel()),
                MPI_DOUBLE, MPI_SUM, world);
  return sums;
}
