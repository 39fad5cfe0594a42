"""The heads by name: what a readout predicts beside the energy; and the losses that train
them. These tables are the one place that knows what each can give; configs, losses,
posteriors and pages ask them.

A new loss is a row here, and its formula in race/train/loss.py. A new head is a row here,
its name in cpp/include/race/artifact.h, and its formula in race/model/heads.py and
cpp/src/covariance.h, if it has a covariance of its own form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

HeadName = Literal["point", "energy", "cholesky", "equivariant", "evidential", "eip"]
LossName = Literal["mse", "nll_e", "nll_jef", "evidential", "eip"]
Form = Literal["none", "cholesky", "log-Euclidean", "diagonal"]

# |a| of a log-Euclidean covariance sigma0^2 expm(a I + Q) is as the network gives it up to here,
# and ends 1 beyond: far from the data it is large, and exp(a) would be infinite. Deviations
# follow the network to e^-5 sigma0 = sigma0 / 148: a converged model errs by sigma0 / 100.
NOISE_BOUND = 10.0
# Of runs and artifacts from before it was one of their constants. Their deviations end at
# e^-2.5 sigma0 = sigma0 / 12, wherever their errors do
FIRST_NOISE_BOUND = 4.0


@dataclass(frozen=True)
class Head:
    """The channels that a head reads, and the uncertainties that it gives.

    Attributes:
        scalars: channels of l=0, the energy first.
        tensors: channels of l=2.
        covariance: the form in which the channels make the covariance of a force
            (race.model.heads.ForceCovariance).
        energy_noise: the head predicts a variance of the energy.
        own_epistemic: one member tells aleatoric from epistemic by itself.
        gives: all this in words.
    """

    scalars: int
    tensors: int = 0
    covariance: Form = "none"
    energy_noise: bool = False
    own_epistemic: bool = False
    gives: str = "no aleatoric part"

    @property
    def forces_noise(self) -> bool:
        """It predicts a covariance of forces."""
        return self.covariance != "none"


HEADS: dict[str, Head] = {
    "point": Head(scalars=1),
    "energy": Head(scalars=2, energy_noise=True, gives="energy variance"),
    "cholesky": Head(
        scalars=8,
        covariance="cholesky",
        energy_noise=True,
        gives="energy variance, 3x3 force covariance that does not rotate",
    ),
    "equivariant": Head(
        scalars=3,
        tensors=1,
        covariance="log-Euclidean",
        energy_noise=True,
        gives="energy variance, 3x3 force covariance",
    ),
    "evidential": Head(
        scalars=5,
        tensors=1,
        covariance="log-Euclidean",
        energy_noise=True,
        own_epistemic=True,
        gives="energy variance, 3x3 force covariance, own epistemic part",
    ),
    "eip": Head(
        scalars=5,
        tensors=3,
        covariance="diagonal",
        energy_noise=True,
        own_epistemic=True,
        gives="energy variance, variance of each force component that does not rotate, own "
        "epistemic part",
    ),
}
GAUSSIAN = [name for name, head in HEADS.items() if not head.own_epistemic]
OWN_EPISTEMIC = [name for name, head in HEADS.items() if head.own_epistemic]


def trained_head(metadata: Mapping[str, Any]) -> str:
    """The head that a user knows, of an artifact's metadata: their own entry `head` is what
    librace runs, which is `evidential` for every member that tells its own epistemic part.
    """
    return metadata["model"].get("head", metadata["head"])


@dataclass(frozen=True)
class LossForm:
    """The heads that a loss can train, and the noise that they learn by it.

    Attributes:
        heads: names of the heads.
        energy_noise: the term of energies is a likelihood with the head's variance; else
            the variance is a constant.
        forces_noise: the same of forces.
    """

    heads: list[str]
    energy_noise: bool = False
    forces_noise: bool = False


LOSSES: dict[str, LossForm] = {
    "mse": LossForm(list(HEADS)),
    "nll_e": LossForm([name for name in GAUSSIAN if HEADS[name].energy_noise], energy_noise=True),
    "nll_jef": LossForm(
        [name for name in GAUSSIAN if HEADS[name].forces_noise],
        energy_noise=True,
        forces_noise=True,
    ),
    "evidential": LossForm(["evidential"], energy_noise=True, forces_noise=True),
    "eip": LossForm(["eip"], energy_noise=True, forces_noise=True),
}


class Capabilities:
    """The uncertainties that a model gives.

    Args:
        about: its config, or the metadata of its artifact: n_members, head, stress_head.
        own_epistemic: one member tells aleatoric from epistemic, whatever its head.
    """

    def __init__(self, about: Mapping[str, Any], own_epistemic: bool = False):
        head = HEADS[about["head"]]
        self.ensemble = about["n_members"] > 1
        self.energy_noise, self.forces_noise = head.energy_noise, head.forces_noise
        self.stress_noise = about.get("stress_head", "none") != "none"
        self.energy = self.ensemble or self.energy_noise
        self.forces = self.ensemble or self.forces_noise
        self.forces_epistemic = self.ensemble or head.own_epistemic or own_epistemic
        self.stress = self.ensemble or self.stress_noise
        # Information about which member is right: members that differ, and noise to
        # measure it by
        self.energy_bald = self.ensemble and self.energy_noise
        self.forces_bald = self.forces_noise and self.forces_epistemic
