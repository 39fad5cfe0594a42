"""Systems of DeePMD-kit: folders with type.raw and arrays, as .npy in set.* or as .raw text.

Units are eV and Angstrom. The virial is -dE/dstrain in eV, positive under compression of a
solid: stress = -virial / volume. The mixed format has the types of each frame in
real_atom_types.npy, -1 being no atom.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols

from race.errors import RaceError

logger = logging.getLogger(__name__)

# Labels that change with these are not functions of the structure alone
PARAMETERS = ("fparam", "aparam")


def systems(folder: Path) -> list[Path]:
    """The folders in and below `folder` that hold a system.

    Raises:
        RaceError: there are none.
    """
    found = sorted(path.parent for path in folder.rglob("type.raw"))
    if not found:
        raise RaceError(
            "no DeePMD system",
            where=folder,
            expected="a folder with type.raw and set.*/coord.npy or coord.raw, or folders of them",
        )
    return found


def deepmd_frames(system: Path, elements: Sequence[str] = ()) -> Iterator[ase.Atoms]:
    """The frames of one system, with its labels as results of a calculator.

    Args:
        system: the folder.
        elements: symbols by type, in place of type_map.raw.

    Raises:
        RaceError: arrays that are missing or do not fit together, types without an element.
    """
    types = _read(system / "type.raw", integers=True).ravel()
    symbols = _symbols(system, elements)
    periodic = not (system / "nopbc").exists()
    sets = sorted(path for path in system.glob("set.*") if path.is_dir())
    for part in sets or [system]:
        yield from _set_frames(part, types, symbols, periodic)


def _symbols(system: Path, elements: Sequence[str]) -> list[str]:
    file = system / "type_map.raw"
    if not elements and not file.exists():
        raise RaceError(
            "no type_map.raw, so the elements of the types are unknown",
            where=system,
            remedy="give them with --elements, in the order of the types",
        )
    found = list(elements) or file.read_text().split()
    for symbol in found:
        if symbol not in chemical_symbols[1:]:
            raise RaceError(
                "not a chemical symbol",
                where="--elements" if elements else file,
                got=symbol,
                remedy="give the elements with --elements, in the order of the types",
            )
    return found


def _set_frames(
    part: Path, types: np.ndarray, symbols: list[str], periodic: bool
) -> Iterator[ase.Atoms]:
    coord = _array(part, "coord", None, 3 * len(types))
    if coord is None:
        raise RaceError("no coordinates", where=part, expected="coord.npy or coord.raw")
    n = len(coord)
    box = _array(part, "box", n, 9) if periodic else None
    if periodic and box is None:
        raise RaceError(
            "no cells",
            where=part,
            expected="box.npy or box.raw, or a file nopbc beside type.raw",
        )
    for name in PARAMETERS:
        if _file(part, name):
            logger.warning(
                f"{part}: {name} is not read; the model cannot tell frames apart that differ in it"
            )
    energy, force, virial = (
        _array(part, name, n, width)
        for name, width in (("energy", 1), ("force", 3 * len(types)), ("virial", 9))
    )
    if energy is None and force is None:
        raise RaceError("no labels", where=part, expected="energy or force, .npy or .raw")
    mixed = _array(part, "real_atom_types", n, len(types), integers=True)
    for k in range(n):
        of_frame = types if mixed is None else mixed[k]
        real = of_frame >= 0
        if of_frame[real].size == 0 or of_frame.max() >= len(symbols):
            raise RaceError(
                "a type without an element",
                where=f"{part}, frame {k}",
                expected=f"types 0 to {len(symbols) - 1} ({' '.join(symbols)})",
                got=of_frame.max(initial=-1),
                remedy="give all elements with --elements, in the order of the types",
            )
        atoms = ase.Atoms(
            [symbols[t] for t in of_frame[real]],
            coord[k].reshape(-1, 3)[real],
            cell=None if box is None else box[k].reshape(3, 3),
            pbc=periodic,
        )
        results: dict[str, float | np.ndarray] = {}
        if energy is not None:
            results["energy"] = float(energy[k, 0])
        if force is not None:
            results["forces"] = force[k].reshape(-1, 3)[real]
        if virial is not None and periodic:
            stress = -virial[k].reshape(3, 3) / atoms.get_volume()
            results["stress"] = stress.ravel()[[0, 4, 8, 5, 2, 1]]
        atoms.calc = SinglePointCalculator(atoms, **results)
        yield atoms


def _file(part: Path, name: str) -> Path | None:
    return next((f for f in (part / f"{name}.npy", part / f"{name}.raw") if f.exists()), None)


def _array(
    part: Path, name: str, n_frames: int | None, width: int, integers: bool = False
) -> np.ndarray | None:
    """[n_frames, width] of NAME.npy or NAME.raw; None: there is neither."""
    path = _file(part, name)
    if path is None:
        return None
    values = _read(path, integers)
    n = n_frames if n_frames is not None else values.size // max(width, 1)
    if values.size != n * width:
        raise RaceError(
            "does not fit the system",
            where=path,
            expected=f"{n} frames of {width} numbers" if n_frames else f"rows of {width} numbers",
            got=f"an array of shape {list(values.shape)}",
        )
    return values.reshape(n, width)


def _read(path: Path, integers: bool = False) -> np.ndarray:
    """The numbers of a file.

    Raises:
        RaceError: it is not readable.
    """
    kind = np.int64 if integers else np.float64
    try:
        values = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, ndmin=2)
        return values.astype(kind)
    except (OSError, ValueError, EOFError) as error:
        raise RaceError(f"cannot be read ({error})", where=path) from None
