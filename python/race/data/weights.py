"""The weights of labels.

A frame of weight 2 counts twice in every loss, error and fit; so does the force on an
atom of weight 2. A weight of 0 removes the label: the force becomes NaN, the frame is
left out. Files have weights of frames in `info`, and of atoms in an array (a mask is
one). `data.config_weights` has those of a `config_type`. All weights of one frame
multiply.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ase
import numpy as np

from race.errors import RaceError

# Where `read_frames` keeps them, in info and in arrays
WEIGHT = "race_weight"
CONFIG_TYPE = "config_type"


@dataclass(frozen=True)
class Weighting:
    """key: under which frames and atoms have their weights; config_types: weight by
    info["config_type"], 1 of those that are not named.
    """

    key: str
    config_types: Mapping[str, float] = field(default_factory=dict)

    def of_frame(self, atoms: ase.Atoms, where: str) -> float:
        """Raises RaceError: no number, or a negative one."""
        own = _weights(atoms.info.get(self.key, 1.0), (), self.key, where)
        return float(own) * self.config_types.get(str(atoms.info.get(CONFIG_TYPE)), 1.0)

    def of_atoms(self, atoms: ase.Atoms, where: str) -> np.ndarray | None:
        """[n_atoms], or None: all alike. Raises RaceError likewise."""
        if self.key not in atoms.arrays:
            return None
        return _weights(atoms.arrays[self.key], (len(atoms),), self.key, where)


def _weights(value: object, shape: tuple[int, ...], key: str, where: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.shape != shape or not np.isfinite(array).all() or (array < 0).any():
        raise RaceError(
            f"{key} is no weight",
            where=where,
            expected="one number of at least 0" + (" for each atom" if shape else ""),
            got=repr(value)[:60],
            remedy="mend it, or set data.weight_key to another name",
        )
    return array


def frame_weight(atoms: ase.Atoms) -> float:
    """Weights of the energy and the stress of a frame from `read_frames`."""
    return float(atoms.info.get(WEIGHT, 1.0))


def force_weights(atoms: ase.Atoms) -> np.ndarray:
    """[n_atoms], of the forces of a frame from `read_frames`: that of the frame times those of
    the atoms.
    """
    return frame_weight(atoms) * atoms.arrays.get(WEIGHT, np.ones(len(atoms)))


def label_weights(frames: Sequence[ase.Atoms], label: str) -> np.ndarray:
    """Weights of all labels "energy", "forces" (one an atom) or "stress" that frames have."""
    if label != "forces":
        return np.array([frame_weight(atoms) for atoms in frames if label in atoms.info])
    parts = [np.zeros(0)]
    for atoms in frames:
        if "forces" in atoms.arrays:
            known = np.isfinite(atoms.arrays["forces"]).all(axis=1)
            parts.append(force_weights(atoms)[known])
    return np.concatenate(parts)
