#include "race/moments.h"

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <limits>
#include <vector>

#include "operators.h"
#include "race/conventions.h"

namespace race {
namespace {

// The population variance; Tensor::var would warn if there are no atoms or one member.
at::Tensor spread(const at::Tensor& values, int64_t dim) {
  return (values - values.mean(dim, /*keepdim=*/true)).square().mean(dim);
}

/// The factor on a variance: the square of that on the standard deviation of the members' spread.
double spread_factor(const Metadata& metadata, const char* name) {
  const auto factor = metadata.calibration.find(name);
  return factor == metadata.calibration.end() ? 1.0 : factor->second * factor->second;
}
double of_energy(const Metadata& metadata) {
  return spread_factor(metadata, "energy_spread_factor");
}
double of_forces(const Metadata& metadata) {
  return spread_factor(metadata, "forces_spread_factor");
}

at::Tensor scalar(double value) { return at::full({}, value, at::kDouble); }

at::Tensor largest(const at::Tensor& values) {
  return values.numel() > 0 ? values.max() : scalar(-std::numeric_limits<double>::infinity());
}

void reduce(const FrameSums::Reduce& over_domains, const std::vector<at::Tensor*>& fields) {
  std::vector<at::Tensor> flat;
  for (const at::Tensor* field : fields) flat.push_back(field->flatten());
  const at::Tensor values = at::cat(flat);
  over_domains(values.data_ptr<double>(), static_cast<int>(values.numel()));
  int64_t first = 0;
  for (at::Tensor* field : fields) {
    const int64_t n = field->numel();
    *field = values.narrow(0, first, n).view(field->sizes());
    first += n;
  }
}

}  // namespace

at::Tensor member_covariance(const at::Tensor& forces) {
  static const auto handle =
      find_operator<at::Tensor(const at::Tensor&)>("race::member_covariance");
  return handle.call(forces);
}

at::Tensor log_determinant(const at::Tensor& six) {
  static const auto handle = find_operator<at::Tensor(const at::Tensor&)>("race::log_determinant");
  return handle.call(six);
}

at::Tensor AtomMoments::force_std() const { return (cov().slice(1, 0, 3).sum(1) / 3).sqrt(); }

AtomMoments atom_moments(const Prediction& prediction, const at::Tensor& forces,
                         const Metadata& metadata) {
  AtomMoments atoms;
  atoms.energy_var =
      prediction.node_energy_var.mean(1) + of_energy(metadata) * spread(prediction.node_energy, 1);
  atoms.cov_aleatoric = prediction.cov_aleatoric;
  atoms.cov_epistemic = prediction.cov_epistemic;
  if (forces.size(1) > 1)
    atoms.cov_epistemic = atoms.cov_epistemic + of_forces(metadata) * member_covariance(forces);
  atoms.bald = prediction.logdet_aleatoric.defined()
                   ? (log_determinant(atoms.cov()) - prediction.logdet_aleatoric) / 2
                   : at::zeros_like(atoms.energy_var);
  atoms.grade = prediction.grade.defined() ? prediction.grade : at::zeros_like(atoms.energy_var);
  return atoms;
}

FrameSums frame_sums(const Prediction& prediction, const AtomMoments& atoms) {
  FrameSums sums;
  sums.n_atoms = scalar(static_cast<double>(prediction.node_energy.size(0)));
  sums.energies = prediction.node_energy.sum(0);
  sums.energy_vars = prediction.node_energy_var.sum(0);
  sums.virials = prediction.virial;
  sums.virial_noise = prediction.virial_cov;
  sums.bald = atoms.bald.sum();
  sums.max_bald = largest(atoms.bald);
  sums.max_force_std = largest(atoms.force_std());
  sums.max_grade = largest(atoms.grade);
  for (at::Tensor* field : {&sums.energies, &sums.energy_vars, &sums.virials, &sums.virial_noise,
                            &sums.bald, &sums.max_bald, &sums.max_force_std, &sums.max_grade})
    *field = field->to(at::kCPU);
  return sums;
}

FrameSums FrameSums::reduced(const Reduce& sum, const Reduce& max) const {
  FrameSums all = *this;
  reduce(sum, {&all.n_atoms, &all.energies, &all.energy_vars, &all.virials, &all.virial_noise,
               &all.bald});
  reduce(max, {&all.max_bald, &all.max_force_std, &all.max_grade});
  return all;
}

at::Tensor FrameMoments::virial_std() const {
  const at::Tensor std =
      (virial_cov_aleatoric + virial_cov_epistemic).diagonal().clamp_min(0).sqrt();
  if (n_dimensions == 3) return std;
  return std * at::tensor({1.0, 1.0, 0.0, 1.0, 0.0, 0.0}, at::kDouble);
}

double FrameMoments::virial_mean_std() const {
  const at::Tensor of_trace = (virial_cov_aleatoric + virial_cov_epistemic)
                                  .slice(0, 0, n_dimensions)
                                  .slice(1, 0, n_dimensions)
                                  .sum();
  return std::sqrt(std::max(0.0, of_trace.item<double>())) / n_dimensions;
}

FrameMoments frame_moments(const FrameSums& sums, const Metadata& metadata, int n_dimensions) {
  const double n_atoms = sums.n_atoms.item<double>();
  at::Tensor energies = sums.energies, energy_vars = sums.energy_vars;
  if (metadata.energy_aggregation == "paper" && metadata.has_energy_var() && n_atoms > 0)
    energy_vars = (energy_vars / n_atoms).exp();               // exp(mean_i s_i)
  if (metadata.energy_aggregation == "mean" && n_atoms > 0) {  // the target is no sum over atoms
    energies = energies / n_atoms;
    energy_vars = energy_vars / (n_atoms * n_atoms);
  }

  FrameMoments frame;
  frame.n_dimensions = n_dimensions;
  frame.energy_members = energies;
  frame.energy_var =
      (energy_vars.mean() + of_energy(metadata) * spread(energies, 0)).item<double>();
  if (n_atoms > 0) {
    frame.energy_bald = (std::log(frame.energy_var) - energy_vars.log().mean().item<double>()) / 2;
    frame.mean_bald = sums.bald.item<double>() / n_atoms;
    frame.max_bald = sums.max_bald.item<double>();
    frame.max_force_std = sums.max_force_std.item<double>();
    frame.max_grade = sums.max_grade.item<double>();
  }
  frame.virial_members =
      sums.virials.index_select(1, at::tensor(at::ArrayRef<int>(six_to_nine, 6), at::kLong));
  const at::Tensor deviation = frame.virial_members - frame.virial_members.mean(0);
  frame.virial_cov_aleatoric = sums.virial_noise;
  frame.virial_cov_epistemic = of_forces(metadata) * deviation.t().matmul(deviation) /
                               static_cast<double>(deviation.size(0));
  return frame;
}

}  // namespace race
