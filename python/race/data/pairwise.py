"""Whether forces have to do with the structures they stand beside. A pair potential

    F_i = sum_j f_ab(r_ij) u_ij,   f_ab linear in a few functions of the distance,

is fitted to the forces of one half of the frames and asked for those of the other. It is poor,
but of sound sets it explains more than half of the mean square (63 to 99 % of 36 published
sets), and nothing where atoms, axes or frames were interchanged. Its energies tell the unit and
the sign of the forces where they follow the labels' at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from race.data.baseline import LOST, written_forces
from race.data.dataset import Dataset
from race.data.statistics import composition

WIDTHS = 8  # functions of the distance
SHORTEST = 0.7  # Angstrom, the centre of the first
EDGES = 200_000  # enough to tell; about a second
ROWS = 10  # components of forces for each coefficient, at least, in either half
FEWEST = 8  # frames
LEAST = 0.15  # explained part of the mean square: less is chance
SMALL = 1e-2  # eV/A: of smaller forces the noise of their convergence may be all
LARGE = 30.0  # times the median of the frames' root mean square, which others look at
RIDGE = 1e-4
POSSIBLE = 1e7  # eV an atom
# Energies of the pair potential follow those of the labels from this correlation on; then their
# ratio is 0.59 to 2.3 of the published sets.
FOLLOW, FACTOR = 0.8, 8.0


@dataclass
class _Frame:
    """features [3n, c] and forces [3n] of atoms that have one; potential [c] and energy, eV an
    atom (NaN: no label); composition [n_elements].
    """

    features: np.ndarray
    forces: np.ndarray
    potential: np.ndarray
    energy: float
    share: np.ndarray


Halves = tuple[list[_Frame], list[_Frame]]


def unrelated(halves: Halves | None) -> str | None:
    """The fault, in words, of forces of which a pair potential explains nothing."""
    if halves is None:
        return None
    error = square = 0.0
    for known, asked in (halves, halves[::-1]):
        forces = np.concatenate([frame.forces for frame in asked])
        features = np.concatenate([frame.features for frame in asked])
        error += float(((forces - features @ _fit(known)) ** 2).sum())
        square += float((forces**2).sum())
    explained = 1.0 - error / square
    if explained >= LEAST:
        return None
    return (
        "forces have nothing to do with the structures: a pair potential explains "
        f"{100 * max(explained, 0.0):.0f} % of them, of sound sets more than half; were atoms, "
        "axes or frames interchanged?"
    )


def other_scale(halves: Halves | None) -> str | None:
    """The fault, in words, of energies that follow a pair potential fitted to the forces but
    for their sign or unit.
    """
    if halves is None:
        return None
    frames = [*halves[0], *halves[1]]
    coefficients = _fit(frames)
    labelled = [frame for frame in frames if abs(frame.energy) < POSSIBLE]
    if len(labelled) < 2 * FEWEST:
        return None
    share = np.array([frame.share for frame in labelled])

    def rest(values: np.ndarray) -> np.ndarray:
        return values - share @ np.linalg.lstsq(share, values, rcond=1e-8)[0]

    fitted = rest(np.array([frame.potential @ coefficients for frame in labelled]))
    energy = rest(np.array([frame.energy for frame in labelled]))
    size = np.sqrt((fitted @ fitted) * (energy @ energy))
    if not size > 0 or abs(fitted @ energy) < FOLLOW * size:
        return None
    ratio = float(fitted @ energy / (fitted @ fitted))
    if 1 / FACTOR < ratio < FACTOR:
        return None
    return (
        f"energies are {ratio:.3g} times those of a pair potential that has the forces "
        f"({len(labelled)} frames); expected eV of the whole frame, and forces in eV/A "
        "(1 Ha/Bohr = 51.42 eV/A, 1 kcal/mol = 0.04336 eV), not gradients"
    )


def divide(data: Dataset) -> Halves | None:
    """Every other frame without the few of far larger forces; None: too few to tell, or no
    forces.
    """
    frames = list(_frames(data))
    if len(frames) < FEWEST:
        return None
    square = np.array([np.mean(frame.forces**2) for frame in frames])
    frames = [frames[k] for k in np.flatnonzero(square <= LARGE**2 * np.median(square))]
    halves = frames[::2], frames[1::2]
    used = np.any([frame.features.any(axis=0) for frame in frames], axis=0)
    rows = min(sum(len(frame.forces) for frame in half) for half in halves)
    forces = np.concatenate([frame.forces for frame in frames])
    if rows < ROWS * used.sum() or np.sqrt(np.mean(forces**2)) < SMALL:
        return None
    return halves


def _frames(data: Dataset) -> Iterator[_Frame]:
    """Frames with forces, spread over the set, as many as their edges allow."""
    has = [
        k
        for k, atoms in enumerate(data.frames)
        if len(atoms) > 1 and np.nansum(np.abs(atoms.arrays.get("forces", 0.0))) > 0
    ]
    if not has:
        return
    each = max(1.0, np.mean(data.n_edges(has[:8])))
    many = int(min(len(has), max(2 * FEWEST, EDGES / each)))
    share = composition(data.frames, data.elements)
    for k in np.array(has)[np.linspace(0, len(has) - 1, many).astype(int)]:
        atoms, graph = data.frames[k], data.graph(int(k))
        receiver = np.repeat(np.arange(len(atoms)), np.diff(graph.row_ptr.numpy()))
        vector = graph.edge_vector.double().numpy()
        distance = np.linalg.norm(vector, axis=1)
        species = graph.species.numpy()
        sender = graph.edge_index[0].long().numpy()
        low, high = np.sort([species[receiver], species[sender]], axis=0)
        n = len(data.elements)
        pair = high * (high + 1) // 2 + low
        value, integral = _functions(distance, data.r_max)
        features = np.zeros((len(atoms), 3, n * (n + 1) // 2, WIDTHS))
        unit = vector / distance[:, None]
        np.add.at(
            features,
            (receiver[:, None], np.arange(3)[None], pair[:, None]),
            unit[:, :, None] * value[:, None, :],
        )
        potential = np.zeros(features.shape[2:])
        np.add.at(potential, pair, -0.5 * integral)
        forces = written_forces(atoms)  # of a rest little may be pairwise
        known = np.isfinite(forces).all(axis=1)
        yield _Frame(
            features[known].reshape(-1, potential.size),
            forces[known].reshape(-1),
            potential.reshape(-1) / len(atoms),
            np.nan if LOST in atoms.arrays else atoms.info.get("energy", np.nan) / len(atoms),
            share[k] / len(atoms),
        )


def _functions(distance: np.ndarray, r_max: float) -> tuple[np.ndarray, np.ndarray]:
    """[n, WIDTHS] each: Gaussians that end at the cutoff, and their integrals up to there."""
    centre = np.linspace(SHORTEST, r_max, WIDTHS)
    width = centre[1] - centre[0]
    grid = np.linspace(0.0, r_max, 1001)
    values = (
        np.exp(-0.5 * ((grid[:, None] - centre) / width) ** 2) * (1 - grid / r_max)[:, None] ** 2
    )
    steps = 0.5 * (values[1:] + values[:-1]) * (grid[1] - grid[0])
    beyond = np.concatenate([np.cumsum(steps[::-1], axis=0)[::-1], np.zeros((1, WIDTHS))])
    both = [
        np.stack([np.interp(distance, grid, column) for column in table.T], axis=1)
        for table in (values, beyond)
    ]
    return both[0], both[1]


def _fit(frames: list[_Frame]) -> np.ndarray:
    """Coefficients [c] by least squares, with a little ridge: functions overlap."""
    features = np.concatenate([frame.features for frame in frames])
    forces = np.concatenate([frame.forces for frame in frames])
    scale = np.sqrt((features**2).sum(axis=0))
    scale[scale == 0] = 1.0
    normal = (features / scale).T @ (features / scale) + RIDGE * np.eye(len(scale))
    solution: np.ndarray = np.linalg.solve(normal, (features / scale).T @ forces) / scale
    return solution
