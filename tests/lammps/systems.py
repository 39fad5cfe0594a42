"""Small structures on which to compare: triclinic B2O3 glass, zincblende BN, a slab, a molecule."""

import ase
import ase.build
import numpy as np
from ase.neighborlist import neighbor_list

TRICLINIC = np.array([[8.0, 0.0, 0.0], [1.4, 7.2, 0.0], [-1.1, 0.9, 6.8]])


def b2o3(seed: int = 0, n_units: int = 8, shortest: float = 1.25) -> ase.Atoms:
    """Random B2O3 in a triclinic cell: no two atoms closer than `shortest` (Angstrom)."""
    rng = np.random.default_rng(seed)
    atoms = ase.Atoms(cell=TRICLINIC, pbc=True)
    for symbol in ("B", "B", "O", "O", "O") * n_units:
        while True:
            trial = atoms + ase.Atoms(symbol, positions=[rng.random(3) @ TRICLINIC])
            if len(neighbor_list("i", trial, shortest)) == 0:
                atoms = trial
                break
    return atoms


def boron_nitride(
    repeat: tuple[int, int, int] = (2, 2, 2), stretch: float = 0.0, seed: int = 1
) -> ase.Atoms:
    """Zincblende BN, 8 atoms per cubic cell, rattled."""
    atoms = ase.build.bulk("BN", "zincblende", a=3.615 * (1 + stretch), cubic=True).repeat(repeat)
    atoms.rattle(0.08, seed=seed)
    atoms.wrap()
    return atoms


def slab() -> ase.Atoms:
    """BN with 18 Angstrom of vacuum along x: most of eight slices along x hold no atom."""
    atoms = boron_nitride((1, 2, 2), seed=3)
    cell = atoms.cell.array.copy()
    cell[0, 0] += 18.0
    atoms.set_cell(cell)
    atoms.positions[:, 0] += 0.5
    return atoms


def tiny() -> ase.Atoms:
    """Two atoms in a cell smaller than the cutoff: every atom sees several images of itself."""
    atoms = ase.Atoms(
        "BN",
        positions=[[0.1, 0.0, 0.2], [1.3, 1.1, 0.9]],
        cell=[[2.5, 0, 0], [0.4, 2.3, 0], [0.3, -0.5, 2.6]],
        pbc=True,
    )
    return atoms


def molecule() -> ase.Atoms:
    """A BN cluster in an open box, as LAMMPS shrink-wraps it."""
    atoms = boron_nitride((1, 1, 2), seed=5)
    atoms.pbc = False
    atoms.set_cell([20.0, 20.0, 20.0])
    atoms.positions += 5.0
    return atoms


def crystal() -> ase.Atoms:
    """216 atoms: domains that have atoms without ghosts among their neighbours."""
    return boron_nitride((3, 3, 3), seed=6)


def needle() -> ase.Atoms:
    """A tilted cell 2.6 Angstrom wide and 29 long: every rank sees images of itself on
    two sides.
    """
    atoms = tiny().repeat((1, 1, 11))
    atoms.rattle(0.05, seed=7)
    return atoms


def pore() -> ase.Atoms:
    """A periodic crystal with a hole of 6 Angstrom across: ranks of few atoms, some of none."""
    atoms = boron_nitride((3, 2, 2), seed=8)
    far = np.linalg.norm(atoms.positions - atoms.positions.mean(0), axis=1) > 3.0
    return atoms[far]


def surface() -> ase.Atoms:
    """Periodic along x and y, open along z."""
    atoms = boron_nitride((2, 2, 1), seed=9)
    atoms.pbc = (True, True, False)
    cell = atoms.cell.array.copy()
    cell[2, 2] += 8.0
    atoms.set_cell(cell)
    atoms.positions[:, 2] += 4.0
    return atoms


def dimer() -> ase.Atoms:
    """Two atoms in an open box."""
    return ase.Atoms(
        "BO", positions=[[5.0, 5.1, 5.2], [5.7, 5.9, 6.0]], cell=[10.0, 10.0, 10.0], pbc=False
    )


def atom() -> ase.Atoms:
    """One atom, no neighbour: all ranks but one are empty, and no rank has an edge."""
    return ase.Atoms("N", positions=[[3.0, 4.0, 5.0]], cell=[9.0, 9.0, 9.0], pbc=True)
