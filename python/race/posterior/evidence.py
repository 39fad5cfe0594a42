"""The marginal likelihood of a Laplace approximation, and what of the data it depends on.

    ln p(D) = -1/2 [ r_E / s_E + n_E ln s_E + r_F / s_F + n_F ln s_F + delta |theta*|^2 -
    P ln delta + ln det H ] + const
    H       = A_E / s_E + A_F / s_F + delta I

r: sums of squared residuals of energies (E) and forces (F) on the training set, in units
of their noise; n: their numbers; A: their curvatures (race.posterior.ggn); s: factors on
the noise's variance; delta: precision of the prior N(0, 1 / delta) of the P weights.
Members share s and delta, and their ln p(D) add.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from race.config import RunConfig
from race.data import Batch
from race.errors import RaceError
from race.model.outputs import ModelOutput
from race.model.race import RACE
from race.posterior.ggn import Noise

BOUND = 30.0  # of the logarithms


class Observations:
    """Sums of squared whitened residuals and their numbers, both by the weights of the labels:
    of energies, then of forces; over batches and members.
    """

    def __init__(self, config: RunConfig, model: RACE):
        self.config, self.model = config, model
        self.with_forces = config.train.forces_weight > 0
        self.residuals, self.counts = [0.0, 0.0], [0.0, 0.0]

    def add(self, batch: Batch, create_graph: bool = False) -> tuple[ModelOutput, Noise]:
        """Takes a batch in; returns its predictions and noise."""
        out = self.model(batch, forces=self.with_forces, create_graph=create_graph)
        noise = Noise.of(self.config, self.model, batch, out)
        residuals: dict[str, Tensor] = {}
        if batch.energy is not None:
            error = out.energy.detach() - batch.energy.unsqueeze(1)
            residuals["energy"] = noise.whiten_energy(error)
        if self.with_forces and batch.forces is not None:
            error = out.forces.detach() - batch.forces.unsqueeze(1)
            residuals["forces"] = noise.whiten_forces(error)
        for label, residual in residuals.items():
            known = residual[batch.labelled(label)].double().flatten(1)
            weights, k = batch.weights(label), ("energy", "forces").index(label)
            self.residuals[k] += float((weights @ known**2).sum())
            self.counts[k] += float(weights.sum()) * known.shape[1]
        return out, noise

    def mean_square(self) -> list[float]:
        """Mean square errors of energies and forces, in units of the noise; inf where
        there are none.
        """
        return [
            r / n if n else float("inf") for r, n in zip(self.residuals, self.counts, strict=True)
        ]


@dataclass
class Evidence:
    """ln p(D) as a function of (ln s_E, ln s_F, ln delta).

    energy, forces: curvatures A, [P] (diagonal) or [M, D, D] (full), float64; residuals,
    counts: r and n, of all members; square: |theta*|^2 of all members.
    """

    energy: Tensor
    forces: Tensor
    residuals: Sequence[float]
    counts: Sequence[float]
    square: float

    @property
    def full(self) -> bool:
        """Whether the curvature is a matrix, not a diagonal."""
        return self.energy.dim() == 3

    def precision(self, logs: Tensor) -> Tensor:
        """H, in the shape of A."""
        s_energy, s_forces, delta = torch.exp(logs)
        prior = (
            delta * torch.eye(self.energy.shape[-1], dtype=torch.float64) if self.full else delta
        )
        return self.energy / s_energy + self.forces / s_forces + prior

    def log_likelihood(self, logs: Tensor) -> Tensor:
        """ln p(D) without its constant; differentiable."""
        precision = self.precision(logs)
        if self.full:
            n_weights = precision.shape[0] * precision.shape[1]
            logdet = 2.0 * torch.linalg.cholesky(precision).diagonal(dim1=-2, dim2=-1).log().sum()
        else:
            n_weights, logdet = precision.shape[0], precision.log().sum()
        fit = sum(
            r * torch.exp(-log) + n * log
            for r, n, log in zip(self.residuals, self.counts, logs, strict=False)
        )
        return -0.5 * (fit + self.square * torch.exp(logs[2]) - n_weights * logs[2] + logdet)

    def maximise(
        self, largest_noise: Sequence[float] = (float("inf"), float("inf"))
    ) -> tuple[Tensor, float]:
        """The best logarithms and their ln p(D), with s_E and s_F at most `largest_noise`.

        Raises:
            RaceError: it is not finite.
        """

        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            logs = torch.from_numpy(x).requires_grad_(True)
            value = -self.log_likelihood(logs)
            (gradient,) = torch.autograd.grad(value, logs)
            return value.item(), gradient.numpy()

        highest = [min(float(np.log(largest)), BOUND) for largest in largest_noise]
        bounds = [*((-BOUND, high) for high in highest), (-BOUND, BOUND)]
        start = np.minimum(np.zeros(3), [*highest, 0.0])
        found = minimize(
            objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}
        )
        if not np.isfinite(found.fun):
            remedy = "look at the training log: has the run diverged?"
            raise RaceError(
                "the marginal likelihood is not finite", got=f"{found.fun}", remedy=remedy
            )
        return torch.from_numpy(found.x), -float(found.fun)
