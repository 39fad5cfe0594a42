"""Predictive moments of a model: mean, aleatoric and epistemic covariance of energy, forces
and stress.

Members m = 1..M are weight samples. By the law of total variance
    mean = <mean_m>,   aleatoric = <cov_m>,   epistemic = <(mean_m - mean)(mean_m -
                       mean)^T> (+ <epistemic_m>),
<.> being the average over members (so the variance is the population one, 1/M); the last
term is the evidential head's own.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from race.data.dataset import Dataset
from race.data.graph import Batch
from race.errors import RaceError
from race.model.heads import evidential_kappa
from race.model.race import RACE


@dataclass(frozen=True)
class Estimate:
    """A random quantity by its first two moments.

    mean [n] or [n, d]; aleatoric and epistemic: variances [n] or covariances [n, d, d],
    in the unit of mean squared.
    """

    mean: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Variance [n] or covariance [n, d, d] of the prediction."""
        return self.aleatoric + self.epistemic

    @property
    def std(self) -> np.ndarray:
        """Total standard deviation, in the shape of mean (marginal, per component)."""
        return marginal_std(self.total)


@dataclass(frozen=True)
class Prediction:
    """Energy of frames (eV), forces of atoms (eV/Angstrom), stress of frames (eV/Angstrom^3,
    six columns in SIX_ORDER).
    """

    energy: Estimate
    forces: Estimate | None = None
    stress: Estimate | None = None


@dataclass(frozen=True)
class Labels:
    """Reference values in the rows of a `Prediction`.

    energy [n_frames] eV; forces [n_atoms, 3] eV/Angstrom; stress [n_frames, 6]
    eV/Angstrom^3; frame [n_atoms] frame of each atom, ascending; n_atoms [n_frames];
    symbols [n_atoms]. Forces and stress: rows of NaN where a frame has none, None where
    no frame has any.
    """

    energy: np.ndarray
    forces: np.ndarray | None
    stress: np.ndarray | None
    frame: np.ndarray
    n_atoms: np.ndarray
    symbols: np.ndarray


def marginal_std(cov: np.ndarray) -> np.ndarray:
    """Standard deviations of a variance [n] or of the components of a covariance [n, d, d]."""
    return np.sqrt(cov if cov.ndim == 1 else np.diagonal(cov, axis1=-2, axis2=-1))


def law_of_total_variance(
    mean: np.ndarray, aleatoric: np.ndarray | None = None, epistemic: np.ndarray | None = None
) -> Estimate:
    """Combines M members.

    Args:
        mean: [n, M] or [n, M, d], each member's mean.
        aleatoric: [n, M] or [n, M, d, d], each member's own (co)variance; None for zero.
        epistemic: likewise, what a member holds to be epistemic (evidential head); None for zero.
    """
    mean = np.asarray(mean, dtype=np.float64)
    centre = mean.mean(axis=1)
    spread = mean - centre[:, None]
    between = (
        (spread**2).mean(axis=1)
        if mean.ndim == 2
        else np.einsum("nma,nmb->nab", spread, spread) / mean.shape[1]
    )
    if epistemic is not None:
        between = between + np.asarray(epistemic, dtype=np.float64).mean(axis=1)
    within = (
        np.zeros_like(between)
        if aleatoric is None
        else np.asarray(aleatoric, dtype=np.float64).mean(axis=1)
    )
    return Estimate(centre, within, between)


def predict_batch(model: RACE, batch: Batch, forces: bool = True) -> Prediction:
    """Moments of one batch, from the members' outputs of `model.forward`; NaN stress for
    frames without a volume.
    """
    out = {
        name: value.detach().double().cpu().numpy()
        for name, value in model(batch, forces=forces).tensors().items()
    }
    energy = law_of_total_variance(out["energy"], out.get("energy_var"))
    if not forces:
        return Prediction(energy)
    aleatoric = epistemic = None
    if model.has_forces_cov:
        raw = torch.from_numpy(out["raw"]).to(batch.edge_vector)
        with torch.no_grad():
            aleatoric = model.forces_cov(raw).double().cpu().numpy()
            if model.head == "evidential":
                epistemic = (
                    aleatoric / evidential_kappa(raw).double().cpu().numpy()[..., None, None]
                )
    noise = (
        out["virial_cov"] / batch.volume.double().cpu().numpy()[:, None, None, None] ** 2
        if model.has_stress_cov
        else None
    )
    stress = law_of_total_variance(out["stress"], noise)
    return Prediction(energy, law_of_total_variance(out["forces"], aleatoric, epistemic), stress)


def predict_dataset(
    model: RACE, dataset: Dataset, batch_size: int = 8
) -> tuple[Prediction, Labels]:
    """Moments and references of every frame, in the dataset's order; float64.

    Forces and stress are predicted where the dataset has force labels.

    Raises:
        RaceError: the dataset is empty or a frame has no energy.
    """
    if len(dataset) == 0:
        raise RaceError("no frames to evaluate")
    model.eval()
    device = next(model.parameters()).device
    with_forces = any(dataset.graph(k).forces is not None for k in range(len(dataset)))
    predictions, labels = [], []
    for batch in dataset.batches(batch_size):
        predictions.append(predict_batch(model, batch.to(device), with_forces))
        labels.append(batch_labels(batch, dataset.elements))
    return concatenate(predictions), join_labels(labels)


def batch_labels(batch: Batch, elements: list[str]) -> Labels:
    """References of one batch."""

    def rows(tensor: torch.Tensor | None, shape: tuple[int, int]) -> np.ndarray:
        return np.full(shape, np.nan) if tensor is None else tensor.double().cpu().numpy()

    if batch.energy is None or not bool(torch.isfinite(batch.energy).all()):
        raise RaceError("a frame to evaluate has no energy")
    symbols = np.array(elements)[batch.species.cpu().numpy()]
    forces, stress = rows(batch.forces, (batch.n_atoms, 3)), rows(batch.stress, (batch.n_frames, 6))
    n_atoms = batch.n_atoms_per_frame.cpu().numpy()
    return Labels(
        rows(batch.energy, (0, 0)), forces, stress, batch.frame.cpu().numpy(), n_atoms, symbols
    )


def join_labels(parts: list[Labels]) -> Labels:
    """Joins labels along their rows, renumbering frames."""
    joined: dict[str, Any] = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Labels)
    }
    joined["frame"] = np.repeat(np.arange(len(joined["n_atoms"])), joined["n_atoms"])
    for name in ("forces", "stress"):
        if np.isnan(joined[name]).all():
            joined[name] = None
    return Labels(**joined)


def concatenate(parts: Iterable):
    """Joins Estimates or Predictions along their rows."""
    parts = list(parts)
    if parts[0] is None:
        return None
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    kind = type(parts[0])
    return kind(
        *(concatenate(getattr(part, field.name) for part in parts) for field in fields(kind))
    )
