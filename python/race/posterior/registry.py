"""The posteriors by name. Adding one is a module that keeps `race.posterior.protocol` and
a line here.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from race.config import ModelConfig
from race.posterior import options
from race.posterior.options import FitOptions

if TYPE_CHECKING:  # torch, which the help of `race fit` does without
    from race.posterior.protocol import Fitted


@dataclass(frozen=True)
class Posterior:
    """module: has `fit`, which takes these options; several_runs: it takes more than one."""

    module: str
    options: type[FitOptions]
    help: str
    several_runs: bool = False

    def fit(self) -> Callable[..., "Fitted"]:
        """The function `fit(runs, options, folder)`."""
        return importlib.import_module(self.module).fit


POSTERIORS = {
    "ensemble": Posterior(
        "race.posterior.ensemble",
        options.EnsembleOptions,
        "runs trained apart, stacked",
        several_runs=True,
    ),
    "swag": Posterior(
        "race.posterior.swag", options.SwagOptions, "a Gaussian from the path of further training"
    ),
    "ivon": Posterior(
        "race.posterior.ivon", options.IvonOptions, "a diagonal Gaussian, trained variationally"
    ),
    "laplace": Posterior(
        "race.posterior.laplace",
        options.LaplaceOptions,
        "a Gaussian from the curvature at the trained weights",
    ),
    "llpr": Posterior(
        "race.posterior.llpr",
        options.LlprOptions,
        "last-layer prediction rigidity: readouts drawn from their Gaussian posterior",
    ),
    "pops": Posterior(
        "race.posterior.pops",
        options.PopsOptions,
        "readouts that each fit one training point exactly: as wide as the model is wrong",
    ),
    "shallow": Posterior(
        "race.posterior.shallow",
        options.ShallowOptions,
        "readouts on one trunk, trained together with a likelihood",
    ),
    "sve": Posterior(
        "race.posterior.sve",
        options.SveOptions,
        "members that share all singular vectors and differ in the singular values",
    ),
    "evidential": Posterior(
        "race.posterior.evidential",
        options.EvidentialOptions,
        "a run with head evidential or eip, its total calibrated",
    ),
    "leverage": Posterior(
        "race.posterior.leverage",
        options.LeverageOptions,
        "one member whose epistemic part is its noise times the atoms' leverage",
    ),
    "distill": Posterior(
        "race.posterior.distill",
        options.DistillOptions,
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
