"""Candidates for labelling: frames of any file that ASE reads, or of a LAMMPS dump, as they
are, with their origin.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ase
import numpy as np

import race._race
from race.data.dump import is_dump
from race.data.fingerprint import fingerprint
from race.data.graph import ORIGIN
from race.data.io import Tolerance, read_structures
from race.errors import RaceError

# Keywords of compute race/atom -> number of columns, and those that are followed by a
# probability
ROWS = [row for row in race._race.quantities() if row["per_atom"] and row["in_lammps"]]
KEYWORDS = {row["name"]: row["n_columns"] for row in ROWS}
INTERVALS = {row["name"] for row in ROWS if row["interval_of"]}


@dataclass(frozen=True)
class Candidate:
    """A frame of a pool.

    atoms: as the file has it, labels and all; source, index: the file and the frame's
    number in it; columns: what a dump knows of its uncertainty, keyword of compute
    race/atom -> [n_atoms] or [n_atoms, n_columns].
    """

    atoms: ase.Atoms
    source: Path
    index: int
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """File and frame, for messages."""
        return f"{self.source}, frame {self.index}"

    @property
    def bare(self) -> ase.Atoms:
        """The structure alone, which a model is asked about."""
        atoms = self.atoms
        bare = ase.Atoms(
            numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc
        )
        bare.info[ORIGIN] = self.where
        return bare

    @property
    def fingerprint(self) -> str:
        """The digest of the structure."""
        return fingerprint(self.atoms)


def read_pool(
    paths: Iterable[Path],
    elements: Sequence[str] | None = None,
    compute: str | None = None,
    tolerance: Tolerance | None = None,
    known: Sequence[str] | None = None,
) -> list[Candidate]:
    """Every frame of the files, in order.

    Args:
        paths: extended xyz, ASE trajectories or LAMMPS text dumps.
        elements: the element of each LAMMPS type, for dumps without a column `element`.
        compute: the LAMMPS command that made the dumps' columns `c_ID[k]`, as in the
            input script. Columns that dump_modify colname has given the name of a keyword
            need none.
        tolerance: leaves bad frames out instead of raising.
        known: the elements of the model that is asked.

    Raises:
        RaceError: no such file, not readable, a frame that is no structure, columns that
            the command does not explain.
    """
    out = []
    for path in paths:
        dump = is_dump(path)
        names = column_names(compute) if compute and dump else {}
        for k, atoms in read_structures(path, elements, tolerance, known):
            del atoms.info[ORIGIN]  # which a candidate knows, and a file of frames needs not
            columns = _columns(atoms, names, f"{path}, frame {k}") if dump else {}
            out.append(Candidate(_renamed(atoms, names) if dump else atoms, path, k, columns))
    if not out:
        raise RaceError("the pool is empty", expected="structures to choose from")
    return out


def column_names(compute: str) -> dict[str, list[str]]:
    """Keyword -> the columns of a dump that hold it.

    compute: `compute u all race/atom force/std force/cov`, with or without the first
    word; several are joined by ";".

    Raises:
        RaceError: not such a command, or a keyword that compute race/atom does not have.
    """
    out: dict[str, list[str]] = {}
    for command in compute.split(";"):
        words = command.split()
        words = words[1:] if words[:1] == ["compute"] else words
        if len(words) < 4 or words[2] != "race/atom":
            raise RaceError(
                "not a compute race/atom",
                where="--compute",
                expected='"u all race/atom force/std ..."',
                got=repr(command),
            )
        keywords, widths, rest = [], [], iter(words[3:])
        for word in rest:
            if word in KEYWORDS:
                width = KEYWORDS[word]
                word += f" {next(rest, '')}" if word in INTERVALS else ""
            else:
                raise RaceError(
                    "unknown keyword of compute race/atom",
                    where="--compute",
                    expected=" ".join(KEYWORDS),
                    got=word,
                )
            keywords.append(word)
            widths.append(width)
        name, first = f"c_{words[0]}", 1
        for keyword, width in zip(keywords, widths, strict=True):
            out[keyword] = (
                [name] if sum(widths) == 1 else [f"{name}[{first + k}]" for k in range(width)]
            )
            first += width
    return out


def _columns(atoms: ase.Atoms, names: dict[str, list[str]], where: str) -> dict[str, np.ndarray]:
    out = {
        keyword: atoms.arrays[keyword]
        for keyword, width in KEYWORDS.items()
        if width == 1 and keyword in atoms.arrays
    }
    for keyword, columns in names.items():
        if missing := [column for column in columns if column not in atoms.arrays]:
            got = " ".join(name for name in atoms.arrays if name not in ("numbers", "positions"))
            raise RaceError(
                f"no column {missing[0]} for {keyword}",
                where=where,
                expected=" ".join(columns),
                got=got or "none",
            )
        values = np.stack([atoms.arrays[column] for column in columns], axis=1)
        out[keyword] = values[:, 0] if len(columns) == 1 else values
    return out


def _renamed(atoms: ase.Atoms, names: dict[str, list[str]]) -> ase.Atoms:
    """Arrays under names that extended xyz can hold: c_u[1] becomes the keyword it stands
    for, force_std, force_cov_1, ...
    """
    known = {
        column: f"{keyword}_{k + 1}" if len(cols) > 1 else keyword
        for keyword, cols in names.items()
        for k, column in enumerate(cols)
    }
    for old in [name for name in atoms.arrays if name not in ("numbers", "positions")]:
        new = known.get(old, old)
        for character, replacement in (("/", "_"), ("[", "_"), ("]", ""), (" ", "_")):
            new = new.replace(character, replacement)
        atoms.arrays[new] = atoms.arrays.pop(old)
    return atoms
