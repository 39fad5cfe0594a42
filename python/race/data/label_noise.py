"""Noise of labels: how far they lie from what their own method would give, were it converged.

Forces of loose convergence and energies of quantum Monte Carlo scatter about their method.
`data.label_noise` gives the standard deviation by source. Each label then has that variance
beside the one that the model predicts,

    y = f + e,      e ~ N(0, Sigma + s^2 I),

in every likelihood, fit and calibration. `mse` has its constant variance in place of Sigma.
Thus noisy labels count less, and the model's own uncertainty is that of labels without noise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ase
import numpy as np

from race.errors import RaceError

# Where frames keep it, in info: three numbers, in the order of LABELS
NOISE = "race_noise"
LABELS = ("energy", "forces", "stress")

BySource = Mapping[str, Mapping[Any, float]]  # source -> label -> eV/atom, eV/A, eV/A^3


def set_noise(atoms: ase.Atoms, noise: Mapping[Any, float], *, mean: bool = False) -> None:
    """Keeps the noise of its source with a frame; `mean`: its energy is a mean over atoms."""
    energy, forces, stress = (float(noise.get(label, 0.0)) for label in LABELS)
    atoms.info[NOISE] = [energy if mean else len(atoms) * energy, forces, stress]


def frame_noise(atoms: ase.Atoms) -> np.ndarray:
    """[3] standard deviations: of the energy, of each force and each stress component; eV,
    eV/Angstrom, eV/Angstrom^3.
    """
    return np.array(atoms.info.get(NOISE, [0.0, 0.0, 0.0]), dtype=np.float64)


def refuse_unknown_sources(noise: BySource, sources: Sequence[str]) -> None:
    """Raises RaceError: data.label_noise names a source that no frame is of."""
    if unknown := [name for name in noise if name not in sources]:
        raise RaceError(
            f"no frame is of {unknown[0]}",
            where="data.label_noise",
            expected=", ".join(dict.fromkeys(sources)),
            got=", ".join(noise),
            remedy="data.source_key says what a source is",
        )
