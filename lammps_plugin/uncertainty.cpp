#include "uncertainty.h"

#include <algorithm>
#include <cmath>

#include "race/conventions.h"
#include "race/moments.h"

AtomUncertainty atom_uncertainty(const race::Prediction& prediction, const at::Tensor& forces) {
  AtomUncertainty atoms;
  atoms.cov_aleatoric = prediction.cov_aleatoric;
  atoms.cov_epistemic = prediction.cov_epistemic;
  if (forces.size(1) > 1)
    atoms.cov_epistemic = atoms.cov_epistemic + race::member_covariance(forces);
  atoms.cov = atoms.cov_aleatoric + atoms.cov_epistemic;
  atoms.bald = prediction.logdet_aleatoric.defined()
                   ? (race::log_determinant(atoms.cov) - prediction.logdet_aleatoric) / 2
                   : at::zeros({atoms.cov.size(0)}, atoms.cov.options());
  atoms.force_std = (atoms.cov.slice(1, 0, 3).sum(1) / 3).sqrt();
  atoms.energy_std =
      (prediction.node_energy_var.mean(1) + prediction.node_energy.var(1, /*unbiased=*/false))
          .sqrt();
  return atoms;
}

RankTotals rank_totals(const race::Prediction& prediction, const AtomUncertainty& atoms) {
  RankTotals totals;
  const at::Tensor n_atoms =
      at::full({1}, static_cast<double>(prediction.node_energy.size(0)), at::kDouble);
  totals.sums = at::cat({n_atoms, prediction.node_energy.sum(0), prediction.node_energy_var.sum(0),
                         prediction.virial.flatten(), prediction.virial_cov.flatten()})
                    .contiguous();
  if (atoms.force_std.numel() > 0) totals.max_force_std = atoms.force_std.max().item<double>();
  return totals;
}

GlobalUncertainty global_uncertainty(const at::Tensor& sums, const race::Metadata& metadata) {
  const int64_t M = metadata.n_members;
  const auto energy = sums.slice(0, 1, 1 + M);
  auto variance = sums.slice(0, 1 + M, 1 + 2 * M);
  const int64_t end = sums.size(0) - 36;
  const auto virial =
      sums.slice(0, 1 + 2 * M, end).view({-1, 9});  // one row where one member was asked for
  if (metadata.energy_aggregation == "paper" && metadata.has_energy_var())
    variance = (variance / sums[0]).exp();  // exp(mean_i s_i)
  const auto six =
      virial.index_select(1, at::tensor(at::ArrayRef<int>(race::six_to_nine, 6), at::kLong));
  const auto deviation = six - six.mean(0);
  const auto cov = (sums.slice(0, end).view({6, 6}) + deviation.t().matmul(deviation) / six.size(0))
                       .contiguous();
  const auto virial_std = cov.diagonal().sqrt().contiguous();

  GlobalUncertainty total;
  total.energy_std =
      std::sqrt((variance.mean() + energy.var(0, /*unbiased=*/false)).item<double>());
  for (int k = 0; k < 6; ++k) total.virial_std[k] = virial_std.data_ptr<double>()[k];
  total.trace_std =
      std::sqrt(std::max(0.0, cov.slice(0, 0, 3).slice(1, 0, 3).sum().item<double>())) / 3;
  return total;
}
