import os
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator


@pytest.fixture
def reference_data() -> Path:
    """The folder of published datasets, if this machine has one."""
    folder = Path(os.environ.get("RACE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("published datasets are not on this machine (set RACE_DATA)")
    return folder


def labelled(
    n_atoms: int = 6, seed: int = 0, stress: bool = True, symbols: str | None = None
) -> ase.Atoms:
    """A triclinic periodic frame of B and O with energy, forces and stress in a calculator,
    as ASE's readers leave it.
    """
    random = np.random.RandomState(seed)
    cell = np.array([[4.0, 0.1, 0.0], [0.5, 4.5, 0.2], [0.3, -0.4, 5.0]])
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)[:n_atoms] / 2
    atoms = ase.Atoms(symbols or "BO" * (n_atoms // 2) + "B" * (n_atoms % 2), cell=cell, pbc=True)
    atoms.set_scaled_positions(grid + random.uniform(-0.05, 0.05, grid.shape))
    results = {"energy": float(random.normal()), "forces": random.normal(size=(n_atoms, 3))}
    if stress:
        results["stress"] = random.normal(size=6)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms
