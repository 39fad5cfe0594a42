#include "pair_race.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

#include "atom.h"
#include "comm.h"
#include "compute.h"
#include "error.h"
#include "fix_race_bias.h"
#include "fix_race_guard.h"
#include "fix_race_hold.h"
#include "force.h"
#include "load_model.h"
#include "memory.h"
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "race/conventions.h"
#include "race/error.h"
#include "update.h"

using namespace LAMMPS_NS;

PairRace::PairRace(LAMMPS* lmp) : Pair(lmp), halo_(comm, *this, local_.row_of_atom(), exchanged_) {
  single_enable = 0;
  restartinfo = 1;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;  // the virial is summed over edges, right for any box
  centroidstressflag = CENTROID_AVAIL;
}

PairRace::~PairRace() {
  if (hold_ && modify->get_fix_by_id(hold_id_)) modify->delete_fix(hold_id_);
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
  for (PerAtom* quantity : {&e_std, &f_std, &bald, &f_cov, &f_aleatoric, &f_epistemic}) {
    memory->destroy(quantity->vector);
    memory->destroy(quantity->array);
  }
}

// The inner exceptions are torch's and librace's. After an abort on one rank mpirun ends, with or
// without having passed on that rank's line.
void PairRace::guarded(const std::function<void()>& work) {
  try {
    try {
      work();
    } catch (const LAMMPSException&) {
      throw;
    } catch (const std::exception& exception) {
      error->one(FLERR, is_out_of_memory(exception) ? out_of_memory(one_line(exception))
                                                    : one_line(exception));
    }
  } catch (const LAMMPSAbortException&) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    throw;
  }
}

void PairRace::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  step_ = update->ntimestep;
  uncertainty_step_ = -1;
  const bool uncertainty = uncertainty_wanted();
  guarded([&] {
    const race::Prediction prediction = predict(uncertainty, vflag_atom || cvflag_atom);
    add_forces(prediction.forces);
    tally(prediction);
    if (uncertainty) {
      store_uncertainty(prediction);
    } else if (hold_) {
      recall();
    }
  });
}

race::Prediction PairRace::predict(bool uncertainty, bool atom_virial) {
  const std::vector<int> species = present_species();
  build_graph(
      {species.data(), model_->metadata().r_max * units_.length, units_.length, excluded_groups()});
  race::Request request;
  request.uncertainty = uncertainty;
  request.members = uncertainty && model_->metadata().n_members > 1;
  request.atom_virial = atom_virial;
  request.on_device = on_device();
  request.zbl = core_ ? &*core_ : nullptr;
  if (!memory_) estimate_memory();
  request.n_parts = parts(request);
  const at::Tensor owner =
      comm->nprocs == 1 && model_->device().is_cuda() ? owner_rows() : at::Tensor();
  std::optional<race::PeriodicFoldHalo> images;
  if (owner.defined()) images.emplace(owner);
  race::HaloExchange& exchange = images ? static_cast<race::HaloExchange&>(*images) : halo();
  race::Prediction prediction = race::predict(*model_, graph(), exchange, request);
  if (force->newton_pair) return prediction;  // LAMMPS takes home what stands on ghosts
  prediction.forces = completed(prediction.forces);
  if (atom_virial) prediction.atom_virial = completed(prediction.atom_virial);
  return prediction;
}

// Collective: [n_total, ...] -> [n_owned, ...], each row with what its ghosts hold, on other ranks
// too. The argument stays as it is.
at::Tensor PairRace::completed(const at::Tensor& rows) {
  at::Tensor columns = rows.flatten(1).clone();
  halo().reverse(columns);
  return columns.view(rows.sizes()).slice(0, 0, graph().n_owned);
}

// Groups that `neigh_modify exclude GROUP all` cuts from everything: their atoms are not there, nor
// are the energies they would have alone. So fix gcmc sees the energy that an atom's deletion
// leaves.
int PairRace::excluded_groups() const {
  int bits = 0;
  for (int k = 0; k < neighbor->nex_group; ++k) {
    if (neighbor->ex2_group[k] == 0) bits |= neighbor->ex1_bit[k];
    if (neighbor->ex1_group[k] == 0) bits |= neighbor->ex2_bit[k];
  }
  return bits;
}

// Likewise types that `neigh_modify exclude type` cuts from every type.
std::vector<int> PairRace::present_species() const {
  std::vector<int> species = species_;
  for (int type = 1; type <= atom->ntypes && neighbor->nex_type > 0; ++type) {
    int n_cut = 0;
    for (int other = 1; other <= atom->ntypes; ++other)
      n_cut += neighbor->ex_type[type][other] != 0;
    if (n_cut == atom->ntypes) species[type] = -1;
  }
  return species;
}

// On one rank a ghost is the image of an owned atom: features of ghosts need not leave the GPU.
// Each atom tells its images its row. Undefined if some ghost's atom is not among the rows (a
// hybrid style's list without it).
at::Tensor PairRace::owner_rows() {
  const int64_t n_owned = graph().n_owned, n_total = graph().n_total;
  at::Tensor rows = at::arange(1, n_total + 1, at::kDouble).unsqueeze(1);
  halo().forward(rows);  // 0 from atoms without a row
  const at::Tensor owner = rows.narrow(0, n_owned, n_total - n_owned).squeeze(1).to(at::kLong) - 1;
  return owner.numel() > 0 && owner.min().item<int64_t>() < 0 ? at::Tensor() : owner;
}

// Of owned rows, and with newton on of ghost rows too: LAMMPS's reverse communication of forces
// takes these home.
void PairRace::add_forces(const at::Tensor& forces) {
  const at::Tensor mean = forces.mean(1).mul_(units_.force());
  const double* component = mean.data_ptr<double>();
  for (int64_t row = 0; row < mean.size(0); ++row) {
    double* f = atom->f[local_.atom_of_row()[row]];
    for (int a = 0; a < 3; ++a) f[a] += *component++;
  }
}

void PairRace::tally(const race::Prediction& prediction) {
  const at::Tensor node_energy = prediction.node_energy.mean(1).mul_(units_.energy);
  const double energy = node_energy.sum().item<double>();
  finite_ = std::isfinite(energy);
  if (!finite_ && !FixRaceGuard::watches(*modify, update->ntimestep))
    throw race::Error(
        "pair_style race: the energy of model " + file_ + " is not finite at step " +
        std::to_string(update->ntimestep) +
        "; expected a structure near the training set; check the positions and the time step");
  if (eflag_global) eng_vdwl += energy;
  if (eflag_atom)
    for (int64_t row = 0; row < node_energy.size(0); ++row)
      eatom[local().atom_of_row()[row]] += node_energy.data_ptr<double>()[row];

  if (vflag_global) {
    const at::Tensor mean = prediction.virial.mean(0).mul_(units_.energy);
    for (int k = 0; k < 6; ++k) virial[k] += mean.data_ptr<double>()[race::six_to_nine[k]];
  }
  if (vflag_atom || cvflag_atom) {
    constexpr int centroid_to_nine[9] = {0, 4, 8, 1, 2, 5, 3, 6, 7};  // xx yy zz xy xz yz yx zx zy
    const at::Tensor scaled = prediction.atom_virial.cpu() * units_.energy;
    const double* w = scaled.data_ptr<double>();
    for (int64_t row = 0; row < scaled.size(0); ++row, w += 9) {
      const int i = local().atom_of_row()[row];
      if (vflag_atom)
        for (int k = 0; k < 6; ++k)
          vatom[i][k] += 0.5 * (w[3 * race::six_rows[k] + race::six_columns[k]] +
                                w[3 * race::six_columns[k] + race::six_rows[k]]);
      if (cvflag_atom)
        for (int k = 0; k < 9; ++k) cvatom[i][k] += w[centroid_to_nine[k]];
    }
  }
}

// A race compute, `uq every`, or fix pair. Computes announce their steps to LAMMPS
// (Compute::addstep), so every rank agrees.
bool PairRace::uncertainty_wanted() const {
  if (uq_flag_ || FixRaceBias::present(*modify)) return true;
  if (uq_every_ > 0)
    return update->ntimestep % uq_every_ == 0 || update->ntimestep == update->firststep;
  if (FixRaceGuard::wants_uncertainty(*modify, update->ntimestep)) return true;
  for (Compute* compute : modify->get_compute_list())
    if ((!strcmp(compute->style, "race") || !strcmp(compute->style, "race/atom")) &&
        compute->matchstep(update->ntimestep))
      return true;
  return false;
}

void PairRace::require_uncertainty() {
  if (uncertainty_step_ == update->ntimestep) return;
  if (!model_ || step_ != update->ntimestep || update->whichflag == 0)
    error->all(
        FLERR,
        "compute race: uncertainties are not current on step {}; use the compute in a run, through thermo, dump, fix or variable",
        update->ntimestep);
  guarded([&] { store_uncertainty(predict(true, false)); });
}

void PairRace::store_uncertainty(const race::Prediction& prediction) {
  // A member's force on an atom is complete only after reverse communication: columns first, then
  // the covariance.
  const bool complete =
      !force->newton_pair || prediction.forces.size(1) == 1;  // one group has no covariance to form
  member_forces_ =
      (complete ? prediction.forces.slice(0, 0, graph().n_owned) : completed(prediction.forces))
          .cpu();
  const AtomUncertainty atoms = atom_uncertainty(prediction, member_forces_);
  store(e_std, atoms.energy_std, units_.energy);
  store(f_std, atoms.force_std, units_.force());
  store(bald, atoms.bald, 1.0);
  store(f_cov, atoms.cov, units_.force_squared());
  store(f_aleatoric, atoms.cov_aleatoric, units_.force_squared());
  store(f_epistemic, atoms.cov_epistemic, units_.force_squared());
  rank_totals_ = rank_totals(prediction, atoms);
  uncertainty_step_ = update->ntimestep;
  if (hold_) keep();
}

// Columns go with their atoms in the fix, and are this step's again in recall().
void PairRace::keep() {
  for (int i = 0; i < atom->nlocal; ++i) {
    double* to = hold_->values[i];
    for (const PerAtom* quantity : {&e_std, &f_std, &bald}) *to++ = quantity->vector[i];
    for (const PerAtom* quantity : {&f_cov, &f_aleatoric, &f_epistemic})
      to = std::copy_n(quantity->array[i], 6, to);
  }
}

void PairRace::recall() {
  for (PerAtom* quantity : {&e_std, &f_std, &bald})
    memory->grow(quantity->vector, atom->nmax, "pair:race");
  for (PerAtom* quantity : {&f_cov, &f_aleatoric, &f_epistemic})
    memory->grow(quantity->array, atom->nmax, 6, "pair:race");
  for (int i = 0; i < atom->nlocal; ++i) {
    const double* from = hold_->values[i];
    for (PerAtom* quantity : {&e_std, &f_std, &bald}) quantity->vector[i] = *from++;
    for (PerAtom* quantity : {&f_cov, &f_aleatoric, &f_epistemic}) {
      std::copy_n(from, 6, quantity->array[i]);
      from += 6;
    }
  }
  uncertainty_step_ = update->ntimestep;
}

void PairRace::store(PerAtom& quantity, const at::Tensor& values, double unit) {
  const at::Tensor scaled = (values * unit).contiguous();
  const double* value = scaled.data_ptr<double>();
  const std::vector<int>& atoms = local().atom_of_row();
  const int columns = quantity.columns ? quantity.columns : 1;
  double* flat;
  if (quantity.columns) {
    memory->grow(quantity.array, atom->nmax, columns, "pair:race");
    flat = quantity.array[0];
  } else {
    memory->grow(quantity.vector, atom->nmax, "pair:race");
    flat = quantity.vector;
  }
  std::memset(flat, 0, sizeof(double) * columns * atom->nmax);
  for (int64_t row = 0; row < scaled.size(0); ++row, value += columns)
    std::memcpy(flat + static_cast<int64_t>(columns) * atoms[row], value, sizeof(double) * columns);
}

at::Tensor PairRace::reduced_sums() const {
  const at::Tensor& mine = rank_totals_.sums;
  at::Tensor sums = at::empty_like(mine);
  MPI_Allreduce(mine.data_ptr<double>(), sums.data_ptr<double>(), static_cast<int>(mine.numel()),
                MPI_DOUBLE, MPI_SUM, world);
  return sums;
}

PairRace::Members PairRace::members() {
  const int64_t M = model_->metadata().n_members;
  const at::Tensor sums = reduced_sums();
  return {sums[0].item<double>(), sums.slice(0, 1, 1 + M), member_forces_,
          rank_totals_.sums.slice(0, 1 + 2 * M, 1 + 11 * M).view({M, 9})};
}

PairRace::Totals PairRace::totals() {
  require_uncertainty();
  const at::Tensor sums = reduced_sums();
  const GlobalUncertainty uncertainty = global_uncertainty(sums, model_->metadata());

  Totals totals;
  MPI_Allreduce(&rank_totals_.max_force_std, &totals.max_force_std, 1, MPI_DOUBLE, MPI_MAX, world);
  totals.max_force_std *= units_.force();
  double sum = 0, largest = -HUGE_VAL;  // an atom's BALD is above 0 but for rounding
  for (int64_t row = 0; row < graph().n_owned; ++row) {
    const double value = bald.vector[local().atom_of_row()[row]];
    sum += value;
    largest = std::max(largest, value);
  }
  MPI_Allreduce(&sum, &totals.mean_bald, 1, MPI_DOUBLE, MPI_SUM, world);
  MPI_Allreduce(&largest, &totals.max_bald, 1, MPI_DOUBLE, MPI_MAX, world);
  totals.mean_bald /= sums[0].item<double>();
  totals.energy_std = uncertainty.energy_std * units_.energy;
  for (int k = 0; k < 6; ++k) totals.virial_std[k] = uncertainty.virial_std[k] * units_.energy;
  totals.trace_std = uncertainty.trace_std * units_.energy;
  return totals;
}

int PairRace::pack_forward_comm(int n, int* atoms, double* buffer, int, int*) {
  return halo_.pack_forward(n, atoms, buffer);
}
void PairRace::unpack_forward_comm(int n, int first, double* buffer) {
  halo_.unpack_forward(n, first, buffer);
}
int PairRace::pack_reverse_comm(int n, int first, double* buffer) {
  return halo_.pack_reverse(n, first, buffer);
}
void PairRace::unpack_reverse_comm(int n, int* atoms, double* buffer) {
  halo_.unpack_reverse(n, atoms, buffer);
}

// For fix pair: `f_cov_flag` and so on ask for the uncertainty of one step. `halo_bytes` and
// `halo_seconds`: see HaloTotals.
void* PairRace::extract(const char* name, int& dim) {
  dim = 0;
  if (!strcmp(name, "halo_bytes")) return &exchanged_.bytes;
  if (!strcmp(name, "halo_seconds")) return &exchanged_.seconds;
  for (const char* flag : {"e_std_flag", "f_std_flag", "bald_flag", "f_cov_flag",
                           "f_aleatoric_flag", "f_epistemic_flag"})
    if (!strcmp(name, flag)) return &uq_flag_;
  return nullptr;
}

void* PairRace::extract_peratom(const char* name, int& columns) {
  const std::pair<const char*, PerAtom*> quantities[] = {{"e_std", &e_std},
                                                         {"f_std", &f_std},
                                                         {"bald", &bald},
                                                         {"f_cov", &f_cov},
                                                         {"f_aleatoric", &f_aleatoric},
                                                         {"f_epistemic", &f_epistemic}};
  for (const auto& [known, quantity] : quantities) {
    if (strcmp(name, known)) continue;
    columns = quantity->columns;
    return columns ? static_cast<void*>(quantity->array) : quantity->vector;
  }
  return nullptr;
}

double PairRace::memory_usage() {
  return Pair::memory_usage() + local_.memory_usage() + sizeof(double) * 20.0 * atom->nmax;
}
