"""Files -> checked frames with labels under standard names and in standard units. Nothing
doubtful gets through.
"""

import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np

from race.conventions import HARTREE, KCAL_PER_MOL
from race.data.dump import is_dump, read_dump
from race.data.extxyz import extxyz_frames
from race.data.graph import ORIGIN, species_index
from race.data.labels import check_geometry, is_label, normalize
from race.data.notes import Notes, log
from race.data.qm9 import qm9_frames
from race.data.textfile import open_text, stem_suffix
from race.data.weights import Weighting
from race.errors import RaceError
from race.files import XYZ, write_atomic
from race.progress import progress

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
DATABASES = (".db", ".json")
# What VASP, Quantum ESPRESSO, CP2K, ORCA, FHI-aims, GPAW, NWChem, Gaussian and CASTEP write
UNCONVERGED = re.compile(
    "EDIFF was not reached|self-consistency was not achieved|convergence NOT achieved|"
    "SCF run NOT converged|SCF NOT CONVERGED|consistency cycle not converged|Did not converge!|"
    "Calculation failed to converge|Convergence failure|has not reached the groundstate"
)
_LONG_READ = 8_000_000  # bytes; about a second


def read_frames(path: str | Path, **options: Any) -> list[ase.Atoms]:
    """The frames of `iter_frames`, which has the options, in a list."""
    return list(iter_frames(path, **options))


def iter_frames(
    path: str | Path,
    *,
    energy_key: str = "energy",
    forces_key: str = "forces",
    stress_key: str = "stress",
    units: str = "auto",
    require: Sequence[str] = ("energy", "forces"),
    frames: slice | Sequence[int] = slice(None),
    tolerance: "Tolerance | None" = None,
    wanted: Sequence[str] = (),
    weight_key: str | None = None,
    config_weights: Mapping[str, float] | None = None,
) -> Iterator[ase.Atoms]:
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
        tolerance: leaves bad frames out instead of raising.
        wanted: labels of which a frame needs one; of those that it lacks none may stand
            under another name.
        weight_key: of weights in info and arrays, which end up under WEIGHT
            (race.data.weights); frames of weight 0 are left out. None: no weights are read.
        config_weights: further ones, by config_type.

    Raises:
        RaceError: naming the file, the frame (counted from 0), what was expected, and the remedy.
    """
    path = Path(path)
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

    weighting = None if weight_key is None else Weighting(weight_key, config_weights or {})
    found = raw_frames(path, frames)
    n_frames, notes = 0, Notes()
    for k, atoms in shown_reading(found, path):
        where = f"{path}, frame {k}"
        try:
            if isinstance(atoms, RaceError):
                raise atoms
            _check_declared_units(atoms, units, where)
            if weighting is not None and weighting.of_frame(atoms, where) == 0.0:
                notes.add("frames of weight 0 are left out", k)
                continue
            frame = normalize(atoms, keys, factors, require, where, notes, wanted, weighting)
        except RaceError as error:
            if tolerance is None:
                raise
            tolerance.leave_out(error)
        else:
            n_frames += 1
            yield frame
    notes.say(path, n_frames)
    if not n_frames:
        raise RaceError("no frames", where=path)


def read_structures(
    path: Path,
    types: Sequence[str] | None = None,
    tolerance: "Tolerance | None" = None,
    known: Sequence[str] | None = None,
) -> Iterator[tuple[int, ase.Atoms]]:
    """(number, frame) of a file whose labels nobody looks at: the frame as the file has it, and
    in info[ORIGIN] where it is from.

    Args:
        path: as for `raw_frames`.
        types: likewise.
        tolerance: leaves bad frames out instead of raising.
        known: the elements of the model that is asked.

    Raises:
        RaceError: a frame that is no structure, or one of other elements.
    """
    for k, atoms in raw_frames(path, types=types):
        where = f"{path}, frame {k}"
        try:
            if isinstance(atoms, RaceError):
                raise atoms
            atoms.info[ORIGIN] = where
            _check_declared_lengths(atoms, where)
            check_geometry(atoms, where)
            if known is not None:
                species_index(atoms, known)
        except RaceError as error:
            if tolerance is None:
                raise
            tolerance.leave_out(error)
        else:
            yield k, atoms


class Tolerance:
    """How many bad frames are left out before one stops the work: `option` sets it."""

    def __init__(self, limit: int, option: str = "data.skip_bad_frames"):
        self.limit, self.option = limit, option
        self.left_out: list[str] = []

    def leave_out(self, error: RaceError) -> None:
        """Takes note of a frame, whose error says which and why.

        Raises:
            RaceError: there are too many.
        """
        if not self.limit:
            raise error
        self.left_out.append(str(error))
        log.warning("left out: %s", error)
        if len(self.left_out) > self.limit:
            raise RaceError(
                f"more bad frames than {self.option}; the last: {error}",
                expected=f"at most {self.limit}",
            )


def raw_frames(
    path: Path,
    frames: slice | Sequence[int] = slice(None),
    types: Sequence[str] | None = None,
) -> Iterator[tuple[int, ase.Atoms | RaceError]]:
    """The one reader behind training sets, pools and evaluation: (number, frame) as the file
    has them, with all labels. A frame that cannot be read gives a RaceError in its place, if
    the next one can be read.

    Args:
        path: extended xyz, a LAMMPS text dump, rMD17's npz, QM9's archive, or what else ASE
            reads; xyz and dumps may be compressed.
        frames: which; a list is read in the file's order.
        types: the element of each LAMMPS type, for dumps.

    Raises:
        RaceError: no such file, or it cannot be read on.
    """
    if not path.is_file():
        raise RaceError("is a folder, not a file" if path.is_dir() else "no such file", where=path)
    if path.suffix == ".npz":
        yield from _npz_frames(path, frames)
        return
    notes = Notes()
    n_frames = 0
    for item in _select(_items(path, types, notes), frames):
        n_frames += 1
        yield item
    notes.say(path, n_frames)


def _items(
    path: Path, types: Sequence[str] | None, notes: Notes
) -> Iterator[ase.Atoms | RaceError]:
    if path.name.endswith(".tar.bz2"):
        return iter(qm9_frames(path))
    if is_dump(path):
        return read_dump(path, types)
    if stem_suffix(path) in XYZ or _looks_like_xyz(path):
        return extxyz_frames(path, notes)
    return _ase_frames(path)


def _looks_like_xyz(path: Path) -> bool:
    """Whether a file whose suffix ASE does not know has a number alone on its first line."""
    if stem_suffix(path).lstrip(".") in ("traj", "db", "json", "cif", "vasp", "hdf5", "h5"):
        return False
    try:
        return ase.io.formats.filetype(str(path)) in ("extxyz", "xyz")
    except Exception:  # ASE raises anything
        with open_text(path) as stream:
            return stream.readline(20).strip().isdigit()


def _select(
    items: Iterable[ase.Atoms | RaceError], frames: slice | Sequence[int]
) -> Iterator[tuple[int, ase.Atoms | RaceError]]:
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
    _say_unconverged(path)
    try:
        # ASE takes what follows an @ in a name for the numbers of frames.
        whole = ase.io.iread(str(path), do_not_split_by_at_sign=True)
        for atoms in _rows(path) if path.suffix in DATABASES else whole:
            yield atoms
            count += 1
    except ase.io.formats.UnknownFileTypeError:
        raise RaceError(
            "no format is known by this name",
            where=path,
            expected="extxyz, ASE's traj or db, a LAMMPS text dump, rMD17 npz, or the output of a "
            "program that ASE reads",
            remedy="unpack it, or convert it to extxyz",
        ) from None
    except Exception as error:  # ASE's parsers raise anything, from StopIteration to AssertionError
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RaceError(
            f"ASE cannot read it ({what})",
            where=f"{path}, after {count} frames",
            expected="extxyz, ASE traj, a LAMMPS text dump or rMD17 npz",
            remedy="check that the file is whole and its suffix right",
        ) from error


def _rows(path: Path) -> Iterator[ase.Atoms]:
    """The rows of a database of ASE, with labels that stand in their key-value pairs or data."""
    import ase.db

    for row in ase.db.connect(str(path), serial=True).select():
        atoms = row.toatoms()
        atoms.info.update(row.key_value_pairs)
        atoms.info.update({name: value for name, value in row.data.items() if is_label(name)})
        yield atoms


def _say_unconverged(path: Path) -> None:
    """Warns of the output of a program whose self-consistency was not reached: its labels look
    like others.
    """
    if path.suffix in (*DATABASES, ".traj"):
        return
    with open_text(path) as stream:
        found = [match[0] for line in stream if (match := UNCONVERGED.search(line))]
    if found:
        log.warning(
            "%s: says %r (%d times): the labels of these steps are not converged",
            path,
            found[0],
            len(found),
        )


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
    for k in np.arange(n_frames)[
        frames if isinstance(frames, slice) else np.sort(np.asarray(frames, dtype=np.int64))
    ]:
        atoms = ase.Atoms(numbers=data["numbers"], positions=positions[k])
        if "energy" in data:
            atoms.info["energy"] = float(np.squeeze(data["energy"][k]))
        if "forces" in data:
            # Straight into the dict: a wrong shape is then refused by `normalize`, in its words.
            atoms.arrays["forces"] = np.asarray(data["forces"][k], dtype=np.float64)
        yield int(k), atoms


_UNIT_KEY = re.compile(
    r"^((energy|energies|forces?|stress|virial|pressure|length|distance|dist|positions?|pos|cell"
    r"|lattice)_?)?units?$"
)
# Lengths are Angstrom, so a word for it fits whatever the unit of energy.
_LENGTH_WORDS = {"angstrom", "angstroms", "ang", "a", "å", "metal"}


def _check_declared_units(atoms: ase.Atoms, units: str, where: str) -> None:
    """Some writers state units in the comment line; labels in a unit we were not told to
    expect are refused.
    """
    known = {*re.findall("[a-z]+", units.lower()), *_LENGTH_WORDS}
    for key, declared in atoms.info.items():
        if not isinstance(declared, str) or not _UNIT_KEY.match(key.lower()):
            continue
        if not set(re.findall("[a-zå]+", declared.lower())) <= known:
            remedy = (
                f"set data.units to {declared}"
                if declared in UNITS
                else "convert the file to eV and Angstrom"
            )
            raise RaceError(
                f"info[{key!r}] names another unit",
                where=where,
                expected=f"{units} and Angstrom",
                got=declared,
                remedy=remedy,
            )


def shown_reading(items: Iterable[Any], path: Path) -> Iterable[Any]:
    """The items, with a progress bar where reading takes long."""
    hidden = not path.is_file() or os.path.getsize(path) < _LONG_READ
    return progress(items, f"reading {path.name}", hidden=hidden)


# Words for lengths that are not Angstrom
_OTHER_LENGTHS = {"bohr", "bohrs", "au", "atomic", "nm", "nanometer", "nanometers", "pm", "lj"}


def _check_declared_lengths(atoms: ase.Atoms, where: str) -> None:
    """The same of structures alone: of what unit their labels are does not matter."""
    for key, declared in atoms.info.items():
        if not isinstance(declared, str) or not _UNIT_KEY.match(key.lower()):
            continue
        of_energy = re.match("energ|force|stress|virial|pressure", key.lower())
        words = set(re.findall("[a-zå]+", declared.lower()))
        if not of_energy and words & _OTHER_LENGTHS:
            raise RaceError(
                f"info[{key!r}] names another unit",
                where=where,
                expected="Angstrom",
                got=declared,
                remedy="convert positions and cell to Angstrom",
            )


def write_frames(path: Path, frames: Sequence[ase.Atoms]) -> None:
    """Extended xyz, replaced in one step."""
    text = io.StringIO()
    ase.io.write(text, list(frames), format="extxyz")
    write_atomic(path, text.getvalue().encode())
