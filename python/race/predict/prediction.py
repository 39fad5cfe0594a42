"""Predictions and labels of frames, row by row, in NumPy and float64."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import ase
import numpy as np
import torch

from race.data.graph import Batch
from race.predict.moments import Moments


@dataclass(frozen=True)
class Estimate:
    """A random quantity by its first two moments.

    mean [n] or [n, d]; aleatoric and epistemic: variances [n] or covariances [n, d, d],
    in the unit of mean squared.
    """

    mean: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray

    @classmethod
    def of(cls, moments: Moments) -> "Estimate":
        """Converts moments on any device to float64 arrays."""
        parts = (moments.mean, moments.aleatoric, moments.epistemic)
        return cls(*(part.detach().double().cpu().numpy() for part in parts))

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
    six columns in SIX_ORDER; NaN without a volume).

    energy_bald [n_frames], forces_bald [n_atoms]: nats, what the true energy or force would
    tell about which member is right. grade [n_atoms]: how unlike the training set an atom is,
    1 at its 99.9 % quantile. information [n_frames, M, M]: what both would tell
    (`race.predict.moments.joint_information`). None: not asked for, or not given by the model.
    """

    energy: Estimate
    forces: Estimate | None = None
    stress: Estimate | None = None
    energy_bald: np.ndarray | None = None
    forces_bald: np.ndarray | None = None
    grade: np.ndarray | None = None
    information: np.ndarray | None = None


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


def batch_labels(batch: Batch, elements: list[str]) -> Labels:
    """References of one batch."""

    def rows(tensor: torch.Tensor | None, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, np.nan) if tensor is None else tensor.double().cpu().numpy()

    symbols = np.array(elements)[batch.species.cpu().numpy()]
    forces, stress = rows(batch.forces, (batch.n_atoms, 3)), rows(batch.stress, (batch.n_frames, 6))
    n_atoms = batch.n_atoms_per_frame.cpu().numpy()
    energy = rows(batch.energy, (batch.n_frames,))
    return Labels(energy, forces, stress, batch.frame.cpu().numpy(), n_atoms, symbols)


def frame_labels(frames: Iterable[ase.Atoms]) -> Labels:
    """References of frames from `read_frames`."""

    def label(place: dict[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(place.get(name, np.full(shape, np.nan)), dtype=np.float64)

    return join_labels(
        [
            Labels(
                energy=label(atoms.info, "energy", ()).reshape(1),
                forces=label(atoms.arrays, "forces", (len(atoms), 3)),
                stress=label(atoms.info, "stress", (6,)).reshape(1, 6),
                frame=np.zeros(len(atoms), dtype=np.int64),
                n_atoms=np.array([len(atoms)]),
                symbols=np.array(atoms.get_chemical_symbols()),
            )
            for atoms in frames
        ]
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


def concatenate(parts: Iterable[Any]) -> Any:
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
