"""The structures that every code is timed on, and their neighbour lists as one npz file each.

3BPA      a drug-like molecule of 27 atoms; the first published training frame if the
          dataset is at hand (RACE_DATA), else a chain of the same composition
Si-64, Si-512, Si-4096      diamond silicon, displaced at random; Si-N for about N atoms
water     216 molecules in a box, slightly compressed: 55 neighbours within 5 Angstrom
"""

import os
from pathlib import Path

import ase
import ase.build
import numpy as np

from race.data.graph import neighbors
from race.data.public import load
from race.errors import RaceError

ELEMENTS = ["H", "C", "N", "O", "Si"]  # of every model
R_MAX = 5.0  # Angstrom
NAMES = ("3BPA", "Si-64", "Si-512", "Si-4096", "water")
WATER_EDGES_PER_ATOM = 55
ROOT = Path(__file__).parents[1]


def structure(name: str) -> ase.Atoms:
    """One of NAMES, or Si-N for any N; the same atoms whenever it is called."""
    if name == "3BPA":
        return molecules(1)[0]
    if name == "water":
        return water()
    n_cells = int(name.removeprefix("Si-")) / 8
    side = max(2, round(n_cells ** (1 / 3)))
    repeat = (side, side, max(2, round(n_cells / side**2)))
    atoms = ase.build.bulk("Si", "diamond", a=5.43, cubic=True) * repeat
    atoms.rattle(0.05, seed=0)
    return atoms


def molecules(n: int) -> list[ase.Atoms]:
    """`n` frames of 3BPA with info["energy"] eV and arrays["forces"] eV/Angstrom (made up
    where the dataset is not at hand).
    """
    folder = Path(os.environ.get("RACE_DATA", ROOT.parent / "shared" / "data"))
    try:
        frames = load("3bpa", "train_300K", folder)[:n]
    except RaceError:
        frames = [stand_in(k) for k in range(n)]
    for atoms in frames:
        atoms.pbc = False
    return frames


def stand_in(seed: int) -> ase.Atoms:
    """C12 H12 N2 O as two rows of heavy atoms with hydrogens beside twelve of them: as many
    edges as the molecule, within 10 %.
    """
    random = np.random.default_rng(seed)
    row = np.arange(8)
    zigzag = np.stack([1.25 * row, 0.6 * (row % 2), 0.8 * np.sin(row / 3.0)], axis=1)
    heavy = np.concatenate([zigzag, zigzag[:7] + [0.0, 3.2, 0.0]])
    hydrogens = heavy[:12] + np.where(
        np.arange(12)[:, None] < 8, [0.0, -0.75, 0.75], [0.0, 0.75, 0.75]
    )
    atoms = ase.Atoms("CCCNCCCOCNCCCCC" + "H" * 12, np.concatenate([heavy, hydrogens]))
    atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
    atoms.info["energy"], atoms.arrays["forces"] = (
        float(random.normal()),
        random.normal(size=(len(atoms), 3)),
    )
    return atoms


def water(n_side: int = 6) -> ase.Atoms:
    """n_side^3 rigid molecules, randomly turned, on a lattice with some disorder."""
    random = np.random.default_rng(0)
    volume = 3 * n_side**3 / (WATER_EDGES_PER_ATOM / (4 / 3 * np.pi * R_MAX**3))
    spacing = volume ** (1 / 3) / n_side
    molecule = ase.build.molecule("H2O")
    molecule.positions -= molecule.get_center_of_mass()
    box = ase.Atoms(cell=[n_side * spacing] * 3, pbc=True)
    for cell in np.ndindex(n_side, n_side, n_side):
        turned = molecule.copy()
        turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
        turned.positions = (
            turned.positions @ turn.T
            + (np.array(cell) + 0.5) * spacing
            + random.normal(scale=0.15, size=3)
        )
        box += turned
    box.wrap()
    return box


def graph(atoms: ase.Atoms, r_max: float = R_MAX) -> dict[str, np.ndarray]:
    """positions, cell, pbc, numbers, species (index in ELEMENTS) and all directed pairs
    within `r_max`, sorted by receiver.

    shift: float64 [n_edges, 3], whole lattice vectors; r_sender - r_receiver + shift @
    cell is the edge vector.
    """
    cell = np.asarray(atoms.cell.array)
    sender, receiver, vector = neighbors(atoms.positions, cell, atoms.pbc, r_max)
    image = vector - (atoms.positions[sender] - atoms.positions[receiver])
    inverse = np.linalg.inv(cell) if atoms.pbc.any() else np.zeros((3, 3))
    return {
        "positions": atoms.positions,
        "cell": cell,
        "pbc": np.asarray(atoms.pbc),
        "numbers": atoms.numbers,
        "species": np.array([ELEMENTS.index(symbol) for symbol in atoms.symbols]),
        "sender": sender,
        "receiver": receiver,
        "shift": np.round(image @ inverse),
        "energy": np.array(atoms.info.get("energy", 0.0)),
        "forces": atoms.arrays.get("forces", np.zeros((len(atoms), 3))),
    }


def write(path: Path, name: str, r_max: float = R_MAX) -> Path:
    """The graph of a structure as an npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **graph(structure(name), r_max))
    return path


def write_frames(path: Path, n: int, r_max: float = R_MAX) -> Path:
    """`n` frames of 3BPA, the fields of `graph` numbered: positions_0, positions_1, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        **{
            f"{key}_{k}": value
            for k, atoms in enumerate(molecules(n))
            for key, value in graph(atoms, r_max).items()
        },
    )
    return path
