"""IVON: variational inference at the price of Adam (Shen et al. 2024, arXiv:2402.17641,
algorithm 1).

The posterior is N(m, 1 / [ess (h + delta)]), diagonal. ess is the number of data that the
mean loss stands for, delta the weight decay, and ess * delta the precision of a normal
prior. Every step takes the gradient g at one sample theta = m + sigma eps:

    h^ = g eps / sigma
    g_ = beta1 g_ + (1 - beta1) g
    h  = beta2 h + (1 - beta2) h^ + 1/2 (1 - beta2)^2 (h - h^)^2 / (h + delta)
    m  = m - rate * clip( (g_ / (1 - beta1^t) + delta m) / (h + delta) )

h^ estimates the diagonal of the Hessian without bias (Stein), and the last term of h
keeps h + delta positive. Everything is elementwise, so members stay independent. The
information on the weights differs by many orders of magnitude, so h starts from that on
each. A diagonal posterior of far more weights than data is wide; a larger ess (a cold
posterior) narrows it: the validation metrics printed after the fit show it.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from race.config import RunConfig, TrainConfig
from race.data import Batch, Dataset
from race.model.race import RACE
from race.posterior.continued import continue_training
from race.posterior.ggn import loss_curvature
from race.posterior.options import IvonOptions
from race.posterior.protocol import (
    Fitted,
    Run,
    assigned_members,
    model_of,
    normal_draws,
)
from race.progress import progress
from race.train.checkpoint import has_checkpoint
from race.train.trainer import Trainer


class Ivon(torch.optim.Optimizer):
    """The update above. `perturb`, then gradients, then `step`, which leaves the mean in the
    parameters.

    Args:
        parameters: hold the mean m.
        lr, ess, hess_init, beta1, beta2, weight_decay, clip_radius: as `IvonOptions`
            describes them.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        ess: float,
        hess_init: float,
        beta1: float,
        beta2: float,
        weight_decay: float,
        clip_radius: float = math.inf,
    ):
        defaults = {
            "lr": lr,
            "ess": ess,
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": weight_decay,
            "clip_radius": clip_radius,
        }
        super().__init__(parameters, defaults)
        self.perturbed = False
        for _, p in self._all():
            self.state[p] = {
                "hessian": torch.full_like(p, hess_init),
                "momentum": torch.zeros_like(p),
                "step": 0,
            }

    @torch.no_grad()
    def perturb(self, generator: torch.Generator) -> None:
        """Replaces every mean by a sample m + sigma eps."""
        for group, p in self._all():
            state = self.state[p]
            state["mean"] = p.clone()
            state["eps"] = torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
            p.addcmul_(self._std(group, p), state["eps"])
        self.perturbed = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates m and h from the gradients at the sample; weights without a gradient
        return to their mean.
        """
        assert self.perturbed, "Ivon.step without perturb"
        self.perturbed = False
        for group, p in self._all():
            state = self.state[p]
            eps, h, delta = state.pop("eps"), state["hessian"], group["weight_decay"]
            p.copy_(state.pop("mean"))
            if p.grad is None:
                continue
            state["step"] += 1
            rho = 1.0 - group["beta2"]
            h_hat = p.grad * eps / self._std(group, p)
            state["momentum"].lerp_(p.grad, 1.0 - group["beta1"])
            h.add_(rho * (h_hat - h) + 0.5 * rho**2 * (h - h_hat) ** 2 / (h + delta))
            gradient = state["momentum"] / (1.0 - group["beta1"] ** state["step"])
            p.sub_(
                ((gradient + delta * p) / (h + delta)).clamp_(
                    -group["clip_radius"], group["clip_radius"]
                ),
                alpha=group["lr"],
            )

    def std(self) -> list[Tensor]:
        """sigma of every parameter, in order."""
        return [self._std(group, p) for group, p in self._all()]

    def _std(self, group: dict[str, Any], p: nn.Parameter) -> Tensor:
        return (group["ess"] * (self.state[p]["hessian"] + group["weight_decay"])).rsqrt()

    def _all(self) -> list[tuple[dict[str, Any], nn.Parameter]]:
        return [(group, p) for group in self.param_groups for p in group["params"]]


class IvonTrainer(Trainer):
    """Training with `Ivon`; the gradients are those of the run's loss, unclipped."""

    def __init__(
        self,
        ivon: IvonOptions,
        config: RunConfig,
        model: RACE,
        train: Dataset,
        validation: Dataset,
        run: Path,
    ):
        self.ivon_options = ivon
        super().__init__(config, model, train, validation, run)

    def make_optimizer(self) -> Ivon:
        """IVON, with the options of the fit."""
        o = self.ivon_options
        ess = o.ess or default_ess(
            self.options,
            self.train_set.total_weight("energy"),
            self.train_set.total_weight("forces"),
        )
        self.ivon = Ivon(
            self.parameters.values(),
            lr=o.learning_rate,
            ess=ess,
            hess_init=o.hess_init or 1.0,
            beta1=o.beta1,
            beta2=o.beta2,
            weight_decay=o.weight_decay or 1.0 / ess,
            clip_radius=o.clip_radius,
        )
        if o.hess_init is None and not has_checkpoint(self.run):
            generator = torch.Generator(self.device).manual_seed(self.options.seed)
            batches = progress(
                self.train_set.batches(self.options.batch_size),
                "curvature of the loss",
                self.n_batches,
            )
            curvature = loss_curvature(
                self.config,
                self.model,
                self.loss,
                (batch.to(self.device) for batch in batches),
                generator,
            )
            for p, hessian in zip(self.parameters.values(), curvature, strict=True):
                self.ivon.state[p]["hessian"] = hessian.to(p.dtype)
        return self.ivon

    def step(self, batch: Batch | None) -> None:
        """One step at weights that are drawn from the posterior."""
        # A function of the step alone: a resumed fit draws what an uninterrupted one does.
        self.ivon.perturb(
            torch.Generator(self.device).manual_seed((self.options.seed << 32) + self.state.step)
        )
        super().step(batch)


def default_ess(train: TrainConfig, n_frames: float, n_atoms: float) -> float:
    """The number that makes ess * loss minus the log likelihood of all forces, or of all
    energies if forces are not learned. Frames and atoms count by the weights of their
    labels.
    """
    return (
        n_atoms / train.forces_weight if train.forces_weight > 0 else n_frames / train.energy_weight
    )


def fit(runs: Sequence[Run], options: IvonOptions, folder: Path) -> Fitted:
    """Trains on, and draws `members` samples of the final Gaussian; any head, with the
    run's own loss.
    """
    (run,) = runs
    changes = {
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "schedule": "cosine",
        "warmup_epochs": 0,
        "seed": options.seed,
        # A gradient scaled down would make h too small: steps are bounded by clip_radius
        # instead
        "clip_norm": math.inf,
    }
    trainer = continue_training(run, folder, partial(IvonTrainer, options), changes)
    generator, members = (
        torch.Generator().manual_seed(options.seed),
        assigned_members(options.members, run.model.n_members),
    )
    samples = {}
    for (name, mean), std in zip(trainer.parameters.items(), trainer.ivon.std(), strict=True):
        z = normal_draws(members, mean.shape[1:], generator)
        samples[name] = (
            mean.detach().double().cpu()[members] + std.double().cpu()[members] * z
        ).to(mean.dtype)
    about = {"ess": trainer.ivon.param_groups[0]["ess"], "seconds": trainer.state.seconds}
    return Fitted(model_of(run.model, samples), about, trainer.validation_set)
