"""A check that energies follow from forces. Between two structures of one cell that lie
close together

    E_b - E_a = -1/2 (F_a + F_b) . (r_b - r_a) + O(|r_b - r_a|^3)

(the trapezoidal rule; exact if forces are linear). Gradients in place of forces turn the
sign. Another unit of either changes the ratio, and so does the energy per atom in place
of the frame's. Along a steep wall the rule is off by several times. Therefore pairs vote,
each with one vote: a fit would follow the few of the largest energies.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import ase
import numpy as np

from race.data.graph import ORIGIN

CLOSE = 0.5  # Angstrom, the farthest that an atom may have moved between two frames
FRAMES = 48  # of one kind, of which all pairs are looked at
FEWEST = 8  # pairs
MOST = 0.8  # of the pairs, that have to contradict in one way; of sound sets up to half do
FACTOR = 5.0  # between the two
NOISE = 2e-3  # eV an atom: less says nothing
LEAST = 0.01  # eV, likewise


def pairs(frames: Sequence[ase.Atoms]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Work [n] against the forces, differences of energies [n], and the size [n] below which
    neither says anything, eV. The pairs are the close ones of frames of one source,
    composition and cell, among the first FRAMES of these.
    """
    kinds: dict[tuple[object, ...], list[ase.Atoms]] = defaultdict(list)
    for atoms in frames:
        if "energy" in atoms.info and "forces" in atoms.arrays and len(atoms) > 1:
            source = str(atoms.info.get(ORIGIN, "")).rsplit(", frame", 1)[0]
            cell = np.round(atoms.cell.array, 6).tobytes()
            kind = kinds[source, atoms.numbers.tobytes(), atoms.pbc.tobytes(), cell]
            if len(kind) < FRAMES:
                kind.append(atoms)
    found = [
        (work, b.info["energy"] - a.info["energy"], max(LEAST, NOISE * len(a)))
        for kind in kinds.values()
        for a, b in combinations(kind, 2)
        if (work := _work(a, b)) is not None
    ]
    work, energy, nothing = np.array(found, dtype=np.float64).reshape(-1, 3).T
    return work, energy, nothing


def _work(a: ase.Atoms, b: ase.Atoms) -> float | None:
    """On the way from a to b, against the forces, eV; None: they are not close, or an atom whose
    force is not known has moved.
    """
    step = shortest(b.positions - a.positions, b)
    forces = 0.5 * (a.arrays["forces"] + b.arrays["forces"])
    known, moved = np.isfinite(forces).all(axis=1), np.linalg.norm(step, axis=1)
    if moved.max() > CLOSE or moved[~known].any():
        return None
    return -float((forces[known] * step[known]).sum())


def shortest(step: np.ndarray, atoms: ase.Atoms) -> np.ndarray:
    """Displacements [n, 3] less the cell vectors that they hold."""
    cell = np.asarray(atoms.cell.array)
    return step - np.where(atoms.pbc, np.round(step @ np.linalg.pinv(cell)), 0.0) @ cell


def contradiction(frames: Sequence[ase.Atoms]) -> str | None:
    """The inconsistency in words; None if there is none, or too few close pairs to tell."""
    work, energy, nothing = pairs(frames)
    if len(work) < FEWEST:
        return None
    telling = (np.maximum(np.abs(work), np.abs(energy)) > nothing) & (work != 0)
    against = telling & (work * energy < 0)
    along = telling & ~against
    low = along & (np.abs(energy) < np.abs(work) / FACTOR)
    high = along & (np.abs(energy) > np.abs(work) * FACTOR)
    for which in (against, low, high):
        if which.mean() < MOST:
            continue
        ratio = abs(float(np.median(energy[which] / work[which])))
        many = f"({which.sum()} of {len(work)} pairs of close frames)"
        if which is against:
            return (
                f"energies rise along the forces, by {ratio:.3g} times their work {many}: are "
                "these gradients? expected forces, the negative gradient"
            )
        return (
            f"energies change by {ratio:.3g} times the work of the forces {many}; expected eV of "
            "the whole frame and eV/A (1 Ha/Bohr = 51.42 eV/A, 1 kcal/mol = 0.04336 eV)"
        )
    return None
