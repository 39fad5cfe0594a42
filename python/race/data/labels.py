"""The labels and the geometry of one frame: found wherever ASE put them, converted, checked."""

import re
from collections.abc import Iterable, Mapping, Sequence

import ase
import numpy as np
from ase.constraints import FixAtoms, FixCartesian

from race.conventions import SIX_TO_VOIGT, six_from_matrix
from race.data.graph import ORIGIN, neighbors
from race.data.label_noise import NOISE
from race.data.notes import Notes
from race.data.weights import WEIGHT, Weighting
from race.errors import RaceError

# Two nuclei closer than this (Angstrom) are one atom written twice, or a wrong cell; the
# shortest bond, H2's, is 0.74.
MIN_DISTANCE = 0.1
# Atoms of a frame: those that the calculation held in place.
FIXED = "fixed"

# Names under which people keep a label, in lower case; and what is no label though its name
# has the word.
ALIKE = {
    "energy": re.compile(r"energy|etot|e_tot|toten|(^|_)(u0|e0)($|_)"),
    "forces": re.compile(r"forces?($|_|\d)|_frc|(^|_)(frc|f|fx|force_?x)$|gradient"),
    "stress": re.compile(r"stress|virial|pressure"),
}
NO_LABEL = re.compile(
    r"unit|weight|std|var$|_cov|mask|scale|shift|per_atom|energies|stresses|virials?_atom"
    r"|interval|members|bald|aleatoric|epistemic|atomic|max|rms|norm|cutoff|convergence"
)


def normalize(
    atoms: ase.Atoms,
    keys: Mapping[str, str],
    factors: Mapping[str, float],
    require: Sequence[str] = (),
    where: str = "frame",
    notes: Notes | None = None,
    wanted: Sequence[str] = (),
    weighting: Weighting | None = None,
) -> ase.Atoms:
    """A checked copy of a frame with labels under standard names (see
    `race.data.io.read_frames`), without calculator.

    A label of NaN is missing, and so is the NaN row of one atom's force. The force on an
    atom that is marked as fixed is missing if it was written as zero.

    Args:
        atoms: as ASE made it.
        keys: name of "energy", "forces", "stress" in the frame's info, arrays or calculator.
        factors: what multiplies each label to reach eV and Angstrom.
        require: labels that must be there.
        where: file and frame, for messages; kept in info.
        notes: collects what was assumed.
        wanted: labels that may be missing, at least one of them being there, but not stand
            under another name.
        weighting: where weights are; None: all labels count alike.

    Raises:
        RaceError: empty frame, NaN, duplicate atoms, a flat cell, a missing label, a
            label of wrong shape.
    """
    check_geometry(atoms, where)
    notes = Notes() if notes is None else notes
    found = {label: _find(atoms, key) for label, key in keys.items()}
    values = {
        label: None if value is None else _numbers(value, keys[label], where, label == "forces")
        for label, value in found.items()
    }
    for label in dict.fromkeys((*require, *wanted)):
        if values[label] is None:
            others = alike(atoms, label, keys[label])
            if label not in require and not others:
                continue
            got = f"keys {' '.join(_available(atoms)) or '(none)'}"
            hint = f"did you mean data.{label}_key: {others[0]}? Else " if others else ""
            raise RaceError(
                f"no {label} under the key {keys[label]!r}",
                where=where,
                got="NaN" if found[label] is not None else got,
                remedy=f"{hint}set data.{label}_key, or leave these frames out",
            )
    if wanted and all(values[label] is None for label in wanted):
        raise RaceError(
            "no label",
            where=where,
            expected=" or ".join(f"{label} under the key {keys[label]!r}" for label in wanted),
            got=f"keys {' '.join(_available(atoms)) or '(none)'}",
            remedy=f"set data.{wanted[0]}_key, or leave these frames out",
        )
    _note_others(atoms, keys, values, notes, where)
    out = ase.Atoms(
        numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc
    )
    own = ("energy", "forces", "stress", WEIGHT, NOISE)
    out.info = {key: value for key, value in atoms.info.items() if key not in own}
    out.info[ORIGIN] = where
    of_atoms = None
    if weighting is not None:
        if (weight := weighting.of_frame(atoms, where)) != 1.0:
            out.info[WEIGHT] = weight
        if (of_atoms := weighting.of_atoms(atoms, where)) is not None:
            out.arrays[WEIGHT] = of_atoms
    if (energy := values["energy"]) is not None:
        if energy.size != 1:
            raise RaceError(
                f"{keys['energy']} is not one number",
                where=where,
                got=f"shape {list(energy.shape)}",
            )
        out.info["energy"] = float(energy.reshape(())) * factors["energy"]
    fixed = fixed_atoms(atoms)
    if fixed.any():
        out.arrays[FIXED] = fixed
    if (forces := values["forces"]) is not None:
        if forces.shape != (len(atoms), 3):
            raise RaceError(
                f"{keys['forces']} has the wrong shape",
                where=where,
                expected=[len(atoms), 3],
                got=list(forces.shape),
            )
        forces = forces * factors["forces"]
        if fixed.any() and not forces[fixed].any() and forces[~fixed].any():
            forces[fixed] = np.nan
            notes.add(
                "the forces of fixed atoms are written as zero: they are left out as missing",
                frame_number(where),
            )
        if of_atoms is not None:
            forces = np.where(of_atoms[:, None] > 0, forces, np.nan)
        if not np.isnan(forces).all():
            out.arrays["forces"] = forces
    if (stress := values["stress"]) is not None:
        six = six_stress(stress, keys["stress"], where)
        if atoms.pbc.all():
            # The virial is -stress * volume (race.conventions).
            volume = -atoms.get_volume() if "virial" in keys["stress"].lower() else 1.0
            out.info["stress"] = six * factors["stress"] / volume
        elif "stress" in require:
            raise RaceError(
                "stress of a frame that is not periodic in 3D",
                where=where,
                expected="pbc T T T",
                got=f"pbc {atoms.pbc}",
            )
    return out


def six_stress(stress: np.ndarray, key: str, where: str) -> np.ndarray:
    """ASE's Voigt 6, a 3x3 matrix or its nine numbers -> [6] in SIX_ORDER."""
    if stress.shape == (6,):
        return stress[list(SIX_TO_VOIGT)]
    if stress.shape in ((3, 3), (9,)):
        matrix = stress.reshape(3, 3)
        if not np.allclose(
            matrix, matrix.T, rtol=1e-3, atol=1e-6 * np.abs(matrix).max(initial=1.0)
        ):
            raise RaceError(
                f"{key} is not symmetric",
                where=where,
                got=matrix.tolist(),
                remedy="check the order of its columns",
            )
        return six_from_matrix((matrix + matrix.T) / 2)
    raise RaceError(
        f"{key} has the wrong shape",
        where=where,
        expected="[6] (Voigt) or [3, 3]",
        got=list(stress.shape),
    )


def _find(atoms: ase.Atoms, key: str) -> object | None:
    # ASE's readers move the names they know into a SinglePointCalculator and leave the
    # others in info or arrays.
    results = {} if atoms.calc is None else atoms.calc.results
    return next(
        (place[key] for place in (atoms.info, atoms.arrays, results) if place.get(key) is not None),
        None,
    )


def _available(atoms: ase.Atoms) -> list[str]:
    results = {} if atoms.calc is None else atoms.calc.results
    geometry = {"numbers", "positions", ORIGIN}
    return sorted((set(atoms.info) | set(atoms.arrays) | set(results)) - geometry)


def frame_number(where: str) -> int:
    """The number in "file, frame k"."""
    match = re.search(r"frame (\d+)$", where)
    return int(match[1]) if match else 0


def without(atoms: ase.Atoms, names: Iterable[str]) -> ase.Atoms:
    """A copy with all that a frame has but its calculator and these entries."""
    out = atoms.copy()
    for name in names:
        out.info.pop(name, None)
        out.arrays.pop(name, None)
    return out


def fixed_atoms(atoms: ase.Atoms) -> np.ndarray:
    """bool [n_atoms]: those that a constraint of ASE (`move_mask` of extended xyz, selective
    dynamics) holds in place altogether.
    """
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
        elif isinstance(constraint, FixCartesian) and np.all(constraint.mask):
            fixed[constraint.index] = True
    return fixed


def is_label(name: str) -> bool:
    """Whether a name is one under which people keep a label."""
    name = name.lower()
    return not NO_LABEL.search(name) and any(known.search(name) for known in ALIKE.values())


def alike(atoms: ase.Atoms, label: str, key: str) -> list[str]:
    """Keys of a frame, other than `key`, whose name and size are those of such a label."""
    results = {} if atoms.calc is None else atoms.calc.results
    sizes = {"energy": (1,), "forces": (3 * len(atoms), len(atoms)), "stress": (6, 9)}
    places = (atoms.arrays, results) if label == "forces" else (atoms.info, results)
    out = []
    for place in places:
        for name, value in place.items():
            if name == key or not ALIKE[label].search(name.lower()):
                continue
            if (
                NO_LABEL.search(name.lower())
                or ALIKE["stress"].search(name.lower())
                and (label != "stress")
            ):
                continue
            array = np.asarray(value)
            if (
                array.dtype.kind in "fi"
                and array.size in sizes[label]
                and not np.isnan(array).all()
            ):
                out.append(name)
    return sorted(out, key=lambda name: (name.lower() != key.lower(), len(name), name))


def _note_others(
    atoms: ase.Atoms,
    keys: Mapping[str, str],
    values: Mapping[str, np.ndarray | None],
    notes: Notes,
    where: str,
) -> None:
    """Says which of two candidates for a label is read, if they differ."""
    for label, value in values.items():
        if value is None:
            continue
        for name in alike(atoms, label, keys[label]):
            other = np.asarray(_find(atoms, name), dtype=np.float64)
            if label != "stress" and (
                other.size != value.size or not np.allclose(other.ravel(), value.ravel())
            ):
                notes.add(
                    f"{name} stands beside {keys[label]} and differs: {keys[label]} is read "
                    f"(data.{label}_key)",
                    frame_number(where),
                )


def _numbers(value: object, key: str, where: str, by_atom: bool) -> np.ndarray | None:
    """As float64; None for what is NaN throughout, which is how a missing label is written.
    Rows of NaN stay if `by_atom`: atoms without a force.
    """
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise RaceError(f"{key} is not numeric", where=where, got=repr(value)[:40]) from None
    if np.asarray(value).dtype == bool:
        raise RaceError(f"{key} is true or false, not a number", where=where, got=value)
    if array.size and np.isnan(array).all():
        return None
    bad = ~np.isfinite(array)
    if by_atom and array.ndim == 2:
        bad[np.isnan(array).all(axis=1)] = False
    if bad.any():
        row = np.argwhere(bad)[0]
        place = f" at {[int(i) for i in row]}" if row.size else ""
        raise RaceError(
            f"{key} is not finite{place}",
            where=where,
            got=array[tuple(row)],
            remedy="leave this frame out",
        )
    return array


def check_geometry(atoms: ase.Atoms, where: str) -> None:
    """Refuses empty frames, positions that are not finite, atoms that coincide, cells
    without volume.
    """
    if len(atoms) == 0:
        raise RaceError("empty frame (0 atoms)", where=where)
    if atoms.numbers.min() < 1:
        raise RaceError("an atom has no element", where=where, got=str(atoms.symbols))
    cell = np.asarray(atoms.cell.array, dtype=np.float64)
    # Sought within 1 A: a cell list of MIN_DISTANCE would have millions of cells.
    sender, receiver, vector = neighbors(atoms.positions, cell, atoms.pbc, 1.0, where)
    distance = np.linalg.norm(vector, axis=1)
    if distance.min(initial=np.inf) < MIN_DISTANCE:
        edge = distance.argmin()
        raise RaceError(
            f"atoms {receiver[edge]} and {sender[edge]} coincide",
            where=where,
            expected=f"at least {MIN_DISTANCE} A apart, periodic images included",
            got=f"{distance[edge]:.3g} A",
        )
