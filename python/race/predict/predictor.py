"""Predictors of frames: a model in memory, or an artifact through the runtime that LAMMPS uses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import ase
import torch
from torch import Tensor

from race.data.dataset import Dataset
from race.data.graph import Batch
from race.errors import RaceError
from race.heads import Capabilities
from race.model.race import RACE
from race.predict.device import available
from race.predict.moments import (
    bald,
    centred,
    joint_information,
    log_determinant,
    total_variance,
)
from race.predict.prediction import (
    Estimate,
    Labels,
    Prediction,
    batch_labels,
    concatenate,
    join_labels,
)

Progress = Callable[[int], Any]  # told how many frames are done


class Predictor(ABC):
    """Moments of frames. gives: which uncertainties it has; elements: those that it knows."""

    gives: Capabilities
    elements: list[str]

    @abstractmethod
    def predict(
        self,
        frames: Sequence[ase.Atoms],
        forces: bool = True,
        progress: Progress = lambda n: None,
        joint: bool = False,
    ) -> Prediction:
        """Predictions of all frames, in order; labels are not read. A target that is a mean
        over atoms has no forces. joint: the joint information, too.

        Raises:
            RaceError: no frames, an element that the model does not know.
        """


class ModelPredictor(Predictor):
    """A model in memory, frames in batches."""

    def __init__(self, model: RACE, batch_size: int = 8, device: str | None = None):
        self.model = model.to(available(device or "cpu", "--device")).eval()
        self.batch_size = batch_size
        self.gives = model.gives
        self.elements = model.constants.elements

    def dataset(self, frames: Sequence[ase.Atoms]) -> Dataset:
        """The structures as a data set of the model."""
        return Dataset(frames, self.elements, self.model.config.r_max, self.model.embedding.dtype)

    def predict(
        self,
        frames: Sequence[ase.Atoms],
        forces: bool = True,
        progress: Progress = lambda n: None,
        joint: bool = False,
    ) -> Prediction:
        """Predictions of structures; see `Predictor`."""
        if not frames:
            raise RaceError("no frames to predict")
        parts = []
        for batch in self.dataset(frames).batches(self.batch_size):
            batch = batch.to(self.model.embedding.device)
            forces = forces and not self.model.mean_pooling
            parts.append(predict_batch(self.model, batch, forces, joint))
            progress(batch.n_frames)
        return concatenate(parts)


def predict_batch(
    model: RACE, batch: Batch, forces: bool = True, joint: bool = False
) -> Prediction:
    """Moments of one batch, on the model's device."""
    gives, out = model.gives, model(batch, forces=forces).detach()
    constants = model.constants
    noise = None if out.energy_var is None else out.energy_var.double()
    own = None if out.energy_epistemic is None else out.energy_epistemic.double()
    energy = total_variance(
        out.energy.double(), _mean(noise), _mean(own), constants.energy_spread_factor
    )
    energy_bald = None
    if noise is not None and gives.energy_bald:
        energy_bald = bald(energy.total, noise.log().mean(1)).cpu().numpy()
    if out.forces is None:
        return Prediction(Estimate.of(energy), energy_bald=energy_bald)
    with torch.no_grad():
        aleatoric, epistemic = (
            None if cov is None else cov.double() for cov in model.own_forces_cov(out.raw)
        )
    spread = constants.forces_spread_factor
    on_atoms = total_variance(out.forces.double(), _mean(aleatoric), _mean(epistemic), spread)
    forces_bald = information = None
    if aleatoric is not None and gives.forces_bald:
        forces_bald = bald(on_atoms.total, log_determinant(aleatoric).mean(1)).cpu().numpy()
        if joint and noise is not None and model.n_members > 1:
            information = joint_information(
                energy,
                centred(out.energy.double(), constants.energy_spread_factor),
                on_atoms,
                centred(out.forces.double(), spread),
                batch.frame,
            ).numpy(force=True)
    assert out.stress is not None
    virial_cov = _mean(out.virial_cov)
    stress_noise = None
    if virial_cov is not None:
        stress_noise = virial_cov.double() / batch.volume.double()[:, None, None] ** 2
    stress = total_variance(out.stress.double(), stress_noise, spread=spread)
    return Prediction(
        Estimate.of(energy),
        Estimate.of(on_atoms),
        Estimate.of(stress),
        energy_bald,
        forces_bald,
        information=information,
    )


def _mean(members: Tensor | None) -> Tensor | None:
    """Over members, [n, M, ...] -> [n, ...]"""
    return None if members is None else members.mean(1)


def predict_dataset(
    model: RACE, dataset: Dataset, batch_size: int = 8
) -> tuple[Prediction, Labels]:
    """Moments and references of every frame, in the dataset's order; float64.

    Forces and stress are predicted where the dataset has force labels.

    Raises:
        RaceError: the dataset is empty.
    """
    if len(dataset) == 0:
        raise RaceError("no frames to evaluate")
    model.eval()
    with_forces = any(dataset.graph(k).forces is not None for k in range(len(dataset)))
    predictions, labels = [], []
    for batch in dataset.batches(batch_size):
        predictions.append(predict_batch(model, batch.to(model.embedding.device), with_forces))
        labels.append(batch_labels(batch, dataset.elements))
    return concatenate(predictions), join_labels(labels)
