// pair_style race: everything before the first step. What is wrong ends every rank with one line
// that names the argument.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "fix_race_hold.h"
#include "force.h"
#include "load_model.h"
#include "masses.h"
#include "memory.h"
#include "modify.h"
#include "neighbor.h"
#include "pair_race.h"
#include "race/error.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace {

constexpr const char* keywords[] = {"device", "dtype", "uq", "zbl", "halo", "memory", "sha256"};

bool is_keyword(const char* word) {
  return std::any_of(std::begin(keywords), std::end(keywords),
                     [&](const char* keyword) { return !strcmp(word, keyword); });
}

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

// Hex digits of either case, at least eight, that `digest` begins with.
bool matches_pin(std::string pin, const std::string& digest) {
  std::transform(pin.begin(), pin.end(), pin.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return pin.size() >= 8 && digest.compare(0, pin.size(), pin) == 0;
}

}  // namespace

// pair_style race [file] [device cpu|cuda|cuda:N] [dtype float32|float64] [uq every N] [zbl on|off]
// [halo exchange]
//                  [memory MiB] [sha256 HEX]
void PairRace::settings(int narg, char** arg) {
  const std::string before = restart_sha256_;
  restart_sha256_.clear();
  read_settings(narg, arg);
  if (model_ && !before.empty() && model_->sha256() != before && comm->me == 0)
    error->warning(FLERR,
                   "pair_style race: model {} has sha256 {}, the restart file was written with {}",
                   file_, model_->sha256(), before);
}

void PairRace::read_settings(int narg, char** arg) {
  // LAMMPS keeps the object when the same style is given again: species of an earlier model must
  // not stay.
  elements_.clear();
  species_.clear();
  set_flags();
  file_.clear();
  pin_.clear();
  device_ = default_device();
  dtype_.reset();
  uq_every_ = 0;
  memory_cap_ = 0;
  zbl_ = false;
  model_.reset();

  int k = 0;
  if (narg > 0 && !is_keyword(arg[0])) file_ = arg[k++];
  const auto value = [&](int offset) -> std::string {
    if (k + offset >= narg)
      utils::missing_cmd_args(FLERR, fmt::format("pair_style race {}", arg[k]), error);
    return arg[k + offset];
  };
  while (k < narg) {
    const std::string keyword = arg[k];
    if (keyword == "device") {
      device_ = value(1);
    } else if (keyword == "dtype") {
      const std::string name = value(1);
      if (name != "float32" && name != "float64")
        error->all(FLERR, "pair_style race dtype: expected float32 or float64, got {}", name);
      dtype_ = name == "float32" ? at::kFloat : at::kDouble;
    } else if (keyword == "uq") {
      if (value(1) != "every")
        error->all(FLERR, "pair_style race uq: expected every N, got {}", value(1));
      uq_every_ = utils::inumeric(FLERR, value(2), false, lmp);
      if (uq_every_ < 0)
        error->all(FLERR, "pair_style race uq every: expected a number of steps >= 0, got {}",
                   uq_every_);
      ++k;
    } else if (keyword == "zbl") {
      if (value(1) != "on" && value(1) != "off")
        error->all(FLERR, "pair_style race zbl: expected on or off, got {}", value(1));
      zbl_ = value(1) == "on";
    } else if (keyword == "halo") {
      if (value(1) != "exchange")
        error->all(FLERR, "pair_style race halo: expected exchange, got {}", value(1));
    } else if (keyword == "memory") {
      memory_cap_ = utils::numeric(FLERR, value(1), false, lmp) * 1048576;
      if (!(memory_cap_ > 0 && std::isfinite(memory_cap_)))
        error->all(FLERR, "pair_style race memory: expected MiB > 0, got {}", value(1));
    } else if (keyword == "sha256") {
      pin_ = value(1);
    } else {
      error->all(
          FLERR,
          "pair_style race: expected a keyword device, dtype, uq, zbl, halo, memory or sha256, got {}",
          keyword);
    }
    k += 2;
  }
  // Loaded this early because pair_style hybrid asks its styles for the width of their messages
  // only once.
  if (!file_.empty()) read_model();
}

void PairRace::read_model() {
  at::set_num_threads(
      comm->nthreads);  // the rule of LAMMPS: OMP_NUM_THREADS, and one thread when it is not set
  std::string message;
  try {
    units_ = race_units(update->unit_style, force->angstrom);
    model_.emplace(load_model(world, file_, device_, dtype_, pin_));
    core_.reset();
    if (zbl_) core_.emplace(model_->metadata(), file_);
  } catch (const race::Error& exception) {
    message = exception.what();
  }
  if (!message.empty()) error->all(FLERR, message);

  memory_.reset(), memory_uncertain_.reset();
  const race::Metadata& metadata = model_->metadata();
  const int width = LammpsHalo::wire_doubles(model_->comm_width_max(), model_->dtype());
  comm_forward = width;
  comm_reverse = std::max<int>(width, metadata.n_members > 1 ? 3 * metadata.n_members : 0);
  comm_reverse_off = std::max<int>({width, 3 * static_cast<int>(metadata.n_members),
                                    9});  // newton off: forces and per-atom virials too
  if (comm->me == 0)
    utils::logmesg(
        lmp,
        "RACE model {}: elements {}, r_max {} Angstrom, {} layers, {} members, head {}, {} on {}\n  sha256 {}\n",
        file_, join(metadata.elements), metadata.r_max, metadata.n_layers, metadata.n_members,
        metadata.head, model_->dtype() == at::kFloat ? "float32" : "float64", device_,
        model_->sha256());
}

// pair_coeff * * [file] El1 El2 ... [sha256 HEX]; one element, or NULL, per atom type
void PairRace::coeff(int narg, char** arg) {
  if (narg < 3) utils::missing_cmd_args(FLERR, "pair_coeff", error);
  if (strcmp(arg[0], "*") || strcmp(arg[1], "*"))
    error->all(FLERR, "pair_coeff race: expected * *, got {} {}", arg[0], arg[1]);
  narg -= 2;
  arg += 2;

  if (narg >= 2 && !strcmp(arg[narg - 2], "sha256")) {
    pin_ = arg[narg - 1];
    narg -= 2;
  }
  if (narg > 0 && is_artifact(arg[0])) {
    if (!file_.empty())
      error->all(FLERR,
                 "pair_coeff race: expected element names, got {}; pair_style has read {} already",
                 arg[0], file_);
    file_ = arg[0];
    read_model();
    --narg;
    ++arg;
  }
  if (!model_ &&
      !restart_sha256_.empty()) {  // under hybrid, whose restart keeps pair_style but no pair_coeff
    read_model();
    refuse_other_than_restart();
  }
  if (!model_)
    error->all(
        FLERR,
        "pair_coeff race: no model; expected pair_style race FILE, or pair_coeff * * FILE El1 El2 ...");
  if (!pin_.empty() && !matches_pin(pin_, model_->sha256()))
    error->all(FLERR, "pair_coeff race: model {}: expected sha256 {}, got {}", file_, pin_,
               model_->sha256());
  read_elements({arg, arg + narg});
}

void PairRace::read_elements(const std::vector<std::string>& names) {
  const std::vector<std::string>& known = model_->metadata().elements;
  const int ntypes = atom->ntypes;
  if (static_cast<int>(names.size()) != ntypes)
    error->all(
        FLERR,
        "pair_coeff race: expected {} element names, one (or NULL) per atom type, got {}; model {} has {}",
        ntypes, names.size(), file_, join(known));
  species_.assign(ntypes + 1, -1);
  for (int type = 1; type <= ntypes; ++type) {
    const std::string& name = names[type - 1];
    if (name == "NULL") continue;
    const auto found = std::find(known.begin(), known.end(), name);
    if (found == known.end())
      error->all(
          FLERR,
          "pair_coeff race: atom type {}: expected an element of model {} ({}) or NULL, got {}",
          type, file_, join(known), name);
    species_[type] = static_cast<int>(found - known.begin());
  }
  if (std::all_of(species_.begin(), species_.end(), [](int species) { return species < 0; }))
    error->all(FLERR, "pair_coeff race: expected at least one element, got only NULL");
  elements_.assign(1, "");
  elements_.insert(elements_.end(), names.begin(), names.end());
  set_flags();
  warn_without_core();
}

// A core that a user relies on and some pair of elements does not have.
void PairRace::warn_without_core() const {
  if (!core_ || comm->me != 0) return;
  for (int i = 1; i <= atom->ntypes; ++i)
    for (int j = i; j <= atom->ntypes; ++j)
      if (species_[i] >= 0 && species_[j] >= 0 && !core_->has(species_[i], species_[j]))
        error->warning(
            FLERR,
            "pair_style race zbl: no core between {} and {}, a pair that the training set of model {} does not have",
            elements_[i], elements_[j], file_);
}

// Pairs of types that this style computes: those with an element each. None without `elements_`.
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
    read_model();
    refuse_other_than_restart();
    read_elements({elements_.begin() + 1, elements_.end()});
  }
  if (!model_) error->all(FLERR, "pair_style race: no model; expected pair_style race FILE");
  units_ = race_units(update->unit_style, force->angstrom);
  check_masses();
  check_special_bonds();
  hold(uq_every_ > 0);
  // Under hybrid a model read by pair_coeff came too late to be asked; LAMMPS sizes its buffers
  // after this call.
  force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);
  force->pair->comm_reverse = std::max(force->pair->comm_reverse, comm_reverse);
  force->pair->comm_reverse_off = std::max(force->pair->comm_reverse_off, comm_reverse_off);
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

// A mistaken order of elements is wrong chemistry in silence; the masses usually give it away.
// Isotopes may be meant: a warning.
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

// Bonded neighbours of weight 0 are missing from LAMMPS's lists, and a potential of many atoms
// would be wrong in silence.
void PairRace::check_special_bonds() const {
  if (atom->molecular != Atom::MOLECULAR || !atom->nspecial) return;
  int mine = 0, missing = 0;
  for (int i = 0; i < atom->nlocal; ++i) {
    if (species_[atom->type[i]] < 0) continue;
    const int* up_to = atom->nspecial[i];  // 1-2, 1-3 and 1-4 neighbours, cumulative
    for (int k = 0; k < 3; ++k)
      if (up_to[k] > (k ? up_to[k - 1] : 0) && force->special_lj[k + 1] == 0 &&
          force->special_coul[k + 1] == 0)
        mine = 1;
  }
  MPI_Allreduce(&mine, &missing, 1, MPI_INT, MPI_MAX, world);
  if (missing)
    error->all(
        FLERR,
        "pair_style race: expected all neighbors, got special_bonds that leave out bonded ones; use: special_bonds lj/coul "
        "1 1 1, or 1e-50 where another style needs 0");
}

void PairRace::hold(bool wanted) {
  if (wanted == (hold_ != nullptr)) return;
  if (wanted) {
    hold_id_ = fmt::format("PAIR_RACE_HOLD_{}", instance_me);
    hold_ = dynamic_cast<FixRaceHold*>(
        modify->add_fix(fmt::format("{} all RACE/HOLD {}", hold_id_, n_held)));
  } else {
    modify->delete_fix(hold_id_);
    hold_ = nullptr;
  }
}

double PairRace::init_one(int, int) { return model_->metadata().r_max * units_.length; }
