"""Frames with what a model predicts of them, and every uncertainty of it."""

from collections.abc import Iterator, Sequence
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from race.conventions import SIX_TO_VOIGT, six_from_matrix
from race.data.graph import ORIGIN
from race.data.labels import without
from race.evaluate.evaluated import EvaluatedModel
from race.predict.prediction import Prediction

CHUNK = 32  # frames that are predicted, then written
# What a frame may have of labels and of earlier predictions
OWN = ["energy", "forces", "stress", "energy_std", "energy_epistemic_std", "energy_bald"]
OWN += ["stress_std", "forces_std", "forces_cov", "forces_cov_epistemic", "bald", "grade"]


def predicted(evaluated: EvaluatedModel, frames: Sequence[ase.Atoms]) -> Iterator[ase.Atoms]:
    """The frames one by one, as they are, with predictions under ASE's names and their uncertainty:

    info energy_std, energy_epistemic_std (eV), stress_std ([6], ASE's Voigt order,
    eV/Angstrom^3), energy_bald (nats); arrays forces_std [n, 3] (eV/Angstrom), forces_cov and
    forces_cov_epistemic [n, 6] in SIX_ORDER ((eV/Angstrom)^2), bald [n] (nats), grade [n] (of an
    artifact that knows its training set). A model that gives no uncertainty leaves them out.
    """
    for begin in range(0, len(frames), CHUNK):
        # Whatever labels there are, nobody looks at them
        chunk = [without(atoms, OWN) for atoms in frames[begin : begin + CHUNK]]
        found = evaluated.moments(chunk)
        ends = np.cumsum([len(atoms) for atoms in chunk])
        for k, (atoms, end) in enumerate(zip(chunk, ends, strict=True)):
            yield _with(atoms, found, k, slice(end - len(atoms), end))


def _with(atoms: ase.Atoms, found: Prediction, k: int, rows: slice) -> ase.Atoms:
    energy, forces, stress = found.energy, found.forces, found.stress
    out = without(atoms, (ORIGIN,))
    results: dict[str, Any] = {"energy": float(energy.mean[k])}
    if forces is not None:
        results["forces"] = forces.mean[rows]
    if energy.std[k] > 0:
        out.info["energy_std"] = float(energy.std[k])
        out.info["energy_epistemic_std"] = float(np.sqrt(energy.epistemic[k]))
    if forces is not None and forces.total[rows].any():
        out.arrays["forces_std"] = forces.std[rows]
        out.arrays["forces_cov"] = six_from_matrix(forces.total[rows])
        out.arrays["forces_cov_epistemic"] = six_from_matrix(forces.epistemic[rows])
    if stress is not None and np.isfinite(stress.mean[k]).all():
        results["stress"] = stress.mean[k][list(SIX_TO_VOIGT)]
        if (stress.std[k] > 0).all():
            out.info["stress_std"] = stress.std[k][list(SIX_TO_VOIGT)]
    if found.energy_bald is not None:
        out.info["energy_bald"] = float(found.energy_bald[k])
    if found.forces_bald is not None:
        out.arrays["bald"] = found.forces_bald[rows]
    if found.grade is not None:
        out.arrays["grade"] = found.grade[rows]
    out.calc = SinglePointCalculator(out, **results)
    return out
