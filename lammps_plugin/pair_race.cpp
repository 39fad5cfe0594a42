#include "pair_race.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "fix.h"
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

PairRace::PairRace(LAMMPS* lmp)
    : Pair(lmp),
      halo_(comm, *this, local_.row_of_atom(), exchanged_),
      budget_(lmp),
      columns_(lmp, fmt::format("PAIR_RACE_HOLD_{}", instance_me)) {
  single_enable = 0;
  restartinfo = 1;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;             // the virial is summed over edges, right for any box
  centroidstressflag = CENTROID_NOTAVAIL;  // read_model() changes it for one layer
}

PairRace::~PairRace() {
  if (!allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
}

PairRace* PairRace::find(LAMMPS* lmp) {
  PairRace* pair = nullptr;
  for (const char* style : {"race", "race/kk", "race/kk/device", "race/kk/host"})
    if (!pair) pair = dynamic_cast<PairRace*>(lmp->force->pair_match(style, 1));
  return pair && pair->metadata() ? pair : nullptr;
}

PairRace* PairRace::need(LAMMPS* lmp, const std::string& reader) {
  PairRace* pair = find(lmp);
  if (!pair)
    lmp->error->all(
        FLERR,
        "{}: expected one pair_style race with a model, got {}; of two in a hybrid style, fix pair reads race:1 and race:2",
        reader, lmp->force->pair_style ? lmp->force->pair_style : "none");
  return pair;
}

// The inner exceptions are torch's and librace's. After an abort on one rank mpirun ends, and may
// not have forwarded that rank's line.
void PairRace::guarded(const std::function<void()>& work) {
  try {
    try {
      work();
    } catch (const LAMMPSException&) {
      throw;
    } catch (const std::exception& exception) {
      error->one(FLERR,
                 is_out_of_memory(exception)
                     ? budget_.out_of_memory(graph(), uncertainty_wanted(), one_line(exception))
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
  const bool energy_only = forces_unread(eflag, vflag) && !readers_.insist(step_);
  const bool uncertainty = !energy_only && uncertainty_wanted();
  guarded([&] {
    make_graph();
    // One evaluation gives both, unless a member leads: the model that moves atoms is then
    // evaluated in the same way on every step.
    const bool at_once = uncertainty && !leader_;
    const race::Prediction prediction = predict(
        leader(),
        {.forces = !energy_only, .uncertainty = at_once, .atom_virial = vflag_atom || cvflag_atom});
    if (!energy_only) add_forces(prediction.forces);
    tally(prediction);
    if (at_once) {
      store_uncertainty(prediction);
    } else if (uncertainty) {
      store_uncertainty(predict(*model_, {.uncertainty = true}));
    } else if (settings_.uq_every > 0 && columns_.recall()) {
      uncertainty_step_ = step_;
    }
  });
}

// Whether nobody reads the forces of this call. LAMMPS says so since 2026 (ENERGY_ONLY). Until then
// Monte Carlo fixes ask as a step of dynamics does; but they set the step of their next moves when
// they have made those that are due, before the forces of the step.
bool PairRace::forces_unread(int eflag, int vflag) const {
  constexpr int only = 4;  // ENERGY_ONLY, a bit that earlier versions do not have
  if (vflag || (eflag & ENERGY_ATOM) || !(eflag & ENERGY_GLOBAL)) return false;
  if (eflag & only) return true;
  if (update->whichflag != 1 || update->setupflag) return false;
  const std::vector<Fix*>& fixes = modify->get_fix_list();
  return std::any_of(fixes.begin(), fixes.end(), [&](const Fix* fix) {
    if (fix->next_reneighbor != update->ntimestep) return false;
    for (const char* style : {"atom/swap", "gcmc", "widom"})
      if (!strcmp(fix->style, style)) return true;
    return false;
  });
}

void PairRace::make_graph() {
  const std::vector<int> species = present_species();
  const LocalGraph::Options options{.species = species.data(),
                                    .r_max = model_->metadata().r_max * units_.length,
                                    .length = units_.length,
                                    .excluded = excluded_groups(),
                                    .all_edges = keeps_topology(),
                                    .new_list = list_is_new()};
  const bool changed = build_graph(options);
  if (changed) owner_.reset();
  if (changed || !options.all_edges) topology_.reset();
  if (options.all_edges) {
    if (!topology_) topology_.emplace(built_graph(), model_->device());
    kept_graph_ = topology_->at(changed ? built_graph().edge_vector : moved_vectors(*topology_));
  }
  if (!budget_.estimated())
    budget_.estimate(leader(), *model_, graph(), local_.memory_usage(), settings_.memory_cap);
}

// On a GPU the edges of LAMMPS's whole list are kept until it changes: what kernels derive from
// them is made once. Pairs beyond the cutoff have no weight. A CPU takes the edges within the
// cutoff. RACE_KEEP_TOPOLOGY=1 is for tests, which have no GPU.
bool PairRace::keeps_topology() const {
  const char* asked = std::getenv("RACE_KEEP_TOPOLOGY");
  return asked ? *asked == '1' : !model_->device().is_cpu();
}

// A list is new if LAMMPS has just built it. Its counters tell of builds between two steps of this
// style; they start again at every run.
bool PairRace::list_is_new() {
  const ListBuild now{list, neighbor->ncalls, neighbor->lastcall};
  const bool is_new = neighbor->ago == 0 || !(now == list_build_);
  list_build_ = now;
  return is_new;
}

// A device gets positions, and makes the vectors itself. The copy has ended when this style reads
// the energy of a step.
at::Tensor PairRace::moved_vectors(const race::Topology& topology) {
  if (!positions_.defined() || positions_.size(0) != topology.n_total())
    positions_ =
        at::empty({topology.n_total(), 3},
                  at::TensorOptions().dtype(at::kDouble).pinned_memory(model_->device().is_cuda()));
  local_.copy_positions(*atom, positions_);
  return topology.edge_vectors(positions_, 1 / units_.length);
}

const LocalGraph& PairRace::local() {
  local_.find_vectors(*atom);
  return local_;
}

bool PairRace::build_graph(const LocalGraph::Options& options) {
  const bool changed = local_.build(*list, *atom, options);
  if (comm->nprocs > 1 && model_->comm_width_max() > 0) {
    int find = changed || !options.all_edges;
    if (options.all_edges) MPI_Allreduce(MPI_IN_PLACE, &find, 1, MPI_INT, MPI_MAX, world);
    if (find) halo_.find_readers(local_.graph());
  }
  return changed;
}

// Evaluates the graph of make_graph(). Collective.
race::Prediction PairRace::predict(const race::Model& model, race::Request request) {
  request.members = request.uncertainty && model.metadata().n_members > 1;
  request.on_device = on_device();
  request.zbl = core_ ? &*core_ : nullptr;
  request.n_parts = budget_.parts(graph(), request.uncertainty, settings_.memory_cap);
  if (!owner_ && comm->nprocs == 1 && model.comm_width_max() > 0) {
    owner_ = owner_rows();
    if (owner_->defined()) owner_ = owner_->to(model.device());
  }
  std::optional<race::PeriodicFoldHalo> images;
  if (owner_ && owner_->defined()) images.emplace(*owner_);
  race::HaloExchange& exchange = images ? static_cast<race::HaloExchange&>(*images) : halo();
  race::Prediction prediction =
      topology_ ? race::predict(model, *topology_, kept_graph_.edge_vector, exchange, request)
                : race::predict(model, graph(), exchange, request);
  if (force->newton_pair || !request.forces)
    return prediction;  // LAMMPS adds ghosts' values to their owners'
  prediction.forces = completed(prediction.forces);
  if (request.atom_virial) prediction.atom_virial = completed(prediction.atom_virial);
  return prediction;
}

// Collective: [n_total, ...] -> [n_owned, ...], each row with the sums of its ghosts, on other
// ranks too. The argument does not change.
at::Tensor PairRace::completed(const at::Tensor& rows) {
  at::Tensor columns = rows.flatten(1).clone();
  halo().reverse(columns);
  return columns.view(rows.sizes()).slice(0, 0, graph().n_owned);
}

// Groups that `neigh_modify exclude GROUP all` cuts from everything. Their atoms count as absent,
// and so do the energies they would have alone: fix gcmc sees the energy that an atom's deletion
// leaves.
int PairRace::excluded_groups() const {
  int bits = 0;
  for (int k = 0; k < neighbor->nex_group; ++k) {
    if (neighbor->ex2_group[k] == 0) bits |= neighbor->ex1_bit[k];
    if (neighbor->ex1_group[k] == 0) bits |= neighbor->ex2_bit[k];
  }
  return bits;
}

// Species by type; types that `neigh_modify exclude type` cuts from every type are absent likewise.
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
// Each atom sends its row to its images. Undefined if some ghost's atom has no row (a hybrid
// style's list without it).
at::Tensor PairRace::owner_rows() {
  const int64_t n_owned = graph().n_owned, n_total = graph().n_total;
  at::Tensor rows = at::arange(1, n_total + 1, at::kDouble).unsqueeze(1);
  halo().forward(rows);  // 0 from atoms without a row
  const at::Tensor owner = rows.narrow(0, n_owned, n_total - n_owned).squeeze(1).to(at::kLong) - 1;
  return owner.numel() > 0 && owner.min().item<int64_t>() < 0 ? at::Tensor() : owner;
}

// Adds forces of owned rows and, with newton on, of ghost rows: LAMMPS's reverse communication of
// forces adds these to their owners.
void PairRace::add_forces(const at::Tensor& forces) {
  const at::Tensor mean = forces.mean(1).mul_(scaled_units().force());
  const double* component = mean.data_ptr<double>();
  for (int64_t row = 0; row < mean.size(0); ++row) {
    double* f = atom->f[local_.atom_of_row()[row]];
    for (int a = 0; a < 3; ++a) f[a] += *component++;
  }
}

void PairRace::tally(const race::Prediction& prediction) {
  const double unit = scaled_units().energy;
  const at::Tensor node_energy = prediction.node_energy.mean(1).mul_(unit).cpu();
  const double energy = node_energy.sum().item<double>();
  finite_ = std::isfinite(energy);
  if (!finite_) local();  // tells of atoms at one place
  if (!finite_ && !readers_.watch(update->ntimestep))
    throw race::Error(
        "pair_style race: the energy of model " + file() + " is not finite at step " +
        std::to_string(update->ntimestep) +
        "; expected a structure near the training set; check the positions and the time step");
  if (eflag_global) eng_vdwl += energy;
  if (eflag_atom)
    for (int64_t row = 0; row < node_energy.size(0); ++row)
      eatom[atom_of_row()[row]] += node_energy.data_ptr<double>()[row];

  if (vflag_global) {
    const at::Tensor mean = prediction.virial.mean(0).mul_(unit).cpu();
    for (int k = 0; k < 6; ++k) virial[k] += mean.data_ptr<double>()[race::six_to_nine[k]];
  }
  if (vflag_atom || cvflag_atom) {
    constexpr int centroid_to_nine[9] = {0, 4, 8, 1, 2, 5, 3, 6, 7};  // xx yy zz xy xz yz yx zx zy
    const at::Tensor scaled = prediction.atom_virial.cpu() * unit;
    const double* w = scaled.data_ptr<double>();
    for (int64_t row = 0; row < scaled.size(0); ++row, w += 9) {
      const int i = atom_of_row()[row];
      if (vflag_atom)
        for (int k = 0; k < 6; ++k)
          vatom[i][k] += 0.5 * (w[3 * race::six_rows[k] + race::six_columns[k]] +
                                w[3 * race::six_columns[k] + race::six_rows[k]]);
      if (cvflag_atom)
        for (int k = 0; k < 9; ++k) cvatom[i][k] += w[centroid_to_nine[k]];
    }
  }
}

// Computes announce their steps to LAMMPS (Compute::addstep), so every rank agrees.
bool PairRace::uncertainty_wanted() const {
  const bigint step = update->ntimestep;
  if (uq_flag_ || readers_.insist(step)) return true;
  if (settings_.uq_every > 0) return step % settings_.uq_every == 0 || step == update->firststep;
  return readers_.want(step);
}

void PairRace::add_reader(const std::shared_ptr<const UncertaintyReader>& reader) {
  readers_.add(reader);
  warn_unscaled();
}

void PairRace::require(const std::string& where, const race::Quantity& quantity) const {
  const std::string missing = race::missing(model_->metadata(), quantity);
  if (!missing.empty())
    error->all(FLERR, "{} {}: model {}: {}", where, quantity.name, file(), missing);
}

void PairRace::require_uncertainty() {
  if (uncertainty_step_ == update->ntimestep) return;
  if (!model_ || step_ != update->ntimestep || update->whichflag == 0)
    error->all(
        FLERR,
        "compute race: uncertainties are not current on step {}; use the compute in a run, through thermo, dump, fix or variable",
        update->ntimestep);
  guarded([&] { store_uncertainty(predict(*model_, {.uncertainty = true})); });
}

void PairRace::store_uncertainty(const race::Prediction& prediction) {
  // A member's force on an atom is complete only after reverse communication, which therefore
  // precedes the covariance.
  const bool complete =
      !force->newton_pair || prediction.forces.size(1) == 1;  // one group has no covariance to form
  const at::Tensor forces =
      complete ? prediction.forces.slice(0, 0, graph().n_owned) : completed(prediction.forces);
  const race::AtomMoments atoms = race::atom_moments(prediction, forces, model_->metadata());
  rank_sums_ = race::frame_sums(prediction, atoms);
  member_forces_ = forces.cpu();
  uncertainty_units_ = scaled_units();
  columns_.store(atoms, atom_of_row(), uncertainty_units_.scaled(scale_ < 0 ? -1 : 1));
  uncertainty_step_ = update->ntimestep;
  if (settings_.uq_every > 0) columns_.keep();
}

race::FrameSums PairRace::all_sums() const {
  const auto over_ranks = [this](MPI_Op operation) {
    return [this, operation](double* values, int n) {
      MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_DOUBLE, operation, world);
    };
  };
  return rank_sums_.reduced(over_ranks(MPI_SUM), over_ranks(MPI_MAX));
}

race::FrameMoments PairRace::frame() {
  require_uncertainty();
  return race::frame_moments(all_sums(), model_->metadata(), domain->dimension);
}

PairRace::Members PairRace::members() {
  const race::FrameSums sums = all_sums();
  return {sums.n_atoms.item<double>(), sums.energies, member_forces_, rank_sums_.virials};
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

// For fix pair: `f_cov_flag` and the like request the uncertainty of one step. For fix adapt:
// `scale`, a factor on energy and forces. `halo_bytes` and `halo_seconds`: see HaloTotals.
void* PairRace::extract(const char* name, int& dim) {
  dim = 0;
  const std::string asked = name;
  if (asked == "scale") return &scale_;
  shown_ = exchanged_;
  if (asked == "halo_bytes") return &shown_.bytes;
  if (asked == "halo_seconds") return &shown_.seconds;
  for (const race::Quantity& quantity : race::quantities())
    if (!quantity.symbol.empty() && asked == std::string(quantity.symbol) + "_flag") {
      warn_unscaled();
      return &uq_flag_;
    }
  return nullptr;
}

// Columns of an earlier step are in the atoms' order of that step: zeros are returned instead.
void* PairRace::extract_peratom(const char* name, int& columns) {
  if (uncertainty_step_ != update->ntimestep) columns_.clear();
  return columns_.extract(name, columns);
}

double PairRace::memory_usage() {
  return Pair::memory_usage() + local_.memory_usage() + columns_.memory_usage();
}
