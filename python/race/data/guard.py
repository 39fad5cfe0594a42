"""Checks before a neighbour search. Structures that would kill the process, hang it or fill
the memory are refused, at the price of a few sums.
"""

import os
from dataclasses import dataclass

import numpy as np

from race.errors import RaceError

# Atoms per cubic Angstrom, of the bins in reach. Diamond has 0.18, hydrogen at the pressure of
# Jupiter's core about 1; the images of a skewed cell that lie in reach are several times those
# within the cutoff.
MAX_DENSITY = 50.0
# Of what a search found: neighbours of all atoms, as a density around them
MAX_MEAN_DENSITY = 3.0
MIN_ALLOWED = 1000  # neighbours of an atom that are never too many: tests, tiny cutoffs
BYTES_PER_EDGE = 120  # indices, shifts, vectors and their sorted copies
# Angstrom, of a box or of atoms without one: farther apart they are fragments of a run that
# diverged.
MAX_EXTENT = 1e5
# vesin (0.6.2) makes at most 1e5 cells. If there would be more, it multiplies the number along
# each direction by one factor, and divides by zero if one becomes none. The search is then wider.
SAFE_BINS = 4e4
MAX_CELLS = 1e5  # of an unwrapped atom from the origin
# Empty space between fragments is cut down to this many cutoffs: nothing is near across it.
GAP = 1.5
# Sine of the angle between a periodic vector and the plane (line) of the others.
MIN_SINE = 1e-4


@dataclass(frozen=True)
class Search:
    """The structure to search instead of another, with the same pairs and shifts.

    positions [n_atoms, 3], box [3, 3], periodic (all directions or none); radius: r_max or
    larger, in which case pairs beyond r_max are to be dropped.
    """

    positions: np.ndarray
    box: np.ndarray
    periodic: bool
    radius: float


def plan_search(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    r_max: float,
    where: object = None,
) -> Search:
    """A neighbour search within `r_max` that is defined and feasible.

    Args:
        positions: float64 [n_atoms, 3], Angstrom.
        cell: float64 [3, 3], rows are lattice vectors.
        pbc: bool [3].
        r_max: cutoff, Angstrom.
        where: file and frame, for the message.

    Raises:
        RaceError: positions or cell that are not finite, periodic vectors that span no
            volume, atoms so far apart or so close together that the search would not end.
    """
    pbc = np.asarray(pbc, dtype=bool)
    if not np.isfinite(positions).all():
        atom, axis = np.argwhere(~np.isfinite(positions))[0]
        raise RaceError(
            "a position is NaN or infinite",
            where=where,
            got=f"{'xyz'[axis]} of atom {atom}: {positions[atom, axis]}",
            remedy="leave this frame out, or find the step at which the run diverged",
        )
    if not np.isfinite(cell).all():
        raise RaceError(
            "the cell is NaN or infinite",
            where=where,
            got=cell.tolist(),
            remedy="leave this frame out, or find the step at which the run diverged",
        )
    vectors = cell[pbc]
    lengths = np.linalg.norm(vectors, axis=1)
    if (lengths == 0).any():
        missing = " and ".join("abc"[k] for k in np.flatnonzero(pbc)[lengths == 0])
        raise RaceError(
            "the periodic cell vectors span no volume",
            where=where,
            expected=f"a cell vector {missing}, or pbc F along it",
            got="zero",
            remedy="check Lattice and pbc",
        )
    if len(vectors) > 1 and (
        np.linalg.svd(vectors / lengths[:, None], compute_uv=False)[-1] < MIN_SINE
    ):
        raise RaceError(
            "the periodic cell vectors span no volume",
            where=where,
            got=cell.tolist(),
            remedy="check Lattice and pbc",
        )
    if not len(positions):
        return Search(positions, cell, False, r_max)
    frame = _completed(cell, pbc)
    inverse = np.linalg.inv(frame)
    height = 1.0 / np.linalg.norm(inverse, axis=0)  # between opposite faces
    scaled = positions @ inverse
    spread = np.ptp(scaled, axis=0)
    # Along a periodic direction the box, along another (a unit vector) the atoms' extent, A
    extent = np.where(pbc, height, spread)
    if extent.max() > MAX_EXTENT:
        far = int(np.argmax(np.linalg.norm(positions - np.median(positions, axis=0), axis=1)))
        raise RaceError(
            "too large for a neighbour search",
            where=where,
            expected=f"an extent below {MAX_EXTENT:g} A",
            got=f"{extent.max():.3g} A; atom {far} is farthest from the others",
            remedy="leave this frame out, or treat fragments apart",
        )
    if (away := np.abs(scaled[:, pbc]).max(initial=0.0)) > MAX_CELLS:
        raise RaceError(
            "an atom has run away",
            where=where,
            expected=f"positions within {MAX_CELLS:g} cells of the origin",
            got=f"{away:.3g} cells",
            remedy="leave this frame out, or wrap the positions",
        )
    for k in np.flatnonzero(~pbc):
        if spread[k] > 10 * GAP * r_max:
            scaled[:, k] = _closed_up(scaled[:, k], GAP * r_max)
            spread[k] = np.ptp(scaled[:, k])
    extent = np.where(pbc, height, spread)
    radius = r_max
    while True:
        n_bins = np.maximum(np.floor(extent / radius), 1.0)
        excess = np.prod(n_bins) / SAFE_BINS
        if excess <= 1.0 or n_bins.min() > 2.0 * np.cbrt(excess):
            break
        radius *= 1.1
    _check_work(scaled, pbc, n_bins, height, radius, where)
    if not pbc.any():
        return Search(scaled, np.zeros((3, 3)), False, radius)
    # A box that vacuum closes: vesin's own search of slabs and wires takes time that grows
    # with the square of their thickness (0.6.2).
    box = np.where(pbc[:, None], frame, frame * (spread + GAP * radius)[:, None])
    return Search(scaled @ frame, box, True, radius)


def _closed_up(x: np.ndarray, widest: float) -> np.ndarray:
    """Coordinates whose gaps are at most `widest`, in the same order."""
    order = np.argsort(x, kind="stable")
    gaps = np.minimum(np.diff(x[order], prepend=x[order[:1]]), widest)
    out = np.empty_like(x)
    out[order] = np.cumsum(gaps)
    return out


def _check_work(
    scaled: np.ndarray,
    pbc: np.ndarray,
    n_bins: np.ndarray,
    height: np.ndarray,
    radius: float,
    where: object,
) -> None:
    """Bounds from above how many pairs a search finds, by counting atoms in bins no narrower
    than the cutoff.
    """
    n_atoms = len(scaled)
    # Bins that hold neighbours of an atom along a direction, periodic images included
    reach = np.where(n_bins > 1, 3.0, 1.0)
    reach = np.where(pbc & (n_bins == 1), 2.0 * np.ceil(radius / height) + 1.0, reach)
    allowed = max(MIN_ALLOWED, 27.0 * radius**3 * MAX_DENSITY)
    memory = _memory()
    if n_atoms * np.prod(reach) <= allowed and n_atoms**2 * np.prod(reach) < 1e7:
        return
    scaled = np.where(pbc, scaled - np.floor(scaled), scaled - scaled.min(axis=0))
    size = np.where(pbc, 1.0, np.maximum(np.ptp(scaled, axis=0), 1e-300))
    place = np.minimum((scaled / size * n_bins).astype(np.int64), n_bins.astype(np.int64) - 1)
    bins = np.ravel_multi_index(tuple(place.T), tuple(n_bins.astype(np.int64)))
    count = np.unique(bins, return_counts=True)[1].astype(np.float64)
    crowd = count.max() * np.prod(reach)
    # Atoms spread over a bin: the part of 27 bins that the cutoff's sphere fills
    n_edges = float(np.sum(count**2) * np.prod(reach)) * (4.19 / 27.0)
    if crowd > allowed or n_edges * BYTES_PER_EDGE > memory:
        raise RaceError(
            "too many atoms within the cutoff of each other",
            where=where,
            expected=f"fewer than {allowed:.0f} within {radius:g} A of an atom, and pairs that fit "
            f"into {memory / 2**30:.0f} GiB",
            got=f"about {crowd:.2g} in the densest place, {n_edges:.2g} pairs in all",
            remedy="check Lattice, pbc and positions: a flat cell, or atoms at one place?",
        )


def check_found(n_edges: int, n_atoms: int, r_max: float, where: object = None) -> None:
    """Refuses what a search can do and a model cannot: thousands of neighbours for each atom.

    Raises:
        RaceError: more neighbours than MAX_MEAN_DENSITY gives.
    """
    allowed = max(MIN_ALLOWED, MAX_MEAN_DENSITY * 4.19 * r_max**3)
    if n_edges > allowed * n_atoms:
        raise RaceError(
            "too many atoms within the cutoff of each other",
            where=where,
            expected=f"on average at most {allowed:.0f} neighbours within {r_max:g} A",
            got=f"{n_edges / n_atoms:.0f}",
            remedy="check Lattice and positions: are they in Angstrom?",
        )


def _completed(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Three independent vectors: the periodic ones, and unit normals for the others."""
    frame = np.where(pbc[:, None], cell, 0.0)
    vectors = frame[pbc]
    # Rows of the last singular vectors are normal to the periodic ones.
    normals = (
        np.linalg.svd(vectors, full_matrices=True)[2][len(vectors) :] if len(vectors) else np.eye(3)
    )
    frame[~pbc] = normals
    return frame


def _memory() -> float:
    """Bytes that a neighbour list may take: a quarter of this machine's."""
    try:
        return 0.25 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4.0 * 2**30
