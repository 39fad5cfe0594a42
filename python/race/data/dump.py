"""LAMMPS's text dumps (`dump custom`, `dump atom`) -> frames, with whatever columns
computes, fixes and variables wrote.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import ase
import numpy as np
from ase.data import atomic_numbers

from race.data.textfile import open_text
from race.errors import RaceError

# Columns of positions: plain, unwrapped, scaled, scaled and unwrapped. The first that a dump
# has is read.
POSITIONS = (("x", "y", "z"), ("xu", "yu", "zu"), ("xs", "ys", "zs"), ("xsu", "ysu", "zsu"))
ITEM = re.compile(r"ITEM: (TIMESTEP|TIME|UNITS|NUMBER OF ATOMS|BOX BOUNDS|ATOMS)\b(.*)")
NOT_KEPT = {
    "id",
    "type",
    "element",
    "mass",
    "mol",
    "proc",
    "procp1",
    "ix",
    "iy",
    "iz",
    *itertools.chain(*POSITIONS),
}


def is_dump(path: Path) -> bool:
    """Whether a file begins as LAMMPS's text dumps do."""
    try:
        with open_text(path) as stream:
            return stream.readline(20).startswith("ITEM:")
    except RaceError:
        return False


def read_dump(path: Path, elements: Sequence[str] | None = None) -> Iterator[ase.Atoms]:
    """Frames of a dump in units metal, atoms in the order of their ids.

    Positions are relative to the corner of the box. The step is info["timestep"]. Every
    numeric column beside ids, types and positions is an array under its name in the dump
    (`fx`, `c_u[1]`). Forces there are the model's, not labels.

    Args:
        path: the dump; .gz is unpacked.
        elements: the element of each LAMMPS type, for dumps without a column `element`.

    Raises:
        RaceError: not a dump, another unit system, a missing column, a type without
            element, a frame cut short.
    """
    with open_text(path) as stream:
        for k in itertools.count():
            header = _header(stream, f"{path}, frame {k}")
            if header is None:
                if k == 0:
                    raise RaceError("no frames", where=path)
                return
            yield _frame(stream, header, f"{path}, frame {k}", elements)


def _header(stream: IO[str], where: str) -> dict[str, list[str]] | None:
    """Name of each ITEM -> its lines, up to the atoms, whose column names come last; None at
    the end of the file.
    """
    items: dict[str, list[str]] = {}
    while line := stream.readline():
        if not items and not line.strip():
            continue
        match = ITEM.match(line)
        if match is None:
            raise RaceError(
                "not a LAMMPS dump",
                where=where,
                expected="a line ITEM: ...",
                got=repr(line.strip()[:40]),
            )
        name, words = match[1], match[2].split()
        if name == "ATOMS":
            return items | {"ATOMS": words}
        items[name] = list(itertools.islice(stream, 3 if name == "BOX BOUNDS" else 1))
        if name == "BOX BOUNDS":
            items["BOX WORDS"] = words
    if items:
        raise _cut_short(where)
    return None


def _cut_short(where: str) -> RaceError:
    return RaceError(
        "the dump ends inside this frame",
        where=where,
        remedy="wait until LAMMPS has written it, or cut the frame off",
    )


def _frame(
    stream: IO[str], header: dict[str, list[str]], where: str, elements: Sequence[str] | None
) -> ase.Atoms:
    if missing := {"TIMESTEP", "NUMBER OF ATOMS", "BOX BOUNDS"} - header.keys():
        raise RaceError(f"no ITEM: {sorted(missing)[0]}", where=where, got=" ".join(header))
    units = header.get("UNITS", ["metal"])[0].strip()
    if units != "metal":
        raise RaceError(
            "another unit system", where=where, expected="units metal (Angstrom, eV)", got=units
        )
    columns, n_atoms = header["ATOMS"], int(header["NUMBER OF ATOMS"][0])
    rows = [line.split() for line in itertools.islice(stream, n_atoms)]
    if len(rows) < n_atoms or any(len(row) != len(columns) for row in rows):
        raise _cut_short(where)
    table = dict(zip(columns, np.array(rows).reshape(n_atoms, len(columns)).T, strict=True))
    if "id" in table:
        order = np.argsort(table["id"].astype(np.int64), kind="stable")
        table = {name: values[order] for name, values in table.items()}
    cell, corner, pbc = _box(header["BOX BOUNDS"], header["BOX WORDS"], where)
    names = next((names for names in POSITIONS if set(names) <= table.keys()), None)
    if names is None:
        raise RaceError(
            "no positions",
            where=where,
            expected="columns x y z, xu yu zu, xs ys zs or xsu ysu zsu",
            got=" ".join(columns),
        )
    positions = np.stack([_numbers(table[name], name, where) for name in names], axis=1)
    positions = positions @ cell if names[0].startswith("xs") else positions - corner
    atoms = ase.Atoms(
        numbers=_atomic_numbers(table, elements, where), positions=positions, cell=cell, pbc=pbc
    )
    atoms.info["timestep"] = int(header["TIMESTEP"][0])
    for name in table.keys() - NOT_KEPT:
        atoms.arrays[name] = _numbers(table[name], name, where)
    return atoms


def _numbers(words: np.ndarray, name: str, where: str) -> np.ndarray:
    try:
        return words.astype(np.float64)
    except ValueError:
        raise RaceError(f"column {name} is not numeric", where=where, got=str(words[0])) from None


def _atomic_numbers(
    table: dict[str, np.ndarray], elements: Sequence[str] | None, where: str
) -> list[int]:
    if elements is None and "element" in table:
        symbols = [str(symbol) for symbol in table["element"]]
    elif "type" not in table:
        raise RaceError(
            "no elements", where=where, expected="a column element or type", got=" ".join(table)
        )
    elif elements is None:
        raise RaceError(
            "only LAMMPS types, no elements",
            where=where,
            remedy="write it with a column element (dump_modify ID element B N), or name each "
            "type's element, if the command has it: --elements B N",
        )
    else:
        types = table["type"].astype(np.int64)
        if types.size and not 1 <= types.min() <= types.max() <= len(elements):
            raise RaceError(
                "a type without element",
                where=where,
                expected=f"types 1 to {len(elements)}",
                got=int(types.max()),
            )
        symbols = [elements[k - 1] for k in types]
    if unknown := sorted(set(symbols) - set(atomic_numbers)):
        raise RaceError(
            "not a chemical element",
            where=where,
            got=unknown[0],
            remedy="name each type's element, e.g. --elements B N",
        )
    return [atomic_numbers[symbol] for symbol in symbols]


def _box(
    lines: list[str], words: list[str], where: str
) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Lattice vectors [3, 3], the corner from which positions count, and periodicity."""
    try:
        bounds = np.array([line.split() for line in lines], dtype=np.float64)
    except ValueError:
        bounds = np.empty(0)
    if bounds.shape not in ((3, 2), (3, 3), (3, 4)):
        raise RaceError(
            "box bounds are not readable",
            where=where,
            expected="three lines of 2, 3 or 4 numbers",
            got="".join(lines)[:60],
        )
    pbc = [word == "pp" for word in (words[-3:] if len(words) >= 3 else ["pp"] * 3)]
    if bounds.shape == (
        3,
        4,
    ):  # general triclinic: a vector and a coordinate of the origin on each line
        return bounds[:, :3], bounds[:, 3], pbc
    low, high = bounds[:, 0], bounds[:, 1]
    xy, xz, yz = bounds[:, 2] if bounds.shape == (3, 3) else (0.0, 0.0, 0.0)
    # A triclinic dump gives the bounding box (LAMMPS manual, Howto_triclinic).
    low = low - [min(0.0, xy, xz, xy + xz), min(0.0, yz), 0.0]
    high = high - [max(0.0, xy, xz, xy + xz), max(0.0, yz), 0.0]
    lx, ly, lz = high - low
    return np.array([[lx, 0.0, 0.0], [xy, ly, 0.0], [xz, yz, lz]]), low, pbc
