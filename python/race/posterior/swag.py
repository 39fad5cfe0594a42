"""SWAG: a Gaussian from the path of training (Maddox et al. 2019, arXiv:1902.02476).

Training goes on from the run at a constant or cyclic learning rate, and every so often
the weights are a snapshot. Per member,

    q(theta) = N( mean, 1/2 [ diag(var) + D D^T / (K - 1) ] )
    sample   = mean + diag(var)^1/2 z / sqrt(2) + D z' / sqrt(2 (K - 1))

with standard normal z and z', mean and var over all snapshots, and the deviations of the
last K snapshots as the columns of D. These are deviations from the final mean. The paper
takes the mean at the time, which makes early columns too small (the first one zero). var
is accumulated by Welford's update: the paper's <theta^2> - <theta>^2 cancels in float32.

The two halves are each an estimate of the covariance, so that a sample has the variance
of the snapshots. Several members are several such Gaussians (Wilson and Izmailov 2020,
arXiv:2002.08791): sample k is drawn around member k mod M.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from race.config import RunConfig, TrainConfig
from race.data import Batch, Dataset
from race.model.race import RACE
from race.posterior.continued import continue_training
from race.posterior.options import SwagOptions
from race.posterior.protocol import (
    Fitted,
    Run,
    assigned_members,
    model_of,
    normal_draws,
)
from race.train.optim import Schedule
from race.train.trainer import Trainer


class SnapshotMoments:
    """Mean, sum of squared deviations and the last `rank` snapshots of weights that come one
    after the other.

    Args:
        parameters: by name, each [n_members, ...].
        rank: snapshots kept, K.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rank: int):
        self.rank, self.count = rank, 0
        self.mean = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.m2 = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.last = {name: p.new_zeros(rank, *p.shape) for name, p in parameters.items()}  # a ring

    @torch.no_grad()
    def add(self, parameters: Mapping[str, Tensor]) -> None:
        """One more snapshot (Welford's update)."""
        slot, self.count = self.count % self.rank, self.count + 1
        for name, p in parameters.items():
            before = p - self.mean[name]
            self.mean[name] += before / self.count
            self.m2[name] += before * (p - self.mean[name])
            self.last[name][slot] = p

    def variance(self, name: str) -> Tensor:
        """Unbiased, [n_members, ...]."""
        return self.m2[name] / (self.count - 1)

    def deviations(self, name: str) -> Tensor:
        """D: the last K snapshots minus the mean of all, [K, n_members, ...]."""
        return self.last[name][: min(self.count, self.rank)] - self.mean[name]

    @torch.no_grad()
    def sample(
        self, members: Sequence[int], generator: torch.Generator, scale: float = 1.0
    ) -> dict[str, Tensor]:
        """One draw around each of `members`: by name, [len(members), ...]. z' is one vector
        for all weights of a draw.

        float64 on the CPU: the same draws wherever the fit has run.
        """
        n_deviations, rows = min(self.count, self.rank), list(members)
        weights = normal_draws(rows, (n_deviations,), generator) / math.sqrt(2 * (n_deviations - 1))
        samples = {}
        for name, mean in self.mean.items():
            centre, std, deviations = (
                x.double().cpu() for x in (mean, self.variance(name).sqrt(), self.deviations(name))
            )
            samples[name] = centre[rows] + scale * std[rows] * normal_draws(
                rows, mean.shape[1:], generator
            ) / math.sqrt(2.0)
            for k, member in enumerate(rows):
                samples[name][k] += scale * torch.tensordot(
                    weights[k], deviations[:, member], dims=1
                )
            samples[name] = samples[name].to(mean.dtype)
        return samples

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """For a checkpoint, snapshot by snapshot; `load` takes them back."""
        kept = {
            f"swag_last_{k}": {name: ring[k] for name, ring in self.last.items()}
            for k in range(min(self.count, self.rank))
        }
        return {
            "swag_mean": self.mean,
            "swag_m2": self.m2,
            "swag": {"count": torch.tensor([self.count])},
            **kept,
        }

    def load(self, groups: dict[str, dict[str, Tensor]]) -> None:
        """Takes up what `tensors` gave."""
        self.count = int(groups["swag"]["count"])
        for name, mean in self.mean.items():
            mean.copy_(groups["swag_mean"][name])
            self.m2[name].copy_(groups["swag_m2"][name])
            for k in range(min(self.count, self.rank)):
                self.last[name][k] = groups[f"swag_last_{k}"][name]


class SwagSchedule(Schedule):
    """A rise, then the same rate all along, or a saw that falls to `FINAL` of it at every
    snapshot.
    """

    def __init__(self, config: TrainConfig, n_batches: int, swag: SwagOptions):
        assert config.epochs is not None  # a fit counts epochs
        super().__init__(config, config.epochs * n_batches)
        self.first, self.period = (
            round(swag.start * n_batches),
            max(1, round(swag.every * n_batches)),
        )
        self.cyclic = swag.schedule == "cyclic"

    def rate(self, step: int, passed: float = 0.0) -> float:
        """The learning rate of a step."""
        rate = self.config.learning_rate * min(1.0, (step + 1) / (self.rise + 1))
        if not self.cyclic or step < self.first:
            return rate
        phase = ((step - self.first) % self.period + 1) / self.period
        return rate * (1.0 - phase + phase * self.FINAL)

    def snapshot(self, n_steps: int) -> bool:
        """Whether the weights after `n_steps` steps are one: every `period` steps beyond the
        first `first`.
        """
        return n_steps > self.first and (n_steps - self.first) % self.period == 0


class SwagTrainer(Trainer):
    """Training that takes snapshots."""

    def __init__(
        self,
        swag: SwagOptions,
        config: RunConfig,
        model: RACE,
        train: Dataset,
        validation: Dataset,
        run: Path,
    ):
        self.swag = swag
        # Before a checkpoint is read
        self.moments = SnapshotMoments(dict(model.named_parameters()), swag.rank)
        super().__init__(config, model, train, validation, run)

    def make_schedule(self) -> Schedule:
        """The schedule of the path that is sampled."""
        self.saw = SwagSchedule(self.options, self.n_batches, self.swag)
        return self.saw

    def step(self, batch: Batch | None) -> None:
        """One step, and a snapshot where the schedule has one."""
        super().step(batch)
        if self.saw.snapshot(self.state.step):
            self.moments.add(self.parameters)

    def numbers(self, row: dict[str, float]) -> str:
        """The line of an epoch, with the number of snapshots."""
        return f"{super().numbers(row)}  snapshots {self.moments.count}"

    def more_tensors(self) -> dict[str, dict[str, Tensor]]:
        """The moments, for the checkpoint."""
        return self.moments.tensors()

    def load_more(self, groups: dict[str, dict[str, Tensor]]) -> None:
        """Takes up the moments of a checkpoint."""
        self.moments.load(groups)


def fit(runs: Sequence[Run], options: SwagOptions, folder: Path) -> Fitted:
    """Trains on, and draws `members` samples; any head, with the run's own loss."""
    (run,) = runs
    changes = {
        "epochs": options.epochs,
        "learning_rate": options.learning_rate or 0.1 * run.config.train.learning_rate,
        "schedule": "constant",
        "warmup_epochs": 0,
        "seed": options.seed,
    }
    trainer = continue_training(run, folder, partial(SwagTrainer, options), changes)
    members = assigned_members(options.members, run.model.n_members)
    samples = trainer.moments.sample(
        members, torch.Generator().manual_seed(options.seed), options.scale
    )
    return Fitted(
        model_of(run.model, samples),
        {
            "snapshots": trainer.moments.count,
            "learning_rate": changes["learning_rate"],
            "seconds": trainer.state.seconds,
        },
        trainer.validation_set,
    )
