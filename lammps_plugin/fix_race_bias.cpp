#include "fix_race_bias.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "atom.h"
#include "error.h"
#include "pair_race.h"
#include "race/conventions.h"
#include "uncertainty_readers.h"
#include "update.h"

using namespace LAMMPS_NS;

// fix ID all race/bias A B
FixRaceBias::FixRaceBias(LAMMPS* lmp, int narg, char** arg) : Fix(lmp, narg, arg) {
  if (narg < 5) utils::missing_cmd_args(FLERR, "fix race/bias", error);
  if (narg > 5)
    error->all(FLERR, "fix {} race/bias: expected A B and nothing after them, got {}", id, arg[5]);
  if (igroup != 0) error->all(FLERR, "fix {} race/bias: expected group all, got {}", id, arg[1]);
  height_ = utils::numeric(FLERR, arg[3], false, lmp);
  width_ = utils::numeric(FLERR, arg[4], false, lmp);
  if (!std::isfinite(height_))
    error->all(FLERR, "fix {} race/bias: expected a finite energy A, got {}", id, arg[3]);
  if (!(width_ > 0 && std::isfinite(width_)))
    error->all(FLERR, "fix {} race/bias: expected an energy B > 0, got {}", id, arg[4]);
  scalar_flag = vector_flag = 1;
  size_vector = 2;
  extscalar = 1;
  extvector = 0;
  global_freq = 1;
  energy_global_flag = virial_global_flag = 1;
  thermo_virial = 1;  // the bias moves atoms, so its virial is part of the pressure
  reader_ = std::make_shared<UncertaintyReader>();
  reader_->wants = [](bigint) { return true; };
  reader_->insists = true;
}

int FixRaceBias::setmask() { return FixConst::POST_FORCE | FixConst::MIN_POST_FORCE; }

void FixRaceBias::init() {
  pair_ = PairRace::need(lmp, fmt::format("fix {} race/bias", id));
  if (pair_->metadata()->n_members < 2)
    error->all(FLERR, "fix {} race/bias: model {} has one member; expected an ensemble", id,
               pair_->file());
  if (!strncmp(update->integrate_style, "respa", 5))
    error->all(FLERR, "fix {} race/bias: expected run_style verlet, got respa", id);
  pair_->add_reader(reader_);
}

// U = A (exp(-var / (N B^2)) - 1) with var = mean_m (E_m - E)^2 and dU/dE_m = 2/M (E_m - E)
// dU/dvar. Members' forces are given, so F = -dU/dr = sum_m dU/dE_m F_m, and the virial likewise:
// no second derivative is needed.
void FixRaceBias::post_force(int vflag) {
  pair_->guarded([&] { add_bias(vflag); });
}

void FixRaceBias::add_bias(int vflag) {
  pair_->require_uncertainty();
  const PairRace::Members members = pair_->members();
  const double unit = pair_->uncertainty_units().energy;
  const at::Tensor deviation = members.energies - members.energies.mean();  // [M] eV
  const double var = deviation.square().mean().item<double>() * unit * unit;
  const double scale = std::max(members.n_atoms, 1.0) * width_ * width_;
  energy_ = height_ * std::expm1(-var / scale);
  energy_std_ = std::sqrt(var);
  const double by_var = -height_ / scale * std::exp(-var / scale);  // 1 / energy
  const at::Tensor by_energy =
      deviation * (2 * by_var * unit / members.energies.numel());  // [M] dU/dE_m, no unit

  const at::Tensor forces = (members.forces * by_energy.view({1, -1, 1}))
                                .sum(1)
                                .mul_(pair_->uncertainty_units().force())
                                .contiguous();
  const double* row = forces.data_ptr<double>();
  for (int64_t k = 0; k < forces.size(0); ++k, row += 3)
    for (int a = 0; a < 3; ++a) atom->f[pair_->atom_of_row()[k]][a] += row[a];

  v_init(vflag);
  if (!vflag_global) return;
  const at::Tensor nine =
      by_energy.matmul(members.virials).mul_(unit).contiguous();  // [9], this rank's part
  for (int k = 0; k < 6; ++k) virial[k] += nine.data_ptr<double>()[race::six_to_nine[k]];
}

double FixRaceBias::compute_vector(int k) { return k == 0 ? energy_ : energy_std_; }
