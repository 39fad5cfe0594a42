"""Validation metrics of every member and of the ensemble, accumulated on the device without
a loop over members.

The ensemble is one more column: mean of the members, with the law of total variance for
its uncertainty.
"""

import torch
from torch import Tensor

from race.config import ModelConfig, ModelConstants
from race.data import Batch
from race.heads import HEADS
from race.model.outputs import ModelOutput
from race.model.race import RACE
from race.predict.moments import mahalanobis, total_variance
from race.train.loss import own_noise
from race.train.parallel import Ranks

Z90 = 1.6448536269514722  # central 90 % of a normal distribution


def with_ensemble(value: Tensor, covariance: Tensor | None, spread: float) -> tuple[Tensor, Tensor]:
    """Appends the ensemble to the member axis.

    Args:
        value: [n, M, d] predictions.
        covariance: [n, M, d, d] of each member, or None.
        spread: factor on the members' standard deviation.

    Returns:
        [n, M + 1, d] and [n, M + 1, d, d]; the last column has Sigma = mean_m Sigma_m +
        spread^2 mean_m (v_m - v)(v_m - v)^T.
    """
    if covariance is None:
        covariance = value.new_zeros(*value.shape, value.shape[-1])
    ensemble = total_variance(value, covariance.mean(1), spread=spread)
    return (
        torch.cat([value, ensemble.mean.unsqueeze(1)], 1),
        torch.cat([covariance, ensemble.total.unsqueeze(1)], 1),
    )


def total_forces_cov(model: RACE, raw: Tensor) -> Tensor | None:
    """Each member's covariance of its force error, [n_atoms, M, 3, 3] (eV/A)^2 (with its
    own epistemic part); None: nothing.
    """
    aleatoric, epistemic = model.own_forces_cov(raw)
    return aleatoric if aleatoric is None or epistemic is None else aleatoric + epistemic


class Means:
    """Weighted means by name over rows that come in parts, to several ranks."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, name: str, rows: Tensor, weights: Tensor) -> None:
        """rows [n, columns, d]: a mean over the first axis by `weights` [n], and the last."""
        total = torch.einsum("ncd,n->c", rows, weights.to(rows.dtype))
        self._merge(name, total, float(weights.sum()) * rows.shape[2])

    def result(self, ranks: Ranks) -> dict[str, Tensor]:
        """[columns] each, on the CPU, over what all ranks have added."""
        all_ranks = Means()
        for sums, weights in ranks.gather(
            ({name: total.cpu() for name, total in self.sums.items()}, self.weights)
        ):
            for name, total in sums.items():
                all_ranks._merge(name, total, weights[name])
        return {
            name: total / (all_ranks.weights[name] or 1.0) for name, total in all_ranks.sums.items()
        }

    def _merge(self, name: str, total: Tensor, weight: float) -> None:
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.weights[name] = self.weights.get(name, 0.0) + weight


class Metrics:
    """Sums over a validation set, each label by its weight.

    `update` takes batches and detached predictions; `result` gives a [n_members + 1]
    tensor per metric, ensemble last:

        energy_rmse, energy_mae, energy_std     meV/atom, or conventions.ENERGY_ERROR
        forces_rmse, forces_mae, forces_std     meV/A
        stress_rmse, stress_std                 meV/A^3
        energy_nll, forces_nll                  Gaussian, per frame and per atom, without
                                                the constant
        forces_coverage, stress_coverage        of the central 90 % interval of each
                                                component

    Those that the head does not give are absent or NaN. Likelihoods and coverages are
    those of the labels, with their own noise; the deviations are the model's.
    """

    def __init__(self, config: ModelConfig, constants: ModelConstants):
        self.forces_cov = HEADS[config.head].forces_noise
        self.extensive = config.pooling == "sum"
        self.energy_spread = constants.energy_spread_factor
        self.forces_spread = constants.forces_spread_factor
        self.means = Means()

    def update(self, batch: Batch, out: ModelOutput, forces_cov: Tensor | None) -> None:
        """out of `RACE.forward`; forces_cov [n_atoms, M, 3, 3] or None."""
        if batch.energy is not None:
            labelled, weights = batch.labelled("energy"), batch.weights("energy")
            var = out.energy_total_var
            if var is not None:
                var = var[labelled].double()[..., None, None]
            energy = out.energy[labelled].double().unsqueeze(2)
            value, var = with_ensemble(energy, var, self.energy_spread)
            size = batch.n_atoms_per_frame[labelled].view(-1, 1, 1) if self.extensive else 1
            error, var = value - batch.energy[labelled].view(-1, 1, 1), var.squeeze(3)
            self._errors("energy", error / size, var.sqrt() / size, weights)
            if out.energy_var is not None:
                var = var + own_noise(batch, "energy", labelled, var.dtype).unsqueeze(2)
                self.means.add("energy_nll", 0.5 * (error**2 / var + var.log()), weights)
        if batch.forces is not None and out.forces is not None:
            labelled, weights = batch.labelled("forces"), batch.weights("forces")
            value, cov = with_ensemble(
                out.forces[labelled].double(),
                None if forces_cov is None else forces_cov[labelled].double(),
                self.forces_spread,
            )
            error = value - batch.forces[labelled].unsqueeze(1)
            std = cov.diagonal(dim1=-2, dim2=-1).sqrt()
            self._errors("forces", error, std, weights)
            own = own_noise(batch, "forces", labelled, cov.dtype)[..., None]
            std = (std**2 + own).sqrt()
            self.means.add("forces_coverage", (error.abs() <= Z90 * std).double(), weights)
            if self.forces_cov:
                eye = torch.eye(3, dtype=cov.dtype, device=cov.device)
                quadratic, logdet = mahalanobis(error, cov + own[..., None] * eye)
                self.means.add("forces_nll", 0.5 * (quadratic + logdet).unsqueeze(2), weights)
        if batch.stress is not None and out.stress is not None:
            labelled, weights = batch.labelled("stress"), batch.weights("stress")
            noise = None
            if out.virial_cov is not None:
                noise = (
                    out.virial_cov[labelled].double()
                    / batch.volume[labelled].double().view(-1, 1, 1, 1) ** 2
                )
            value, cov = with_ensemble(out.stress[labelled].double(), noise, self.forces_spread)
            error, std = (
                value - batch.stress[labelled].unsqueeze(1),
                cov.diagonal(dim1=-2, dim2=-1).sqrt(),
            )
            self._errors("stress", error, None if noise is None else std, weights)
            if noise is not None:
                own = own_noise(batch, "stress", labelled, std.dtype)[..., None]
                std = (std**2 + own).sqrt()
                self.means.add("stress_coverage", (error.abs() <= Z90 * std).double(), weights)

    def result(self, ranks: Ranks) -> dict[str, Tensor]:
        """The metrics by name, of each member and last of all together."""
        means = self.means.result(ranks)
        known = torch.ones_like(next(iter(means.values())), dtype=torch.bool)
        known[:-1] = self.forces_cov  # members of other heads have no force deviation of their own
        known[-1] = self.forces_cov or len(known) > 2
        result = {}
        for name, value in means.items():
            if name.endswith("_mse"):
                name, value = name.replace("_mse", "_rmse"), value.sqrt()
            if name in ("forces_std", "forces_coverage"):
                value = torch.where(known, value, torch.nan)
            result[name] = value if name.endswith(("_nll", "_coverage")) else 1e3 * value
        return result

    def _errors(self, name: str, error: Tensor, std: Tensor | None, weights: Tensor) -> None:
        self.means.add(f"{name}_mse", error**2, weights)
        self.means.add(f"{name}_mae", error.abs(), weights)
        if std is not None:
            self.means.add(f"{name}_std", std, weights)
