"""Whether energies follow from forces. Between two structures that lie close together

    E_b - E_a = -1/2 (F_a + F_b) . u + V/2 (sigma_a + sigma_b) : strain + O(u^3)

(the trapezoidal rule; exact where forces are linear), u the displacements apart from the strain of
the cell. Gradients in place of forces turn the sign, another unit of either changes the slope, and
so does the energy of an atom for that of the frame.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import ase
import numpy as np

from race.conventions import matrix_from_six
from race.data.graph import ORIGIN

CLOSE = 0.5  # Angstrom, the farthest that an atom may have moved between two frames
STRAIN = 0.1
FRAMES = 48  # of one kind, of which all pairs are looked at
FEWEST = 8  # pairs
EXPLAINED = 0.8  # of the square of the differences of energies
CERTAIN = 5.0  # standard errors of the slope
FACTOR = 6.0  # between the two, that no method explains: a steep wall gives up to 3
STEEP = 10.0  # times the median force: walls, along which the rule does not hold


def pairs(frames: Sequence[ase.Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Work [n, 2] against the forces and of the stress, and difference of energies [n], eV: of all
    close pairs of frames of one source and composition, of the first FRAMES of these.
    """
    kinds: dict[tuple[object, ...], list[ase.Atoms]] = defaultdict(list)
    labelled = [a for a in frames if "energy" in a.info and "forces" in a.arrays and len(a) > 1]
    largest = [np.nanmax(np.abs(a.arrays["forces"]), initial=0.0) for a in labelled]
    for atoms, force in zip(labelled, largest, strict=True):
        if force <= STEEP * np.median(largest):
            source = str(atoms.info.get(ORIGIN, "")).rsplit(", frame", 1)[0]
            kind = kinds[source, atoms.numbers.tobytes(), atoms.pbc.tobytes()]
            if len(kind) < FRAMES:
                kind.append(atoms)
    found = [
        (work, float(b.info["energy"] - a.info["energy"]))
        for kind in kinds.values()
        for a, b in combinations(kind, 2)
        if (work := _work(a, b)) is not None
    ]
    each = np.array([work for work, _ in found]).reshape(-1, 2)
    return each, np.array([energy for _, energy in found])


def _work(a: ase.Atoms, b: ase.Atoms) -> tuple[float, float] | None:
    """On the way from a to b, against the forces and of the stress, eV; None: they are not close,
    or one of the two is not known.
    """
    cells = np.asarray(a.cell.array), np.asarray(b.cell.array)
    if np.allclose(*cells, rtol=0, atol=1e-6):
        step, by_strain = b.positions - a.positions, 0.0
    elif a.pbc.all() and "stress" in a.info and "stress" in b.info:
        strain = np.linalg.solve(*cells) - np.eye(3)
        if np.abs(strain).max() > STRAIN:
            return None
        stress = 0.5 * np.add(a.info["stress"], b.info["stress"])
        volume = 0.5 * (a.get_volume() + b.get_volume())
        by_strain = volume * float((matrix_from_six(stress) * strain).sum())
        step = b.positions - a.positions @ (strain + np.eye(3))
    else:
        return None
    step = shortest(step, b)
    forces = 0.5 * (a.arrays["forces"] + b.arrays["forces"])
    known, moved = np.isfinite(forces).all(axis=1), np.linalg.norm(step, axis=1)
    if moved.max() > CLOSE or moved[~known].any():
        return None
    return -float((forces[known] * step[known]).sum()), by_strain


def shortest(step: np.ndarray, atoms: ase.Atoms) -> np.ndarray:
    """Displacements [n, 3] less the cell vectors that they hold."""
    cell = np.asarray(atoms.cell.array)
    return step - np.where(atoms.pbc, np.round(step @ np.linalg.pinv(cell)), 0.0) @ cell


def contradiction(frames: Sequence[ase.Atoms]) -> str | None:
    """What is wrong, in words; None: nothing, or too few close pairs to tell. The work of forces
    and that of the stress have a slope each: a wrong stress is not laid to the forces.
    """
    work, energy = pairs(frames)
    if len(work) < FEWEST or not work[:, 0].any():
        return None
    many = f"{len(work)} pairs of close frames"
    scale = np.abs(energy).max()
    if scale == 0.0:
        return f"energies are all the same in {many}, whose forces differ"
    energy = energy / scale
    columns = work[:, np.abs(work).any(axis=0)] / scale
    # Through zero: either frame of a pair may come first
    slopes = np.linalg.lstsq(columns, energy, rcond=None)[0]
    rest = energy - columns @ slopes
    slope = float(slopes[0])
    error = np.sqrt(rest @ rest / (len(rest) - columns.shape[1]))
    error *= np.sqrt(np.linalg.pinv(columns.T @ columns)[0, 0])
    if rest @ rest > (1 - EXPLAINED) * (energy @ energy) or abs(slope) < CERTAIN * error:
        return None
    if slope < 0:
        return (
            f"energies rise along the forces (by {-slope:.3g} times their work, over {many}): are "
            "these gradients? expected forces, the negative gradient"
        )
    if not 1 / FACTOR < slope < FACTOR:
        return (
            f"energies change by {slope:.3g} times the work of the forces (over {many}); expected "
            "eV of the whole frame and eV/A (1 Ha/Bohr = 51.42 eV/A, 1 kcal/mol = 0.04336 eV)"
        )
    return None
