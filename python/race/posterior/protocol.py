"""The interface of a posterior: options, finished runs in, a model whose members are the
weight samples out.

Each posterior is an options class (`race.posterior.options`) and one module with

    def fit(runs: Sequence[Run], options: TheOptions, folder: Path) -> Fitted

`folder` is where the new run will be written: a fit that takes long may keep a checkpoint
in it and continues from what it finds there. `race.posterior.command` writes config.yaml,
model.safetensors and summary.json of the new run from what `fit` returns.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from race.config import RunConfig
from race.data import Dataset
from race.errors import RaceError
from race.model.race import RACE
from race.train.files import found_again
from race.train.prepare import Prepared, prepare
from race.train.run import load_run

T = TypeVar("T")


@dataclass
class Run:
    """A finished run to fit a posterior to: what `load_run` reads, and where from."""

    path: Path
    model: RACE
    config: RunConfig
    summary: dict[str, Any]
    _prepared: Prepared | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Reads a run's folder; raises RaceError as `load_run` does."""
        return cls(Path(path), *load_run(path))

    def as_trained(self) -> "Run":
        """Without the leverage that an earlier fit gave its member, and the factors with it."""
        if self.model.has_leverage:
            weights: dict[str, torch.Tensor] = dict(self.model.named_parameters())
            self.model.constants = self.model.constants.as_trained()
            self.model = model_of(self.model, weights)
            self.config = self.config.model_copy(update={"constants": self.model.constants})
        return self

    def prepare(self) -> Prepared:
        """The run's own training and validation sets, read once, exactly as it was trained on them.

        Raises:
            RaceError: the files cannot be read, or are no longer those of the training.
        """
        if self._prepared is not None:
            return self._prepared
        files = self.summary.get("training", {}).get("files", {})
        config = found_again(self.config, files, self.path)
        self._prepared = prepare(config, config.constants)
        return self._prepared


@dataclass
class Fitted:
    """The result of a fit.

    Attributes:
        model: on any device. Its config may differ from the run's in `n_members`, and in
            `head` if the fit changes it.
        about: figures of the fit for summary.json, e.g. a prior precision, of JSON types.
            A resumed fit gives `seconds`, those before included.
        validation: the run's validation set, on which the samples are compared with the
            run. None: the fit read no data.
        train: training options of the new run's config that differ from the first run's,
            e.g. the loss of a new head.
    """

    model: RACE
    about: dict[str, Any] = field(default_factory=dict)
    validation: Dataset | None = None
    train: dict[str, Any] = field(default_factory=dict)


def require_head(run: Run, allowed: Collection[str], posterior: str) -> None:
    """Refuses, in one line, a head for which a posterior has no meaning."""
    head = run.config.model.head
    if head not in allowed:
        expected = " or ".join(allowed)
        raise RaceError(
            f"no {posterior} posterior for this head",
            where=f"{run.path}, model.head",
            expected=expected,
            got=head,
        )


def require_one_member(run: Run, remedy: str) -> None:
    """Refuses an ensemble where a posterior is made of one trained network."""
    n_members = run.config.model.n_members
    if n_members != 1:
        raise RaceError(
            "the fit starts from one member",
            where=f"{run.path}, model.n_members",
            expected=1,
            got=n_members,
            remedy=remedy,
        )


def member_of(model: RACE, member: int) -> RACE:
    """One member of a model, as a model of one."""
    return model_of(
        model, {name: p.detach()[member : member + 1] for name, p in model.named_parameters()}
    )


def replicated(model: RACE, n_members: int) -> RACE:
    """`n_members` copies of a model of one member."""
    return model_of(
        model,
        {name: p.detach().expand(n_members, *p.shape[1:]) for name, p in model.named_parameters()},
    )


def assigned_members(n_samples: int, n_members: int) -> list[int]:
    """The member of the run that each sample is drawn around: 0, .., M-1, 0, ..: a mixture
    of equal weights where M divides it.
    """
    return [k % n_members for k in range(n_samples)]


def normal_draws(
    members: Sequence[int], shape: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    """Standard normal numbers for the samples of `assigned_members`: [len(members), *shape],
    float64, on the CPU.

    The n samples drawn around one member are centred, and widened by sqrt(n / (n - 1)).
    Each is still standard normal, and their mean is the member itself. Their spread (with
    1/n, as predictions are combined) is 1 on average. Independent draws would shift the
    mean of few samples by 1/sqrt(n) of the spread, which is what the mean prediction
    would then err by.
    """
    z = torch.randn(len(members), *shape, generator=generator, dtype=torch.float64)
    for member in set(members):
        rows = [k for k, other in enumerate(members) if other == member]
        if len(rows) > 1:
            z[rows] = (z[rows] - z[rows].mean(0)) * (len(rows) / (len(rows) - 1)) ** 0.5
    return z


def model_of(like: RACE, members: dict[str, torch.Tensor]) -> RACE:
    """A model with the architecture of `like` and the given weights, every parameter
    [n_members, ...]; the spread of its members is taken as it is. A leverage is of the
    weights that it was fitted to: there is none.
    """
    n_members = next(iter(members.values())).shape[0]
    parameter = next(like.parameters())
    model = RACE(
        like.config.model_copy(update={"n_members": n_members}),
        like.constants.with_spread(1.0).model_copy(update={"leverage": None}),
        parameter.dtype,
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(members[name])
    return model.eval()
