"""Predictions of a model that was trained on top of a baseline: the sum."""

from collections.abc import Sequence
from dataclasses import replace

import ase
import numpy as np

from race.config import BaselineOptions
from race.data.baseline import Baseline
from race.predict.prediction import Prediction


def with_baseline(
    found: Prediction, frames: Sequence[ase.Atoms], options: BaselineOptions
) -> Prediction:
    """A model's prediction of `frames` with the baseline added to its means. Uncertainties are the
    model's: a baseline has none.

    Raises:
        RaceError: the baseline fails.
    """
    baseline = Baseline(options)
    parts = [baseline.of(atoms) for atoms in frames]
    energy, forces, stress = found.energy, found.forces, found.stress
    energy = replace(energy, mean=energy.mean + np.array([part.energy for part in parts]))
    if forces is not None:
        forces = replace(forces, mean=forces.mean + np.concatenate([p.forces for p in parts]))
    if stress is not None:
        # NaN: there is none, as without a volume
        rows = [np.full(6, np.nan) if part.stress is None else part.stress for part in parts]
        stress = replace(stress, mean=stress.mean + np.array(rows))
    return replace(found, energy=energy, forces=forces, stress=stress)
