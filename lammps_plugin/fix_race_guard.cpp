#include "fix_race_guard.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "pair_race.h"
#include "uncertainty_readers.h"
#include "update.h"
#include "write_extxyz.h"

using namespace LAMMPS_NS;

namespace {

// Kinds that are quantities have the quantity's name in compute race/atom.
constexpr const char* kind_names[] = {"not finite", "overlap",   "unseen pair",
                                      "density",    "force/std", "grade"};

const race::Quantity& quantity_of(int kind) {
  return *race::find_quantity(kind_names[kind], /*per_atom=*/true);
}

}  // namespace

// fix ID group race/guard N warn|dump|stop [overlap F|off] [unseen yes|no] [density F|off]
// [force/std T|off] [grade G|off] [environment R|off] [file NAME]
FixRaceGuard::FixRaceGuard(LAMMPS* lmp, int narg, char** arg)
    : Fix(lmp, narg, arg), file_(fmt::format("guard.{}.extxyz", arg[0])) {
  if (narg < 5) utils::missing_cmd_args(FLERR, "fix race/guard", error);
  nevery = utils::inumeric(FLERR, arg[3], false, lmp);
  if (nevery < 1)
    error->all(FLERR, "fix {} race/guard: expected a number of steps > 0, got {}", id, arg[3]);
  const std::string action = arg[4];
  if (action != "warn" && action != "dump" && action != "stop")
    error->all(FLERR, "fix {} race/guard: expected warn, dump or stop, got {}", id, action);
  action_ = action == "warn" ? Action::warn : action == "dump" ? Action::dump : Action::stop;

  for (int k = 5; k < narg; k += 2) {
    const std::string keyword = arg[k];
    if (keyword != "overlap" && keyword != "unseen" && keyword != "density" &&
        keyword != "force/std" && keyword != "grade" && keyword != "environment" &&
        keyword != "file")
      error->all(
          FLERR,
          "fix {} race/guard: expected a keyword overlap, unseen, density, force/std, grade, environment or file, got {}",
          id, keyword);
    if (k + 1 >= narg) utils::missing_cmd_args(FLERR, "fix race/guard " + keyword, error);
    const std::string value = arg[k + 1];
    const auto positive_or_off = [&]() -> double {
      if (value == "off") return 0;
      const double number = utils::numeric(FLERR, value, false, lmp);
      if (!(number > 0 && std::isfinite(number)))
        error->all(FLERR, "fix {} race/guard {}: expected a number > 0 or off, got {}", id, keyword,
                   value);
      return number;
    };
    if (keyword == "overlap") overlap_factor_ = positive_or_off();
    for (int kind = first_quantity; kind < n_kinds; ++kind)
      if (keyword == kind_names[kind]) limits_[kind] = positive_or_off();
    if (keyword == "environment") environment_ = positive_or_off();
    if (keyword == "density") {
      density_factor_ = positive_or_off();
      density_asked_ = density_factor_ > 0;
      if (density_asked_ && density_factor_ < 1)
        error->all(FLERR, "fix {} race/guard density: expected a factor >= 1, got {}", id, value);
    }
    if (keyword == "unseen") {
      if (value != "yes" && value != "no")
        error->all(FLERR, "fix {} race/guard unseen: expected yes or no, got {}", id, value);
      unseen_ = value == "yes";
    }
    if (keyword == "file") file_ = value;
  }
  scalar_flag = vector_flag = 1;
  size_vector = n_kinds;
  extscalar = extvector = 0;
  global_freq = nevery;
  reader_ = std::make_shared<UncertaintyReader>();
  reader_->wants = [this](bigint step) { return reads_quantities() && looks_at(step); };
  reader_->watches = [this](bigint step) { return looks_at(step); };
}

int FixRaceGuard::setmask() { return FixConst::END_OF_STEP | FixConst::MIN_POST_FORCE; }

// Reads the ranges of the training set, by species of the model.
void FixRaceGuard::init() {
  pair_ = PairRace::need(lmp, fmt::format("fix {} race/guard", id));
  const race::Metadata& metadata = *pair_->metadata();
  const std::vector<std::string>& elements = metadata.elements;
  const auto n = elements.size();
  seen_within_ = metadata.training_cutoff;

  shortest_.assign(n * n, 0);
  for (std::size_t a = 0; a < n; ++a)
    for (std::size_t b = 0; b < n; ++b)
      for (const std::string& key :
           {elements[a] + "-" + elements[b], elements[b] + "-" + elements[a]}) {
        const auto found = metadata.min_distance.find(key);
        if (found != metadata.min_distance.end()) shortest_[a * n + b] = found->second;
      }
  if (metadata.min_distance.empty() && (overlap_factor_ > 0 || unseen_))
    error->all(
        FLERR,
        "fix {} race/guard: model {} does not say what pairs its training set has; expected an artifact of race train and "
        "race export, or: overlap off unseen no",
        id, pair_->file());

  neighbors_.clear();
  if (!metadata.n_neighbors.empty() && seen_within_ == metadata.r_max) {
    for (const std::string& element : elements) {
      const auto found = metadata.n_neighbors.find(element);
      const bool known =
          found != metadata.n_neighbors.end();  // an element without a range has none to leave; its
                                                // pairs are unseen
      neighbors_.push_back(known ? Range{found->second.first, found->second.second}
                                 : Range{0, HUGE_VAL});
    }
  } else if (density_asked_) {
    error->all(
        FLERR,
        "fix {} race/guard density: model {} does not say how many neighbors its training set has within its cutoff; train "
        "and export it again, or: density off",
        id, pair_->file());
  }

  for (int kind = first_quantity; kind < n_kinds; ++kind)
    if (limits_[kind] > 0) pair_->require(fmt::format("fix {} race/guard", id), quantity_of(kind));
  pair_->add_reader(reader_);
}

bool FixRaceGuard::reads_quantities() const {
  return std::any_of(limits_ + first_quantity, limits_ + n_kinds,
                     [](double limit) { return limit > 0; });
}

bool FixRaceGuard::looks_at(bigint step) const {
  return step % nevery == 0 || step == update->firststep;
}

void FixRaceGuard::min_post_force(int) {
  if (looks_at(update->ntimestep)) check();
}

void FixRaceGuard::Finding::add(double how_bad, tagint atom, const std::string& what) {
  if (count++ == 0 || how_bad > severity) {
    severity = how_bad;
    tag = atom;
    text = what;
  }
}

void FixRaceGuard::check() {
  pair_->guarded([&] { look(); });
}

// Collective: all ranks learn the findings of one, and all warn, write or stop together.
void FixRaceGuard::look() {
  std::vector<Finding> findings(n_kinds);
  find_not_finite(findings[not_finite]);
  find_pairs(findings[overlap], findings[unseen]);
  if (density_factor_ > 0 && !neighbors_.empty()) find_densities(findings[density]);
  if (reads_quantities()) pair_->require_uncertainty();
  for (int kind = first_quantity; kind < n_kinds; ++kind)
    if (limits_[kind] > 0) find_above(quantity_of(kind), limits_[kind], findings[kind]);
  std::vector<tagint> worst;
  const std::string text = reduce(findings, worst);
  if (text.empty()) return;
  const std::string message =
      fmt::format("fix {} race/guard: step {}: {}", id, update->ntimestep, text);
  std::string where;
  if (action_ != Action::warn) {
    const bool cut = environment_ > 0;
    const std::string problem =
        cut ? write_environments(lmp, *pair_, file_, written_, message, worst, environment_)
            : write_extxyz(lmp, *pair_, file_, written_, message);
    written_ = true;
    where = problem.empty() ? (cut ? "; environments in " : "; configuration in ") + file_
                            : "; " + problem;
  }
  if (action_ == Action::stop) error->all(FLERR, message + where);
  if (comm->me == 0) error->warning(FLERR, message + where);
}

std::string FixRaceGuard::name_of(int i) const {
  return fmt::format("{} ({})", atom->tag[i], pair_->element(atom->type[i]));
}

tagint FixRaceGuard::tag_of(int64_t row) const { return atom->tag[pair_->atom_of_row()[row]]; }

bool FixRaceGuard::in_group(int64_t row) const {
  return atom->mask[pair_->atom_of_row()[row]] & groupbit;
}

void FixRaceGuard::find_not_finite(Finding& finding) const {
  for (int i = 0; i < atom->nlocal; ++i) {
    if (!(atom->mask[i] & groupbit)) continue;
    const auto finite = [](const double* v) {
      return std::isfinite(v[0]) && std::isfinite(v[1]) && std::isfinite(v[2]);
    };
    const double *x = atom->x[i], *f = atom->f[i];
    if (finite(x) && finite(f)) continue;
    finding.add(1, atom->tag[i],
                fmt::format("atom {} at {:.6g} {:.6g} {:.6g} has force {:.6g} {:.6g} {:.6g}",
                            name_of(i), x[0], x[1], x[2], f[0], f[1], f[2]));
  }
  if (finding.count == 0 && !pair_->finite()) finding.add(0, 0, "the energy");
}

void FixRaceGuard::find_pairs(Finding& overlaps, Finding& unseen_pairs) const {
  if (overlap_factor_ == 0 && !unseen_) return;
  const race::Graph& graph = pair_->local().graph();
  const auto n = static_cast<int64_t>(pair_->metadata()->elements.size());
  const auto* species = graph.species.data_ptr<int64_t>();
  const auto* sender = graph.sender.data_ptr<int64_t>();
  const auto* row_ptr = graph.row_ptr.data_ptr<int64_t>();
  const auto* vector = graph.edge_vector.data_ptr<double>();
  const std::vector<int>& atoms = pair_->atom_of_row();
  for (int64_t row = 0; row < graph.n_owned; ++row) {
    if (!in_group(row)) continue;
    for (int64_t e = row_ptr[row]; e < row_ptr[row + 1]; ++e) {
      const double* d = vector + 3 * e;
      const double r = std::sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
      const double shortest = shortest_[species[row] * n + species[sender[e]]];
      if (shortest == 0) {
        if (unseen_ && r < seen_within_)
          unseen_pairs.add(
              1 / r, tag_of(row),
              fmt::format(
                  "atoms {} and {} are {:.4g} Angstrom apart; the training set has no such pair",
                  name_of(atoms[row]), name_of(atoms[sender[e]]), r));
      } else if (r < overlap_factor_ * shortest) {
        overlaps.add(shortest / r, tag_of(row),
                     fmt::format("atoms {} and {} are {:.4g} Angstrom apart, limit {:.4g}",
                                 name_of(atoms[row]), name_of(atoms[sender[e]]), r,
                                 overlap_factor_ * shortest));
      }
    }
  }
}

void FixRaceGuard::find_densities(Finding& finding) const {
  const race::Graph& graph = pair_->local().graph();
  const auto* species = graph.species.data_ptr<int64_t>();
  const auto* row_ptr = graph.row_ptr.data_ptr<int64_t>();
  const auto* vector = graph.edge_vector.data_ptr<double>();
  const double r_max = pair_->metadata()->r_max;
  for (int64_t row = 0; row < graph.n_owned; ++row) {
    if (!in_group(row)) continue;
    double count = 0;  // edges may reach further than the cutoff
    for (const double* d = vector + 3 * row_ptr[row]; d < vector + 3 * row_ptr[row + 1]; d += 3)
      count += d[0] * d[0] + d[1] * d[1] + d[2] * d[2] < r_max * r_max;
    const Range& seen = neighbors_[species[row]];
    const double low = seen.min / density_factor_, high = seen.max * density_factor_;
    if (count >= low && count <= high) continue;
    finding.add(count < low ? low - count : count - high, tag_of(row),
                fmt::format("atom {} has {:.0f} neighbors, limits {:.4g} and {:.4g}",
                            name_of(pair_->atom_of_row()[row]), count, low, high));
  }
}

void FixRaceGuard::find_above(const race::Quantity& quantity, double limit,
                              Finding& finding) const {
  for (int64_t row = 0; row < pair_->local().graph().n_owned; ++row) {
    const int i = pair_->atom_of_row()[row];
    const double value = *pair_->columns().of(quantity, i);
    if (in_group(row) && value > limit)
      finding.add(value, atom->tag[i],
                  fmt::format("atom {} has {:.4g}, limit {:.4g}", name_of(i), value, limit));
  }
}

// Collective: counts over ranks. For each kind it gives the worst case of all ranks, as text and as
// atoms, each atom once. Empty if nothing was found.
std::string FixRaceGuard::reduce(std::vector<Finding>& findings, std::vector<tagint>& atoms) {
  int mine[n_kinds];
  for (int kind = 0; kind < n_kinds; ++kind) mine[kind] = findings[kind].count;
  MPI_Allreduce(mine, counts_, n_kinds, MPI_INT, MPI_SUM, world);

  std::string message;
  for (int kind = 0; kind < n_kinds; ++kind) {
    if (counts_[kind] == 0) continue;
    struct {
      double severity;
      int rank;
    } here{findings[kind].count ? findings[kind].severity : -1, comm->me}, worst;
    MPI_Allreduce(&here, &worst, 1, MPI_DOUBLE_INT, MPI_MAXLOC, world);
    std::string text = findings[kind].text;
    int size = static_cast<int>(text.size());
    MPI_Bcast(&size, 1, MPI_INT, worst.rank, world);
    text.resize(size);
    MPI_Bcast(text.data(), size, MPI_CHAR, worst.rank, world);
    MPI_Bcast(&findings[kind].tag, 1, MPI_LMP_TAGINT, worst.rank, world);
    if (std::find(atoms.begin(), atoms.end(), findings[kind].tag) == atoms.end())
      atoms.push_back(findings[kind].tag);
    message += fmt::format("{}{}: {} (rank {}, {} in all)", message.empty() ? "" : "; ",
                           kind_names[kind], text, worst.rank, counts_[kind]);
  }
  return message;
}

double FixRaceGuard::compute_scalar() {
  int total = 0;
  for (const int count : counts_) total += count;
  return total;
}

double FixRaceGuard::compute_vector(int kind) { return counts_[kind]; }
