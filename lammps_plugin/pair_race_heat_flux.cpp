// pair_style race: the heat flux, in an evaluation of its own.
#include <cstring>

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
  // The model that moves the atoms; members are those of the ensemble.
  const race::Model& model = members ? *model_ : leader();
  const race::Graph& rows = graph();
  race::Request request;
  request.members = members && model.metadata().n_members > 1;
  request.zbl = core_ ? &*core_ : nullptr;
  request.n_parts = budget_.parts(rows, request.members, settings_.memory_cap);
  // Angstrom per LAMMPS's unit of time
  request.velocity = at::empty({rows.n_owned, 3}, at::kDouble);
  double* to = request.velocity.data_ptr<double>();
  for (int64_t row = 0; row < rows.n_owned; ++row)
    for (int a = 0; a < 3; ++a) *to++ = atom->v[local().atom_of_row()[row]][a] / units_.length;
  const race::Prediction prediction = race::predict(model, rows, halo(), request);

  const int64_t G = prediction.heat_flux.size(0);
  const at::Tensor convective =
      prediction.node_energy.mean(1).unsqueeze(0).matmul(request.velocity);  // [1, 3]
  const at::Tensor mine =
      (at::cat({prediction.heat_flux.cpu(), convective}) * (units_.energy * units_.length))
          .contiguous();
  at::Tensor sums = at::empty_like(mine);
  MPI_Allreduce(mine.data_ptr<double>(), sums.data_ptr<double>(), static_cast<int>(mine.numel()),
                MPI_DOUBLE, MPI_SUM, world);
  HeatFlux flux{sums.slice(0, 0, G), {}};
  std::memcpy(flux.convective, sums.data_ptr<double>() + 3 * G, sizeof flux.convective);
  return flux;
}
