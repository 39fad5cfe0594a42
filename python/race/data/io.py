"""Files -> checked frames with labels under standard names and in standard units. Nothing
doubtful gets through.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from rich.console import Console
from rich.progress import track

from race.conventions import HARTREE, KCAL_PER_MOL
from race.data.labels import normalize
from race.data.qm9 import qm9_frames
from race.errors import RaceError

# One unit of energy in eV; lengths are always Angstrom, so forces and stresses carry the
# same factor.
UNITS = {"eV": 1.0, "kcal/mol": KCAL_PER_MOL}
# A key that ends in its own unit (QM9's homo_Ha) is converted whatever `units` says.
KEY_UNITS = {"_Ha": HARTREE, "_eV": 1.0}
# rMD17's names, then MD17's.
NPZ_KEYS = {
    "numbers": ("nuclear_charges", "z"),
    "positions": ("coords", "R"),
    "energy": ("energies", "E"),
    "forces": ("forces", "F"),
}
_LONG_READ = 8_000_000  # bytes; about a second


def read_frames(
    path: str | Path,
    *,
    energy_key: str = "energy",
    forces_key: str = "forces",
    stress_key: str = "stress",
    units: str = "auto",
    require: Sequence[str] = ("energy", "forces"),
    frames: slice | Sequence[int] = slice(None),
) -> list[ase.Atoms]:
    """Reads extxyz, .traj, rMD17/MD17 .npz, QM9's .tar.bz2, or whatever else ASE can, and
    refuses bad data.

    Labels end up in info["energy"] (eV), arrays["forces"] (eV/Angstrom), info["stress"]
    (SIX_ORDER, eV/Angstrom^3); wherever they were: info, arrays or ASE's calculator. The
    calculator is dropped.

    Args:
        path: the file.
        energy_key: any per-frame scalar, so also QM9's `homo_Ha`. A key ending in _Ha is
            converted to eV; other scalars keep the file's unit.
        forces_key, stress_key: likewise; a stress key containing "virial" is read as
            -stress * volume.
        units: "eV", "kcal/mol", or "auto": kcal/mol for npz (as rMD17 is), eV for anything else.
        require: labels without which a frame is refused; any of "energy", "forces", "stress".
        frames: which frames to read; a list is read in the file's order.

    Raises:
        RaceError: naming the file, the frame (counted from 0), what was expected, and the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise RaceError("is a folder, not a file" if path.is_dir() else "no such file", where=path)
    npz = path.suffix == ".npz"
    if units == "auto":
        units = "kcal/mol" if npz else "eV"
    if units not in UNITS:
        raise RaceError(
            "unknown unit",
            where=path,
            expected=" or ".join(["auto", *UNITS]),
            got=repr(units),
            remedy="set data.units",
        )
    energy_unit = next(
        (unit for suffix, unit in KEY_UNITS.items() if energy_key.endswith(suffix)), UNITS[units]
    )
    keys = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    factors = {"energy": energy_unit, "forces": UNITS[units], "stress": UNITS[units]}

    raw = (
        _npz_frames(path, frames)
        if npz
        else _select(
            qm9_frames(path) if path.name.endswith(".tar.bz2") else _ase_frames(path), frames
        )
    )
    out = []
    for k, atoms in _shown(raw, path):
        where = f"{path}, frame {k}"
        _check_declared_units(atoms, units, where)
        out.append(normalize(atoms, keys, factors, require, where))
    if not out:
        raise RaceError("no frames", where=path)
    return out


def _select(
    items: Iterable[ase.Atoms], frames: slice | Sequence[int]
) -> Iterator[tuple[int, ase.Atoms]]:
    """The numbered frames that were asked for, reading no further than the last."""
    if isinstance(frames, slice):
        yield from itertools.islice(enumerate(items), frames.start, frames.stop, frames.step)
        return
    wanted = {int(k) for k in frames}
    for k, atoms in itertools.islice(enumerate(items), max(wanted, default=-1) + 1):
        if k in wanted:
            yield k, atoms


def _ase_frames(path: Path) -> Iterator[ase.Atoms]:
    count = 0
    try:
        for atoms in ase.io.iread(str(path)):
            yield atoms
            count += 1
    except Exception as error:  # ASE's parsers raise anything, from StopIteration to AssertionError
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RaceError(
            f"ASE cannot read it ({what})",
            where=f"{path}, after {count} frames",
            expected="extxyz, ASE traj or rMD17 npz",
            remedy="check that the file is whole and its suffix right",
        ) from error


def _npz_frames(path: Path, frames: slice | Sequence[int]) -> Iterator[tuple[int, ase.Atoms]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            found = {
                role: next((key for key in keys if key in names), None)
                for role, keys in NPZ_KEYS.items()
            }
            data = {role: archive[key] for role, key in found.items() if key is not None}
    except Exception as error:
        raise RaceError(f"not a readable npz ({str(error).splitlines()[0]})", where=path) from error
    if not {"numbers", "positions"} <= data.keys():
        expected = "nuclear_charges and coords (rMD17), or z and R (MD17)"
        raise RaceError(
            "arrays are missing",
            where=path,
            expected=expected,
            got=" ".join(sorted(names)) or "none",
        )
    positions = data["positions"]
    n_frames = len(positions)
    for role, values in data.items():
        if role != "numbers" and len(values) != n_frames:
            raise RaceError(
                f"array {found[role]} has the wrong length",
                where=path,
                expected=n_frames,
                got=len(values),
            )
    if positions.shape[1:] != (len(data["numbers"]), 3):
        expected = f"[n_frames, {len(data['numbers'])}, 3]"
        raise RaceError(
            "coordinates have the wrong shape",
            where=path,
            expected=expected,
            got=list(positions.shape),
        )
    for k in np.arange(n_frames)[frames if isinstance(frames, slice) else np.sort(frames)]:
        atoms = ase.Atoms(numbers=data["numbers"], positions=positions[k])
        if "energy" in data:
            atoms.info["energy"] = float(np.squeeze(data["energy"][k]))
        if "forces" in data:
            # Straight into the dict: a wrong shape is then refused by `normalize`, in its words.
            atoms.arrays["forces"] = np.asarray(data["forces"][k], dtype=np.float64)
        yield int(k), atoms


def _check_declared_units(atoms: ase.Atoms, units: str, where: str) -> None:
    """Some writers state units in the comment line; labels in a unit we were not told to
    expect are refused.
    """
    for key in ("units", "unit", "energy_units", "energy_unit"):
        declared = atoms.info.get(key)
        if isinstance(declared, str) and declared.lower() != units.lower():
            remedy = (
                f"set data.units to {declared}"
                if declared in UNITS
                else "convert the file to eV and Angstrom"
            )
            raise RaceError(
                f"info[{key!r}] names another unit",
                where=where,
                expected=units,
                got=declared,
                remedy=remedy,
            )


def _shown(items: Iterable[Any], path: Path) -> Iterable[Any]:
    """A progress bar on stderr, for long reads in a terminal only."""
    console = Console(stderr=True)
    hidden = not console.is_terminal or os.path.getsize(path) < _LONG_READ
    return track(
        items, description=f"reading {path.name}", console=console, transient=True, disable=hidden
    )
