"""The posteriors by name. Adding one is a module that keeps `race.posterior.protocol` and
a line here.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from race.config import ModelConfig
from race.posterior.protocol import FitOptions, Fitted


@dataclass(frozen=True)
class Posterior:
    """module: has `fit` and the options class `options`; several_runs: it takes more than one."""

    module: str
    options: str
    help: str
    several_runs: bool = False

    def options_class(self) -> type[FitOptions]:
        """The options of the fit."""
        return getattr(importlib.import_module(self.module), self.options)

    def fit(self) -> Callable[..., Fitted]:
        """The function `fit(runs, options, folder)`."""
        return importlib.import_module(self.module).fit


POSTERIORS = {
    "ensemble": Posterior(
        "race.posterior.ensemble",
        "EnsembleOptions",
        "runs trained apart, stacked",
        several_runs=True,
    ),
    "swag": Posterior(
        "race.posterior.swag", "SwagOptions", "a Gaussian from the path of further training"
    ),
    "ivon": Posterior(
        "race.posterior.ivon", "IvonOptions", "a diagonal Gaussian, trained variationally"
    ),
    "laplace": Posterior(
        "race.posterior.laplace",
        "LaplaceOptions",
        "a Gaussian from the curvature at the trained weights",
    ),
    "llpr": Posterior(
        "race.posterior.llpr",
        "LlprOptions",
        "last-layer prediction rigidity: readouts drawn from their Gaussian posterior",
    ),
    "pops": Posterior(
        "race.posterior.pops",
        "PopsOptions",
        "readouts that each fit one training point exactly: as wide as the model is wrong",
    ),
    "shallow": Posterior(
        "race.posterior.shallow",
        "ShallowOptions",
        "readouts on one trunk, trained together with a likelihood",
    ),
    "evidential": Posterior(
        "race.posterior.evidential",
        "EvidentialOptions",
        "a run with the evidential head, its total calibrated",
    ),
    "distill": Posterior(
        "race.posterior.distill",
        "DistillOptions",
        "one member that predicts an ensemble's mean, noise and spread",
    ),
}


def posterior_name(model: ModelConfig, summary: Mapping[str, Any]) -> str:
    """The posterior that `race fit` made the run with; else `ensemble` for several
    members, `point` for one.
    """
    return summary.get("posterior", {}).get("name") or (
        "ensemble" if model.n_members > 1 else "point"
    )
