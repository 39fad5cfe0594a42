"""The options of every posterior: the flags of `race fit`, which its help lists without the
modules that fit.
"""

from typing import Literal

from pydantic import Field, model_validator

from race.options import Options


class FitOptions(Options):
    """Options of a posterior; each becomes a flag of `race fit`, documented by its description."""

    def silenced(self) -> dict[str, str]:
        """Why an option changes nothing beside the others, by name; "" where it does."""
        return {}


class SampleOptions(FitOptions):
    """Options of posteriors that are sampled."""

    members: int = Field(
        default=8,
        ge=1,
        description="weight samples: members of the new run, in turn around each member of the run",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="of the samples (and of the order of the data, where a fit trains)",
    )


class EnsembleOptions(FitOptions):
    """The members are the runs'."""

    take: int | None = Field(
        default=None, ge=0, description="keep this member alone, counted over all runs; none: all"
    )


class SwagOptions(SampleOptions):
    """How training goes on, and what is made of it."""

    epochs: int = Field(default=20, ge=1, description="epochs of training from the run's weights")
    start: float = Field(default=5.0, ge=0, description="epochs before the first snapshot")
    every: float = Field(
        default=0.5,
        gt=0,
        description="epochs between snapshots; a fraction is rounded to steps, at least one",
    )
    rank: int = Field(
        default=20,
        ge=2,
        description="K: the last K snapshots are kept; memory is K and about ten copies of the "
        "weights",
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="of the run's optimiser; none: a tenth of the run's"
    )
    schedule: Literal["constant", "cyclic"] = Field(
        default="constant",
        description="cyclic: falls linearly to 1 % between snapshots, which are taken at the "
        "bottom",
    )
    scale: float = Field(
        default=1.0, gt=0, description="factor on the deviations of the samples from the mean"
    )

    @model_validator(mode="after")
    def _enough(self) -> "SwagOptions":
        if self.start + 2 * self.every > self.epochs:
            raise ValueError(
                f"too short for two snapshots: start {self.start:g} + 2 * every {self.every:g} "
                f"exceed epochs {self.epochs}"
            )
        return self


class IvonOptions(SampleOptions):
    """How the posterior is trained."""

    epochs: int = Field(default=50, ge=1, description="epochs of training from the run's weights")
    learning_rate: float = Field(
        default=0.1, gt=0, description="step, in units of gradient / curvature"
    )
    ess: float | None = Field(
        default=None,
        gt=0,
        description="effective sample size; none: atoms / forces_weight, so that the loss is a log "
        "likelihood",
    )
    hess_init: float | None = Field(
        default=None,
        gt=0,
        description="initial h of every weight; none: the Fisher information of each",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="memory of the gradient")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="memory of the curvature")
    weight_decay: float | None = Field(
        default=None,
        gt=0,
        description="delta: ess * delta is the precision of the prior; none: 1 / ess, the prior of "
        "initial weights",
    )
    clip_radius: float = Field(
        default=0.01,
        gt=0,
        description="largest change of a weight in a step, before the learning rate",
    )


class LaplaceOptions(SampleOptions):
    """The curvature, and how it is estimated."""

    structure: Literal["diagonal", "last-layer"] = Field(
        default="last-layer",
        description="diagonal: of all weights; last-layer: in full, of the readouts' last weights",
    )
    probes: int = Field(default=4, ge=1, description="diagonal: random vectors per batch")
    batch_size: int = Field(
        default=4, ge=1, description="frames per pass; fewer make the diagonal's estimate better"
    )
    temperature: float | None = Field(
        default=None,
        gt=0,
        description="T, factor on the covariance; none: 1 for last-layer, the best on the "
        "validation set for diagonal",
    )

    def silenced(self) -> dict[str, str]:
        """The curvature of the last layer is computed, not estimated."""
        return {"probes": f"--structure is {self.structure}" * (self.structure != "diagonal")}


class LlprOptions(SampleOptions):
    """The curvature and its calibration."""

    members: int = Field(
        default=16, ge=2, description="samples of the last layers: members of the new run"
    )
    forces: bool = Field(
        default=False,
        description="force components are rows of F too: D / 16 further passes of 16 members over "
        "the data",
    )
    zeta: float | None = Field(
        default=None, gt=0, description="regulariser; none: chosen by held-out errors"
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        description="factor on the standard deviation, of energies and forces alike; none: one for "
        "each, by held-out errors",
    )
    calibration_frames: int = Field(
        default=32,
        ge=2,
        description="validation frames whose forces choose alpha and zeta, at most",
    )

    def silenced(self) -> dict[str, str]:
        """What is given is not chosen."""
        given = self.alpha is not None and self.zeta is not None
        return {"calibration_frames": "--alpha and --zeta are given" * given}


class PopsOptions(SampleOptions):
    """The points, and the shape of the distribution of samples."""

    members: int = Field(
        default=16, ge=2, description="samples of the last layers: members of the new run"
    )
    forces: bool = Field(
        default=True,
        description="force components are points too: D / 16 further passes of 16 members over "
        "the data",
    )
    shape: Literal["covariance", "hypercube"] = Field(
        default="covariance", description="of the distribution that samples are drawn from"
    )
    zeta: float | None = Field(
        default=None, gt=0, description="regulariser; none: 1e-4 of the largest singular value of F"
    )


class ShallowOptions(SampleOptions):
    """How training goes on."""

    members: int = Field(default=16, ge=2, description="readouts: members of the new run")
    epochs: int = Field(default=20, ge=1, description="epochs of training from the run's weights")
    learning_rate: float | None = Field(
        default=None, gt=0, description="of the run's optimiser; none: a tenth of the run's"
    )


class SveOptions(SampleOptions):
    """How training goes on."""

    members: int = Field(
        default=8, ge=2, description="sets of singular values: members of the new run"
    )
    epochs: int = Field(default=20, ge=1, description="epochs of training from the run's weights")
    learning_rate: float | None = Field(
        default=None, gt=0, description="of the run's optimiser; none: a tenth of the run's"
    )


class EvidentialOptions(FitOptions):
    """The validation set decides: there is nothing to choose."""


class LeverageOptions(FitOptions):
    """The training and validation sets decide: there is nothing to choose."""


class DistillOptions(FitOptions):
    """The student, its data and its training."""

    epochs: int = Field(default=50, ge=1, description="epochs over the frames and their copies")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="none: a fifth of the run's (all of it for a student that starts from nothing)",
    )
    member: int = Field(
        default=0, ge=0, description="of the ensemble, whose weights the student starts from"
    )
    copies: int = Field(default=1, ge=0, description="rattled copies of each training frame")
    rattle: float = Field(
        default=0.08,
        gt=0,
        description="largest standard deviation of the displacements, Angstrom; each has its own",
    )
    seed: int = Field(default=0, ge=0, description="of the copies and of the order of the data")

    def silenced(self) -> dict[str, str]:
        """Without copies nothing is rattled."""
        return {"rattle": "--copies is 0" * (self.copies == 0)}
