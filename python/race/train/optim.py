"""Optimiser, learning rate, clipping and weight averaging. Every parameter is [n_members,
...]: members are rows.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from race.config import TrainConfig
from race.train.soap import Soap

# Species features F at which every parameter has the same learning rate
FEATURES = 64


def rate_factor(name: str, parameter: nn.Parameter) -> float:
    """The factor on the learning rate of a parameter.

    A species' matrix is sum_f a_f W_f / sqrt(F). Adam moves each W_f by the rate, and so the
    matrix by sqrt(F) of it. With the factor sqrt(64 / F) a few features, which cost less,
    learn as fast as 64.
    """
    if not name.endswith("weight_product"):
        return 1.0
    return max(1.0, FEATURES / parameter.shape[1]) ** 0.5


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    config: TrainConfig,
    flat_matrices: Mapping[str, list[tuple[int, int]]],
) -> torch.optim.Optimizer:
    """Members stay independent in each. A group holds the parameters of one `rate_factor`,
    "factor".

    Args:
        flat_matrices: see `RACE.flat_matrices`.
    """
    groups: dict[float, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        factor = rate_factor(name, parameter)
        group = groups.setdefault(factor, {"params": [], "factor": factor, "shapes": []})
        group["params"].append(parameter)
        vector = [(1, parameter[0].numel())] if parameter.dim() < 3 else None
        group["shapes"].append(flat_matrices.get(name, vector))
    rate, betas = config.learning_rate, (0.9, config.beta2)
    if config.optimizer == "soap":
        return Soap(list(groups.values()), rate, betas)
    return torch.optim.Adam(
        list(groups.values()), rate, betas, amsgrad=config.optimizer == "amsgrad", fused=True
    )


def clip_per_member(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales each member's gradient to at most `max_norm` in the norm over all its
    parameters; returns the norms [n_members].
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads]).norm(
        dim=0
    )
    factor = (max_norm / norms).clamp(max=1.0)  # max_norm / 0 is inf, clamped to 1
    for grad in grads:
        grad.mul_(factor.view(-1, *[1] * (grad.dim() - 1)))
    return norms


class Ema:
    """Exponential moving average of the weights; early on with the shorter memory (1 + step)
    / (10 + step).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.parameters = list(parameters)
        self.decay = decay
        self.tensors = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after a step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, [p.detach() for p in self.parameters], 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model carries the averaged weights inside the context."""
        own = [p.data for p in self.parameters]
        try:
            for p, average in zip(self.parameters, self.tensors, strict=True):
                p.data = average
            yield
        finally:
            for p, data in zip(self.parameters, own, strict=True):
                p.data = data


class Schedule:
    """Learning rate: linear rise, then constant, cosine to 1 %, or halved on plateaus.

    Args:
        config: training options.
        n_steps: of the whole training; None: it ends with a time, of which `rate` is told
            the fraction that has passed.
    """

    RISE = 100  # steps; a tenth of a short run at most
    FINAL = 0.01
    FACTOR = 0.5

    def __init__(self, config: TrainConfig, n_steps: int | None):
        self.config = config
        self.n_steps = n_steps
        self.rise = self.RISE if n_steps is None else min(self.RISE, n_steps // 10)
        self.scale, self.best, self.stale = 1.0, math.inf, 0

    def rate(self, step: int, passed: float = 0.0) -> float:
        """The learning rate of a step, when the fraction `passed` of the time has passed."""
        rise = min(1.0, (step + 1) / (self.rise + 1))
        if self.n_steps is None:  # a tenth of a short time at most
            rise = min(1.0, max(rise, 10 * passed))
        if self.config.schedule == "cosine":
            phase = passed
            if self.n_steps is not None:
                phase = max(0, step - self.rise) / max(1, self.n_steps - self.rise)
            return (
                self.config.learning_rate
                * rise
                * (self.FINAL + (1 - self.FINAL) * 0.5 * (1 + math.cos(math.pi * min(1.0, phase))))
            )
        return self.config.learning_rate * rise * self.scale

    def observe(self, score: float) -> None:
        """Called after each validation with a score that should fall."""
        if score < self.best:
            self.best, self.stale = score, 0
        else:
            self.stale += 1
        if self.config.schedule == "plateau" and self.stale > self.config.patience:
            self.scale, self.stale = max(self.scale * self.FACTOR, self.FINAL), 0

    def state(self) -> dict[str, float]:
        """The state that a checkpoint keeps."""
        return {"scale": self.scale, "best": self.best, "stale": self.stale}

    def load(self, state: dict[str, float]) -> None:
        """Restores the result of `state`."""
        self.scale, self.best, self.stale = state["scale"], state["best"], int(state["stale"])
