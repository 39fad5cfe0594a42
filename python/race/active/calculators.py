"""Labels from programs: an ASE calculator, or LAMMPS's classical potentials. Imports neither
torch nor the rest of the data pipeline: it starts anew for each label of a labelling in processes.
"""

from abc import ABC, abstractmethod
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError

from race.active.config import OracleConfig
from race.calculators import make_calculator
from race.errors import RaceError

# energy: eV; forces: [n_atoms, 3] eV/A; stress: [6] eV/A^3 in ASE's Voigt order, where
# there is one
Label = dict[str, Any]


def as_lists(label: Label) -> dict[str, Any]:
    """For JSON; `as_label` is the inverse."""
    return {key: np.asarray(value).tolist() for key, value in label.items()}


def as_label(stored: dict[str, Any]) -> Label:
    """A label as it was before it became JSON."""
    return {key: value if key == "energy" else np.array(value) for key, value in stored.items()}


class LabelFailure(RaceError):
    """One structure that cannot be labelled, the oracle being in order."""


class Oracle(ABC):
    """`calls` counts the structures that were really computed."""

    calls = 0

    @abstractmethod
    def label(self, atoms: ase.Atoms, where: str) -> Label:
        """Raises LabelFailure, naming `where`, if the structure cannot be labelled; RaceError
        if none can.
        """


class CalculatorOracle(Oracle):
    """An ASE calculator, remade for each structure: nothing of one can leak into the next."""

    def __init__(self, config: OracleConfig):
        self.config = config

    def label(self, atoms: ase.Atoms, where: str) -> Label:
        """Energy, forces and, where the calculator has it, stress of a structure."""
        atoms = ase.Atoms(
            numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc
        )
        calculator = make_calculator(self.config, "oracle")
        self.calls += 1
        try:
            atoms.calc = calculator
            label: Label = {
                "energy": float(atoms.get_potential_energy()),
                "forces": np.asarray(atoms.get_forces(), dtype=np.float64),
            }
            if atoms.pbc.all():
                try:
                    label["stress"] = np.asarray(atoms.get_stress(), dtype=np.float64)
                except (NotImplementedError, PropertyNotImplementedError):
                    pass
        except (Exception, SystemExit) as error:  # a calculator may raise anything
            what = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise LabelFailure(f"the oracle failed ({what})", where=where) from error
        if label["forces"].shape != (len(atoms), 3):
            raise LabelFailure(
                "the oracle's forces are not those of the structure",
                where=where,
                expected=f"{len(atoms)} of 3 components",
                got=f"shape {list(label['forces'].shape)}",
            )
        if not all(np.isfinite(value).all() for value in label.values()):
            raise LabelFailure("the oracle's label is not finite", where=where)
        return label
