"""How large the forces of a data set are: bars of text on a logarithmic scale, on which one atom
among millions shows.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ase
import numpy as np

from race.data.plausibility import named

WIDTH = 30  # characters of the longest bar
MOST = 12  # rows of half decades; forces that span more have rows of whole ones


@dataclass(frozen=True)
class Bar:
    """n atoms have a force of low or more and less than high, eV/Angstrom."""

    low: float
    high: float
    n: int


@dataclass(frozen=True)
class ForceHistogram:
    """bars: from the smallest force to the largest; n_zero: atoms without one; largest:
    eV/Angstrom, at the atom `atom` of a frame, which `frame` names.
    """

    bars: list[Bar]
    n_zero: int
    largest: float
    frame: str
    atom: int

    def lines(self) -> list[str]:
        """The bars as text, and where the largest force is."""
        rows = [("0", self.n_zero)] if self.n_zero else []
        rows += [(f"{short(bar.low)} to {short(bar.high)}", bar.n) for bar in self.bars]
        names = max(len(name) for name, _ in rows)
        most = math.log(1 + max(n for _, n in rows))
        lines = [
            f"{name:<{names}}  {'#' * round(WIDTH * math.log(1 + n) / most):<{WIDTH}} {n}"
            for name, n in rows
        ]
        return [*lines, f"largest: {self.largest:.3g}, {self.frame}, atom {self.atom}"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def short(value: float) -> str:
    """Two digits, and no exponent: 0.032, 320."""
    return np.format_float_positional(value, precision=2, fractional=False, trim="-")


def force_histogram(
    frames: Sequence[ase.Atoms], forces: Sequence[np.ndarray]
) -> ForceHistogram | None:
    """The histogram of `forces`, eV/Angstrom, [n_atoms, 3] of each frame; those that are not
    finite are left out. None: no atom has a force.
    """
    size = [np.linalg.norm(rows, axis=1) for rows in forces]
    every = np.concatenate([np.zeros(0), *size])
    every = every[np.isfinite(every)]
    moved = every[every > 0]
    if not len(moved):
        return None
    low, high = np.log10(moved.min()), np.log10(moved.max())
    step = 0.5 if high - low < 0.5 * (MOST - 2) else 1.0
    first, last = math.floor(low / step), math.floor(high / step) + 1
    edges = 10.0 ** (step * np.arange(first, last + 1))
    counts = np.histogram(moved, edges)[0]
    size = [np.where(np.isfinite(rows), rows, 0.0) for rows in size]
    k = int(np.argmax([rows.max(initial=0.0) for rows in size]))
    return ForceHistogram(
        [
            Bar(float(a), float(b), int(n))
            for a, b, n in zip(edges, edges[1:], counts, strict=False)
        ],
        len(every) - len(moved),
        float(size[k].max()),
        named([frames[k]]),
        int(np.argmax(size[k])),
    )
