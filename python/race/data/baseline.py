"""A potential that a model is trained on top of (delta learning): dispersion, a repulsive core, a
classical force field. With b the baseline and m the model,

    E = m + b,   F = F_m + F_b,   stress = stress_m + stress_b.

The labels of training lose b; predictions, in Python, gain it again. In LAMMPS that is
pair_style hybrid/overlay (race.deploy.hybrid).
"""

from typing import Any, NamedTuple

import ase
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError

from race.calculators import make_calculator
from race.config import BaselineOptions
from race.conventions import SIX_TO_VOIGT
from race.data.graph import ORIGIN, cell_volume
from race.errors import RaceError

# The baseline's forces, in arrays of frames that have lost them
LOST = "race_baseline"


class Contribution(NamedTuple):
    """energy: eV; forces: [n_atoms, 3] eV/A; stress: [6] eV/A^3 in SIX_ORDER, None where there
    is no volume or the calculator gives none.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None


class Baseline:
    """Evaluates the baseline for one structure after the other.

    Raises:
        RaceError: the calculator cannot be made.
    """

    def __init__(self, options: BaselineOptions):
        self.options = options
        # Made here for its errors; None: it cannot be used again
        self._calculator: Any = make_calculator(options, "data.baseline")
        self._kept: tuple[bytes, bool] | None = None  # what it was used for

    def of(self, atoms: ase.Atoms) -> Contribution:
        """Raises RaceError: the calculator fails, or its numbers are not finite."""
        where = atoms.info.get(ORIGIN)
        bare = ase.Atoms(
            numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc
        )
        # A calculator that is kept need not set up anew at each step of dynamics; LAMMPS's
        # boxes that shrink-wrap cannot be kept
        key = (atoms.numbers.tobytes(), bool(atoms.pbc.all()))
        if self._calculator is None or self._kept not in (None, key):
            self._calculator = make_calculator(self.options, "data.baseline")
        calculator, self._calculator, self._kept = self._calculator, None, key
        stress = None
        try:
            bare.calc = calculator
            energy = float(bare.get_potential_energy())
            forces = np.array(bare.get_forces(), dtype=np.float64)
            if np.isfinite(cell_volume(bare)):
                try:
                    stress = np.array(bare.get_stress(), dtype=np.float64)[list(SIX_TO_VOIGT)]
                except (NotImplementedError, PropertyNotImplementedError):
                    pass
        except Exception as error:  # a calculator may raise anything
            what = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise RaceError(f"the baseline failed ({what[0]})", where=where) from error
        parts = (np.array(energy), forces, *([] if stress is None else [stress]))
        if not all(np.isfinite(part).all() for part in parts):
            raise RaceError("the baseline is not finite", where=where)
        self._calculator = calculator if atoms.pbc.all() else None
        return Contribution(energy, forces, stress)

    def subtract(self, atoms: ase.Atoms) -> None:
        """From the labels of a frame from `read_frames`, in place.

        Raises:
            RaceError: as `of`; a stress label, and a calculator without stress.
        """
        energy, forces, stress = self.of(atoms)
        if "energy" in atoms.info:
            atoms.info["energy"] -= energy
        if "forces" in atoms.arrays:
            atoms.arrays["forces"] = atoms.arrays["forces"] - forces
            atoms.arrays[LOST] = forces
        if "stress" in atoms.info:
            if stress is None:
                raise RaceError(
                    "the baseline has no stress, and the frame has one",
                    where=atoms.info.get(ORIGIN),
                    remedy="set data.stress_key to none, or take a calculator that has stress",
                )
            atoms.info["stress"] = atoms.info["stress"] - stress


def written_forces(atoms: ase.Atoms) -> np.ndarray:
    """[n_atoms, 3], as the file has them: a zero is a zero again to the last bit."""
    forces: np.ndarray = atoms.arrays["forces"]
    return forces + atoms.arrays[LOST] if LOST in atoms.arrays else forces
