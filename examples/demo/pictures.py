"""Atoms coloured by the force uncertainty that LAMMPS dumped, beside the true error, which
this potential lets us know.

python pictures.py seed.lammpstrj seed.xyz OUT    makes OUT/seed.png and OUT/seed.json
"""

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
from ase import Atoms
from ase.io import read
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse
from reference import label

from race.conventions import matrix_from_six

# Columns of c_u in in.seed
SIGMA, COV, EPISTEMIC, ALEATORIC = (
    0,
    slice(1, 7),
    slice(7, 13),
    slice(13, 19),
)
RADII = {"B": 0.42, "N": 0.34}  # Angstrom, for the eye
SLAB = 1.6  # Angstrom, half the thickness of the slice shown flat
CMAP = matplotlib.colormaps["plasma"]


def main() -> None:
    dump, start, out = (Path(argument) for argument in sys.argv[1:])
    atoms = read(dump, index=-1, format="lammps-dump-text")
    n_seed = int(read(start).info["n_seed"])
    columns = np.stack([atoms.arrays[f"c_u[{k + 1}]"].ravel() for k in range(20)], axis=1)
    symbols = (
        atoms.get_array("element")
        if "element" in atoms.arrays
        else np.array(atoms.get_chemical_symbols())
    )
    frame = Atoms(
        list(symbols), atoms.positions - atoms.get_celldisp().ravel(), cell=atoms.cell, pbc=True
    )
    frame.wrap()
    error = np.linalg.norm(label(frame).get_forces() - atoms.get_forces(), axis=1) / np.sqrt(3)

    parts = {"seed": np.arange(len(frame)) < n_seed, "liquid": np.arange(len(frame)) >= n_seed}
    trace = columns[:, COV][:, :3].sum(1)
    numbers = {"n_atoms": len(frame)}
    for name, mask in parts.items():
        numbers[name] = {
            "sigma": float(np.sqrt((columns[mask, SIGMA] ** 2).mean())),
            "error": float(np.sqrt((error[mask] ** 2).mean())),
            "epistemic": float(columns[mask, EPISTEMIC][:, :3].sum() / trace[mask].sum()),
        }
    (out / "seed.json").write_text(json.dumps(numbers, indent=1))

    sigma = np.sqrt(trace / 3)
    norm = Normalize(0, np.quantile(sigma, 0.98))
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    grid = figure.add_gridspec(1, 3, width_ratios=[1.15, 1, 1])
    cutaway(figure.add_subplot(grid[0]), frame, CMAP(norm(sigma)), parts["seed"])
    left, right = figure.add_subplot(grid[1]), figure.add_subplot(grid[2])
    flat_slice(left, frame, CMAP(norm(sigma)), parts["seed"], matrix_from_six(columns[:, COV]))
    flat_slice(right, frame, CMAP(norm(error)), parts["seed"])
    left.set_title("predicted σ of the force; ellipses: its covariance", fontsize=10)
    right.set_title("true error of the force", fontsize=10)
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, CMAP), ax=right, shrink=0.8)
    bar.set_label("per component (eV/Å)")
    figure.savefig(out / "seed.png", dpi=130)


def cutaway(ax: Axes, frame: Atoms, colours: np.ndarray, seed: np.ndarray) -> None:
    """Balls seen along a diagonal of the cell, the eighth in front of its centre taken away;
    thick rims in the seed, fog with distance.
    """
    away = frame.positions - frame.cell.lengths() / 2
    right, up, near = np.array([[1, 1, 0], [-1, 1, 2], [1, -1, 1]]) / np.sqrt([[2], [6], [3]])
    front = (away[:, 0] > 0) & (away[:, 1] < 0) & (away[:, 2] > 0)
    depth = away @ near
    fog = np.interp(depth, [depth.min(), depth.max()], [0.6, 0.0])[:, None]
    shaded = np.clip(colours[:, :3] * (1 - fog) + fog, 0, 1)
    for i in np.argsort(depth):
        if front[i]:
            continue
        x, y, radius = away[i] @ right, away[i] @ up, 2 * RADII[frame.symbols[i]]
        rim = {"edgecolor": "black", "linewidth": 1.0 if seed[i] else 0.25}
        ax.add_patch(Circle((x, y), radius, facecolor=shaded[i], **rim))
        for size, alpha in ((0.6, 0.15), (0.3, 0.25)):  # a highlight, up and to the left
            ax.add_patch(
                Circle(
                    (x - 0.3 * radius, y + 0.3 * radius),
                    size * radius,
                    facecolor="white",
                    alpha=alpha,
                    linewidth=0,
                )
            )
    ax.autoscale_view()
    ax.set_aspect("equal")
    ax.set_axis_off()


def flat_slice(
    ax: Axes,
    frame: Atoms,
    colours: np.ndarray,
    seed: np.ndarray,
    covariance: np.ndarray | None = None,
) -> None:
    """Atoms within SLAB of the plane through the centre, thick-rimmed in the seed. An
    ellipse is 0.25 Angstrom per eV/Angstrom of sigma.
    """
    height = frame.positions[:, 2] - frame.cell.lengths()[2] / 2
    for i in np.argsort(height):
        if abs(height[i]) > SLAB:
            continue
        xy = frame.positions[i, :2]
        rim = {"edgecolor": "black", "linewidth": 1.2 if seed[i] else 0.3}
        ax.add_patch(Circle(xy, RADII[frame.symbols[i]], facecolor=colours[i], zorder=2, **rim))
        if covariance is not None:
            values, vectors = np.linalg.eigh(covariance[i, :2, :2])
            axes, angle = (
                0.5 * np.sqrt(values),
                np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])),
            )
            ax.add_patch(
                Ellipse(
                    xy,
                    axes[1],
                    axes[0],
                    angle=angle,
                    fill=False,
                    edgecolor="0.35",
                    linewidth=0.5,
                    zorder=3,
                )
            )
    lengths = frame.cell.lengths()
    ax.set(xlim=(0, lengths[0]), ylim=(0, lengths[1]), aspect="equal", xticks=[], yticks=[])


if __name__ == "__main__":
    main()
