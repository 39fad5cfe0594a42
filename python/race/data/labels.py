"""The labels and the geometry of one frame: found wherever ASE put them, converted, checked."""

from collections.abc import Mapping, Sequence

import ase
import numpy as np

from race.conventions import SIX_TO_VOIGT, six_from_matrix
from race.data.graph import ORIGIN, neighbors
from race.errors import RaceError

# Two nuclei closer than this (Angstrom) are one atom written twice, or a wrong cell; the
# shortest bond, H2's, is 0.74.
MIN_DISTANCE = 0.1


def normalize(
    atoms: ase.Atoms,
    keys: Mapping[str, str],
    factors: Mapping[str, float],
    require: Sequence[str] = (),
    where: str = "frame",
) -> ase.Atoms:
    """A checked copy of a frame with labels under standard names (see
    `race.data.io.read_frames`), without calculator.

    Args:
        atoms: as ASE made it.
        keys: name of "energy", "forces", "stress" in the frame's info, arrays or calculator.
        factors: what multiplies each label to reach eV and Angstrom.
        require: labels that must be there.
        where: file and frame, for messages; kept in info.

    Raises:
        RaceError: empty frame, NaN, duplicate atoms, a flat cell, a missing label, a
            label of wrong shape.
    """
    check_geometry(atoms, where)
    found = {label: _find(atoms, key) for label, key in keys.items()}
    for label in require:
        if found[label] is None:
            raise RaceError(
                f"no {label} under the key {keys[label]!r}",
                where=where,
                got=f"keys {' '.join(_available(atoms)) or '(none)'}",
                remedy=f"set data.{label}_key, or leave these frames out",
            )
    out = ase.Atoms(
        numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc
    )
    out.info = {
        key: value for key, value in atoms.info.items() if key not in ("energy", "forces", "stress")
    } | {ORIGIN: where}
    if found["energy"] is not None:
        energy = _numbers(found["energy"], keys["energy"], where)
        if energy.size != 1:
            raise RaceError(
                f"{keys['energy']} is not one number",
                where=where,
                got=f"shape {list(energy.shape)}",
            )
        out.info["energy"] = float(energy.reshape(())) * factors["energy"]
    if found["forces"] is not None:
        forces = _numbers(found["forces"], keys["forces"], where)
        if forces.shape != (len(atoms), 3):
            raise RaceError(
                f"{keys['forces']} has the wrong shape",
                where=where,
                expected=[len(atoms), 3],
                got=list(forces.shape),
            )
        out.arrays["forces"] = forces * factors["forces"]
    if found["stress"] is not None:
        six = six_stress(_numbers(found["stress"], keys["stress"], where), keys["stress"], where)
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


def _numbers(value: object, key: str, where: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise RaceError(f"{key} is not numeric", where=where, got=repr(value)[:40]) from None
    if not np.isfinite(array).all():
        row = np.argwhere(~np.isfinite(array))[0]
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
    cell = np.asarray(atoms.cell.array, dtype=np.float64)
    if not (np.isfinite(atoms.positions).all() and np.isfinite(cell).all()):
        raise RaceError(
            "positions or cell are not finite", where=where, remedy="leave this frame out"
        )
    if atoms.numbers.min() < 1:
        raise RaceError("an atom has no element", where=where, got=str(atoms.symbols))
    vectors = cell[atoms.pbc]
    # Volume (area, length) spanned by the periodic vectors, relative to that of perpendicular ones.
    lengths = np.linalg.norm(vectors, axis=1)
    if (lengths == 0).any() or (
        len(vectors) and np.linalg.svd(vectors / lengths[:, None], compute_uv=False)[-1] < 1e-4
    ):
        raise RaceError(
            "the periodic cell vectors span no volume",
            where=where,
            got=cell.tolist(),
            remedy="check Lattice and pbc",
        )
    # Sought within 1 A: a cell list of MIN_DISTANCE would have millions of cells.
    sender, receiver, vector = neighbors(atoms.positions, cell, atoms.pbc, 1.0)
    distance = np.linalg.norm(vector, axis=1)
    if distance.min(initial=np.inf) < MIN_DISTANCE:
        edge = distance.argmin()
        raise RaceError(
            f"atoms {receiver[edge]} and {sender[edge]} coincide",
            where=where,
            expected=f"at least {MIN_DISTANCE} A apart, periodic images included",
            got=f"{distance[edge]:.3g} A",
        )
