// pair_style race: everything before the first step. A mistake ends every rank with one line that
// names the argument.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "compute.h"
#include "error.h"
#include "force.h"
#include "load_model.h"
#include "masses.h"
#include "memory.h"
#include "modify.h"
#include "neighbor.h"
#include "pair_race.h"
#include "race/baseline.h"
#include "race/error.h"
#include "universe.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace {

bool is_artifact(const char* word) {
  const std::string name = word, ending = ".pt";
  return name.find('/') != std::string::npos ||
         (name.size() > ending.size() && name.substr(name.size() - ending.size()) == ending);
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

// Whether `pin` is at least eight hex digits, of either case, that `digest` begins with.
bool matches_pin(std::string pin, const std::string& digest) {
  std::transform(pin.begin(), pin.end(), pin.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return pin.size() >= 8 && digest.compare(0, pin.size(), pin) == 0;
}

}  // namespace

void PairRace::settings(int narg, char** arg) {
  const std::string before = restart_sha256_;
  restart_sha256_.clear();
  // LAMMPS keeps the object if the same style is given again: species of an earlier model must not
  // stay.
  elements_.clear();
  species_.clear();
  set_flags();
  scale_ = 1;
  model_.reset(), leader_.reset(), core_.reset();
  settings_ = PairSettings::parse(lmp, narg, arg, default_device());
  // The model is loaded this early because pair_style hybrid asks its styles only once for the
  // width of their messages.
  if (!file().empty()) read_model();
  if (model_ && !before.empty() && model_->sha256() != before && comm->me == 0)
    error->warning(FLERR,
                   "pair_style race: model {} has sha256 {}, the restart file was written with {}",
                   file(), model_->sha256(), before);
}

void PairRace::read_model() {
  at::set_num_threads(
      comm->nthreads);  // LAMMPS's rule: OMP_NUM_THREADS, or one thread if it is not set
  std::string message;
  try {
    units_ = race_units(update->unit_style, force->angstrom);
    LoadedModel loaded = load_model(world, universe->uworld, settings_);
    model_ = std::move(loaded.model);
    leader_ = std::move(loaded.leader);
    core_.reset();
    if (settings_.core) core_.emplace(model_->metadata(), file());
  } catch (const race::Error& exception) {
    message = exception.what();
  }
  // Only for a restart: settings() has cleared it otherwise
  if (!message.empty() && !restart_sha256_.empty())
    message +=
        "; the restart file names the model by this path: run where it was written, or give "
        "pair_style race FILE and pair_coeff again";
  if (!message.empty()) error->all(FLERR, message);

  // With one layer each energy is a sum over edges, whose virials are their senders'. Several
  // layers have no centroid form.
  centroidstressflag = model_->metadata().n_layers == 1 ? CENTROID_AVAIL : CENTROID_NOTAVAIL;
  budget_.forget();
  const race::Metadata& metadata = model_->metadata();
  // A distilled leader may have any architecture, and wider rows than the ensemble.
  const auto doubles = [](const race::Model& model) {
    return LammpsHalo::wire_doubles(model.comm_width_max(), model.dtype());
  };
  const int width = std::max(doubles(*model_), doubles(leader()));
  comm_forward = std::max(width, 3);  // velocities of a heat flux; owners' rows, on one rank
  comm_reverse = std::max<int>(width, metadata.n_members > 1 ? 3 * metadata.n_members : 0);
  comm_reverse_off = std::max<int>({width, 3 * static_cast<int>(metadata.n_members),
                                    9});  // newton off: forces and per-atom virials too
  if (comm->me == 0)
    utils::logmesg(
        lmp,
        "RACE model {}: elements {}, r_max {} Angstrom, {} layers, {} members{}, head {}, {} on {}\n  sha256 {}\n",
        file(), join(metadata.elements), metadata.r_max, metadata.n_layers, metadata.n_members,
        settings_.lead == "mean" ? "" : " led by " + settings_.lead, metadata.head,
        model_->dtype() == at::kFloat ? "float32" : "float64", settings_.device, model_->sha256());
}

// Under hybrid the restart keeps pair_style but no pair_coeff.
void PairRace::read_model_of_restart() {
  if (model_ || restart_sha256_.empty()) return;
  read_model();
  if (model_->sha256() != restart_sha256_)
    error->all(
        FLERR,
        "pair_style race: model {}: expected sha256 {}, with which the restart file was written, got {}; put that model back, or "
        "give pair_style race and pair_coeff again to go on with this one",
        file(), restart_sha256_, model_->sha256());
}

// pair_coeff * * [file] El1 El2 ... [sha256 HEX]; one element, or NULL, per atom type
void PairRace::coeff(int narg, char** arg) {
  if (narg < 3) utils::missing_cmd_args(FLERR, "pair_coeff", error);
  if (strcmp(arg[0], "*") || strcmp(arg[1], "*"))
    error->all(FLERR, "pair_coeff race: expected * *, got {} {}", arg[0], arg[1]);
  narg -= 2;
  arg += 2;

  if (narg >= 2 && !strcmp(arg[narg - 2], "sha256")) {
    settings_.pin = arg[narg - 1];
    narg -= 2;
  }
  if (narg > 0 && is_artifact(arg[0])) {
    if (!file().empty())
      error->all(FLERR,
                 "pair_coeff race: expected element names, got {}; pair_style has read {} already",
                 arg[0], file());
    settings_.file = arg[0];
    read_model();
    --narg;
    ++arg;
  }
  read_model_of_restart();
  if (!model_)
    error->all(
        FLERR,
        "pair_coeff race: no model; expected pair_style race FILE, or pair_coeff * * FILE El1 El2 ...");
  if (!settings_.pin.empty() && !matches_pin(settings_.pin, model_->sha256()))
    error->all(FLERR, "pair_coeff race: model {}: expected sha256 {}, got {}", file(),
               settings_.pin, model_->sha256());
  read_elements({arg, arg + narg});
}

void PairRace::read_elements(const std::vector<std::string>& names) {
  const std::vector<std::string>& known = model_->metadata().elements;
  const int ntypes = atom->ntypes;
  if (static_cast<int>(names.size()) != ntypes)
    error->all(
        FLERR,
        "pair_coeff race: expected {} element names, one (or NULL) per atom type, got {}; model {} has {}",
        ntypes, names.size(), file(), join(known));
  species_.assign(ntypes + 1, -1);
  for (int type = 1; type <= ntypes; ++type) {
    const std::string& name = names[type - 1];
    if (name == "NULL") continue;
    const auto found = std::find(known.begin(), known.end(), name);
    if (found == known.end())
      error->all(
          FLERR,
          "pair_coeff race: atom type {}: expected an element of model {} ({}) or NULL, got {}",
          type, file(), join(known), name);
    species_[type] = static_cast<int>(found - known.begin());
  }
  if (std::all_of(species_.begin(), species_.end(), [](int species) { return species < 0; }))
    error->all(FLERR, "pair_coeff race: expected at least one element, got only NULL");
  elements_.assign(1, "");
  elements_.insert(elements_.end(), names.begin(), names.end());
  set_flags();
  warn_without_core();
}

// Warns if a user relies on a core that some pair of elements does not have.
void PairRace::warn_without_core() const {
  if (!core_ || comm->me != 0) return;
  for (int i = 1; i <= atom->ntypes; ++i)
    for (int j = i; j <= atom->ntypes; ++j)
      if (species_[i] >= 0 && species_[j] >= 0 && !core_->has(species_[i], species_[j]))
        error->warning(
            FLERR,
            "pair_style race core: no core between {} and {}, a pair that the training set of model {} does not have",
            elements_[i], elements_[j], file());
}

// Sets the pairs of types that this style computes: both types have an element. None without
// `elements_`.
void PairRace::set_flags() {
  const int ntypes = atom->ntypes;
  if (!allocated && elements_.empty()) return;
  if (!allocated) {
    memory->create(setflag, ntypes + 1, ntypes + 1, "pair:setflag");
    memory->create(cutsq, ntypes + 1, ntypes + 1, "pair:cutsq");
    allocated = 1;
  }
  const auto has_element = [&](int type) {
    return !elements_.empty() && elements_[type] != "NULL";
  };
  for (int i = 1; i <= ntypes; ++i)
    for (int j = 1; j <= ntypes; ++j) setflag[i][j] = has_element(i) && has_element(j);
}

void PairRace::init_style() {
  if (!model_ && !restart_sha256_.empty()) {
    read_model_of_restart();
    read_elements({elements_.begin() + 1, elements_.end()});
  }
  if (!model_) error->all(FLERR, "pair_style race: no model; expected pair_style race FILE");
  units_ = race_units(update->unit_style, force->angstrom);
  // Alone, such a model would be wrong without a message
  const std::string baseline = race::baseline_of(model_->metadata());
  if (!baseline.empty() && force->pair == this)
    error->all(
        FLERR,
        "pair_style race: model {} adds to a baseline ({}); expected pair_style hybrid/overlay with both, as `race export` prints it",
        file(), baseline);
  check_masses();
  warn_of_heat_flux();
  columns_.hold(settings_.uq_every > 0);
  // Under hybrid, a model read by pair_coeff was too late to be asked for its widths. LAMMPS sizes
  // its buffers after this call.
  force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);
  force->pair->comm_reverse = std::max(force->pair->comm_reverse, comm_reverse);
  force->pair->comm_reverse_off = std::max(force->pair->comm_reverse_off, comm_reverse_off);
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

// A wrong order of elements gives wrong chemistry without a message; the masses usually reveal it.
// It is a warning, because isotopes may be intended.
void PairRace::check_masses() const {
  if (!atom->mass || comm->me != 0) return;
  const std::string style = update->unit_style;
  const double gram_per_mol = style == "si" ? 1.66053906660e-27 : 1;
  for (int type = 1; type <= atom->ntypes; ++type) {
    if (species_[type] < 0 || !atom->mass_setflag[type]) continue;
    const std::string& element = model_->metadata().elements[species_[type]];
    const double expected = standard_atomic_weight(element), got = atom->mass[type] / gram_per_mol;
    if (expected > 0 && std::abs(got - expected) > 0.1 * expected)
      error->warning(
          FLERR,
          "pair_coeff race: atom type {} is {}, of mass {}, but its mass is {}; check the order of the elements",
          type, element, expected, got);
  }
}

void PairRace::setup() {
  check_special_bonds();
  warn_of_exclusions();
}

// LAMMPS may leave bonded neighbours out of its lists, and decides so after init_style(). A
// many-body potential would then be wrong without a message. With kspace LAMMPS keeps them all.
void PairRace::check_special_bonds() const {
  if (atom->molecular == Atom::ATOMIC) return;
  int mine = 0, missing = 0;
  for (int i = 0; i < atom->nlocal; ++i) {
    if (species_[atom->type[i]] < 0) continue;
    for (int k = 1; k <= 3; ++k) {
      if (neighbor->special_flag[k] != 0) continue;
      if (atom->molecular == Atom::TEMPLATE) {
        mine |= atom->molindex[i] >= 0;  // its template may have bonds
      } else if (atom->nspecial) {
        const int* up_to = atom->nspecial[i];  // 1-2, 1-3 and 1-4 neighbours, cumulative
        mine |= up_to[k - 1] > (k > 1 ? up_to[k - 2] : 0);
      }
    }
  }
  MPI_Allreduce(&mine, &missing, 1, MPI_INT, MPI_MAX, world);
  if (missing)
    error->all(
        FLERR,
        "pair_style race: expected all neighbors, got special_bonds that leave out bonded ones; use: special_bonds lj/coul "
        "1 1 1, or 1e-50 where another style needs 0");
}

// Warns of pairs that `neigh_modify exclude` removes although their atoms are present. A force on
// one atom depends on its neighbours' pairs with others: even pairs of two atoms that never move
// are missed. Collective.
void PairRace::warn_of_exclusions() {
  const std::vector<int> species = present_species();
  const int absent = excluded_groups();
  bool by_type = false;
  for (int a = 1; a <= atom->ntypes && neighbor->nex_type > 0; ++a)
    for (int b = 1; b <= atom->ntypes; ++b)
      by_type |= species[a] >= 0 && species[b] >= 0 && neighbor->ex_type[a][b] != 0;
  const auto has_atoms = [&](int bit) {
    int mine = 0, any = 0;
    for (int i = 0; i < atom->nlocal; ++i)
      mine |= species[atom->type[i]] >= 0 && (atom->mask[i] & bit) && !(atom->mask[i] & absent);
    MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, world);
    return any != 0;
  };
  bool by_group = false;
  for (int k = 0; k < neighbor->nex_group; ++k)
    by_group |= has_atoms(neighbor->ex1_bit[k]) & has_atoms(neighbor->ex2_bit[k]);
  for (int k = 0; k < neighbor->nex_mol; ++k) by_group |= has_atoms(neighbor->ex_mol_bit[k]);
  if ((by_type || by_group) && comm->me == 0)
    error->warning(
        FLERR,
        "pair_style race: neigh_modify exclude takes pairs away from atoms of the model, whose "
        "energies and forces, those on their neighbors too, are then wrong, even of atoms that do "
        "not move; leave it out");
}

// LAMMPS does not tell a style the factor that hybrid/scaled puts on its forces.
void PairRace::warn_unscaled() {
  if (warned_unscaled_ || !force->pair_style || strcmp(force->pair_style, "hybrid/scaled")) return;
  warned_unscaled_ = true;
  if (comm->me == 0)
    error->warning(
        FLERR,
        "pair_style race: uncertainties and heat fluxes are those of model {}, without the factor "
        "of hybrid/scaled; for scaled ones use hybrid/overlay and fix adapt, pair race scale",
        file());
}

double PairRace::init_one(int, int) { return model_->metadata().r_max * units_.length; }

// LAMMPS's own heat flux is a sum of per-atom virials, which an energy of several layers does not
// have.
void PairRace::warn_of_heat_flux() const {
  if (model_->metadata().n_layers == 1 || comm->me != 0) return;
  for (const Compute* compute : modify->get_compute_list())
    if (!strcmp(compute->style, "heat/flux") || !strcmp(compute->style, "centroid/stress/atom"))
      error->warning(
          FLERR,
          "compute {} {}: model {} has {} layers, whose heat flux no per-atom virial gives; use compute race/heat/flux",
          compute->id, compute->style, file(), model_->metadata().n_layers);
}
