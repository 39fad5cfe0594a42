#include "race/quantities.h"

#include <cmath>

namespace race {
namespace {

at::Tensor one(double value) { return at::full({1}, value, at::kDouble); }

// The order of this table is that of the reference pages.
constexpr unsigned any_covariance = ensemble | force_covariance;
constexpr unsigned any_epistemic = ensemble | evidential;

const Quantity table[] = {
    {.name = "force/std",
     .symbol = "f_std",
     .property = "",
     .n_columns = 1,
     .dimension = Dimension::force,
     .needs = {any_covariance},
     .meaning = "sqrt(tr(cov) / 3): standard deviation of one force component, averaged over "
                "directions; force units",
     .of_atoms = [](const AtomMoments& atoms) { return atoms.force_std(); },
     .per_atom = true},
    {.name = "force/cov",
     .symbol = "f_cov",
     .property = "forces_cov",
     .n_columns = 6,
     .dimension = Dimension::force_squared,
     .needs = {any_covariance},
     .meaning = "total force covariance xx, yy, zz, xy, xz, yz = aleatoric + epistemic; force "
                "units squared",
     .of_atoms = [](const AtomMoments& atoms) { return atoms.cov(); },
     .per_atom = true},
    {.name = "force/aleatoric",
     .symbol = "f_aleatoric",
     .property = "forces_cov_aleatoric",
     .n_columns = 6,
     .dimension = Dimension::force_squared,
     .needs = {force_covariance},
     .meaning = "its aleatoric part: the mean of the members' heads",
     .of_atoms = [](const AtomMoments& atoms) { return atoms.cov_aleatoric; },
     .per_atom = true},
    {.name = "force/epistemic",
     .symbol = "f_epistemic",
     .property = "forces_cov_epistemic",
     .n_columns = 6,
     .dimension = Dimension::force_squared,
     .needs = {any_epistemic},
     .meaning = "its epistemic part: the spread of the members' forces, widened to the error of "
                "their mean (of head evidential or eip, or posterior leverage: the model's own)",
     .of_atoms = [](const AtomMoments& atoms) { return atoms.cov_epistemic; },
     .per_atom = true},
    {.name = "energy/std",
     .symbol = "e_std",
     .property = "",
     .n_columns = 1,
     .dimension = Dimension::energy,
     .needs = {ensemble | energy_variance, extensive},
     .meaning = "of the atom's energy: mean of the heads' variances plus spread of the members; "
                "energy units",
     .of_atoms = [](const AtomMoments& atoms) { return atoms.energy_var.sqrt(); },
     .per_atom = true},
    {.name = "bald",
     .symbol = "bald",
     .property = "bald",
     .n_columns = 1,
     .dimension = Dimension::nats,
     .needs = {force_covariance, any_epistemic},
     .meaning = "1/2 ln det(`force/cov`) - 1/2 mean over members of ln det(aleatoric covariance): "
                "the mutual information of the atom's force and the members (BALD); nats",
     .of_atoms = [](const AtomMoments& atoms) { return atoms.bald; },
     .per_atom = true},
    {.name = "grade",
     .symbol = "grade",
     .property = "grade",
     .n_columns = 1,
     .dimension = Dimension::ratio,
     .needs = {graded},
     .meaning = "how unlike the training set the atom's features are: Mahalanobis distance, 1 at "
                "the training set's 99.9 % quantile; it says unlike, not how wrong",
     .of_atoms = [](const AtomMoments& atoms) { return atoms.grade; },
     .per_atom = true},
    {.name = "interval",
     .symbol = "",
     .property = "forces_interval",
     .n_columns = 3,
     .dimension = Dimension::force,
     .needs = {any_covariance},
     .interval_of = "forces",
     .meaning = "half-widths of the calibrated central intervals of fx, fy, fz that hold the true "
                "value with probability P; force units",
     .of_atoms = [](const AtomMoments& atoms) { return atoms.cov().slice(1, 0, 3).sqrt(); },
     .per_atom = true},
    {.name = "force/components/std",
     .property = "forces_std",
     .n_columns = 3,
     .dimension = Dimension::force,
     .needs = {any_covariance},
     .meaning = "standard deviations of fx, fy, fz",
     .per_atom = true},
    {.name = "force/members",
     .property = "forces_members",
     .n_columns = 0,
     .dimension = Dimension::force,
     .meaning = "each member's force",
     .per_atom = true},

    {.name = "energy/std",
     .property = "energy_std",
     .n_columns = 1,
     .dimension = Dimension::energy,
     .needs = {ensemble | energy_variance},
     .meaning = "standard deviation of the total energy; energy units",
     .of_frame = [](const FrameMoments& frame) { return one(std::sqrt(frame.energy_var)); }},
    {.name = "energy/interval",
     .property = "energy_interval",
     .n_columns = 1,
     .dimension = Dimension::energy,
     .needs = {ensemble | energy_variance},
     .interval_of = "energy",
     .meaning = "half-width of the calibrated central interval that holds the true energy with "
                "probability P; energy units",
     .of_frame = [](const FrameMoments& frame) { return one(std::sqrt(frame.energy_var)); }},
    {.name = "energy/members",
     .property = "energy_members",
     .n_columns = 0,
     .dimension = Dimension::energy,
     .meaning = "total energy of each member; energy units",
     .of_frame = [](const FrameMoments& frame) { return frame.energy_members; }},
    {.name = "energy/bald",
     .property = "energy_bald",
     .n_columns = 1,
     .dimension = Dimension::nats,
     .needs = {ensemble, energy_variance},
     .meaning = "1/2 ln(variance of the energy) - 1/2 mean over members of ln(aleatoric "
                "variance); nats",
     .of_frame = [](const FrameMoments& frame) { return one(frame.energy_bald); }},
    {.name = "bald",
     .n_columns = 1,
     .dimension = Dimension::nats,
     .needs = {force_covariance, any_epistemic},
     .meaning = "mean over atoms of `bald` of `compute race/atom`: the score of the configuration "
                "in active learning; nats",
     .of_frame = [](const FrameMoments& frame) { return one(frame.mean_bald); }},
    {.name = "max/bald",
     .n_columns = 1,
     .dimension = Dimension::nats,
     .needs = {force_covariance, any_epistemic},
     .meaning = "the largest of them",
     .of_frame = [](const FrameMoments& frame) { return one(frame.max_bald); }},
    {.name = "max/force/std",
     .n_columns = 1,
     .dimension = Dimension::force,
     .needs = {any_covariance},
     .meaning = "largest `force/std` of all atoms; force units",
     .of_frame = [](const FrameMoments& frame) { return one(frame.max_force_std); }},
    {.name = "max/grade",
     .n_columns = 1,
     .dimension = Dimension::ratio,
     .needs = {graded},
     .meaning = "largest `grade` of all atoms",
     .of_frame = [](const FrameMoments& frame) { return one(frame.max_grade); }},
    {.name = "stress/std",
     .property = "stress_std",
     .n_columns = 6,
     .dimension = Dimension::stress,
     .needs = {ensemble | stress_noise},
     .meaning = "standard deviation of the virial stress xx, yy, zz, xy, xz, yz: spread of the "
                "members, and noise where the model has a `stress_head`; pressure units (the "
                "kinetic part is exact)",
     .of_frame = [](const FrameMoments& frame) { return frame.virial_std(); }},
    {.name = "stress/interval",
     .property = "stress_interval",
     .n_columns = 6,
     .dimension = Dimension::stress,
     .needs = {ensemble | stress_noise},
     .interval_of = "stress",
     .meaning = "half-widths of the calibrated central intervals of these columns that hold the "
                "true value with probability P; pressure units",
     .of_frame = [](const FrameMoments& frame) { return frame.virial_std(); }},
    {.name = "pressure/std",
     .n_columns = 1,
     .dimension = Dimension::stress,
     .needs = {ensemble | stress_noise},
     .meaning = "standard deviation of the pressure, likewise",
     .of_frame = [](const FrameMoments& frame) { return one(frame.virial_mean_std()); }},
    {.name = "stress/cov",
     .property = "stress_cov",
     .n_columns = 36,
     .dimension = Dimension::stress_squared,
     .needs = {ensemble | stress_noise},
     .meaning = "covariance of the stress, aleatoric + epistemic"},
    {.name = "stress/aleatoric",
     .property = "stress_cov_aleatoric",
     .n_columns = 36,
     .dimension = Dimension::stress_squared,
     .needs = {stress_noise},
     .meaning = "its aleatoric part: the noise that the stress_head says"},
    {.name = "stress/epistemic",
     .property = "stress_cov_epistemic",
     .n_columns = 36,
     .dimension = Dimension::stress_squared,
     .needs = {ensemble},
     .meaning = "its epistemic part: the spread of the members"},
    {.name = "stress/members",
     .property = "stress_members",
     .n_columns = 0,
     .dimension = Dimension::stress,
     .meaning = "each member's stress"},
};

constexpr std::pair<unsigned, const char*> expected[] = {
    {ensemble, "an ensemble"},
    {energy_variance, "a head with an energy variance"},
    {force_covariance, "a head with a force covariance"},
    {evidential, "head evidential or eip"},
    {stress_noise, "a stress_head"},
    {extensive, "energy_aggregation extensive, where an atom has an energy variance of its own"},
    {graded, "a grade, which `race export` fits to the run's training set"}};

std::string one_of(unsigned needs) {
  std::string text;
  for (const auto& [capability, words] : expected)
    if (needs & capability) text += (text.empty() ? "" : " or ") + std::string(words);
  return text;
}

bool in_lammps(const Quantity& quantity) { return quantity.of_atoms || quantity.of_frame; }

}  // namespace

const char* name_of(Dimension dimension) {
  switch (dimension) {
    case Dimension::energy: return "energy";
    case Dimension::force: return "force";
    case Dimension::force_squared: return "force^2";
    case Dimension::stress: return "stress";
    case Dimension::stress_squared: return "stress^2";
    case Dimension::nats: return "nats";
    case Dimension::ratio: return "1";
  }
  return "";
}

unsigned capabilities(const Metadata& metadata) {
  unsigned has = 0;
  if (metadata.n_members > 1) has |= ensemble;
  if (metadata.has_energy_var()) has |= energy_variance;
  if (metadata.has_force_cov()) has |= force_covariance;
  if (metadata.has_own_epistemic()) has |= evidential;
  if (metadata.has_stress_cov()) has |= stress_noise;
  if (metadata.has_grade) has |= graded;
  if (!metadata.has_energy_var() || metadata.energy_aggregation != "paper") has |= extensive;
  return has;
}

std::span<const Quantity> quantities() { return table; }

const Quantity* find_quantity(std::string_view name, bool per_atom) {
  for (const Quantity& quantity : table)
    if (quantity.name == name && quantity.per_atom == per_atom && in_lammps(quantity))
      return &quantity;
  return nullptr;
}

std::string quantity_names(bool per_atom) {
  std::string text, last;
  for (const Quantity& quantity : table) {
    if (quantity.per_atom != per_atom || !in_lammps(quantity)) continue;
    if (!last.empty()) text += (text.empty() ? "" : ", ") + last;
    last = std::string(quantity.name) + (quantity.interval_of.empty() ? "" : " P");
  }
  return text + " or " + last;
}

std::string missing(const Metadata& metadata, const Quantity& quantity) {
  const unsigned has = capabilities(metadata);
  for (const unsigned needs : quantity.needs)
    if (needs && !(needs & has))
      return std::to_string(metadata.n_members) + " member(s), head " + metadata.head +
             (metadata.has_stress_cov() ? " and stress_head " + metadata.stress_head
                                        : " and no stress_head") +
             "; expected " + one_of(needs);
  const std::string target(quantity.interval_of);
  if (!target.empty() && !metadata.is_calibrated(target)) return Metadata::not_calibrated(target);
  return "";
}

}  // namespace race
