"""Oracles that label structures: programs (race.active.calculators), or files that have the
labels. Each structure once.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
from ase.calculators.singlepoint import SinglePointCalculator

from race.active.calculators import (
    CalculatorOracle,
    Label,
    LabelFailure,
    Oracle,
    as_label,
    as_lists,
)
from race.active.config import EXECUTION, OracleConfig
from race.conventions import SIX_TO_VOIGT
from race.data import read_frames
from race.data.fingerprint import fingerprint
from race.data.graph import ORIGIN
from race.data.labels import FIXED, without
from race.files import write_json


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
        """The label of a structure; `where` names it in errors."""
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
        """How many labels were computed, not read."""
        return self.oracle.calls

    def label(self, atoms: ase.Atoms, where: str) -> Label:
        """The label of a structure; `where` names it in errors."""
        if (label := self.kept(atoms)) is not None:
            return label
        self._keep(atoms, self.oracle.label(atoms, where))
        return _read(self._path(atoms))

    def kept(self, atoms: ase.Atoms) -> Label | None:
        """A label that is there already."""
        self.calls += 1
        path = self._path(atoms)
        return _read(path) if path.exists() else None

    def keep(self, atoms: ase.Atoms, label: Label) -> None:
        """Takes a label that was computed elsewhere."""
        self.oracle.calls += 1
        self._keep(atoms, label)

    def _keep(self, atoms: ase.Atoms, label: Label) -> None:
        write_json(self._path(atoms), as_lists(label))

    def _path(self, atoms: ase.Atoms) -> Path:
        name = hashlib.sha256(f"{self.identity} {fingerprint(atoms)}".encode()).hexdigest()[:32]
        return self.folder / f"{name}.json"


def _read(path: Path) -> Label:
    return as_label(json.loads(path.read_text()))


def make_oracle(
    config: OracleConfig, pool: Sequence[Path], keys: dict[str, Any], folder: Path
) -> CachedOracle:
    """The oracle of a config with its cache in `folder`."""
    oracle: Oracle
    if config.labels is not None:
        oracle = FileOracle(pool if config.labels == "pool" else config.labels, keys)
    else:
        oracle = CalculatorOracle(config)
    # Where and how often labels are computed does not change them
    identity = config.model_dump(mode="json", exclude=EXECUTION)
    return CachedOracle(oracle, json.dumps(identity, sort_keys=True), folder)


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
    """The structure with all that it had, and a label under ASE's names, as extended xyz holds
    it.
    """
    out = without(atoms, ("energy", "forces", "stress", ORIGIN, FIXED))
    out.calc = SinglePointCalculator(out, **label)
    return out
