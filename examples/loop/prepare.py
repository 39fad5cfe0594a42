"""What is known at first: a crystal of silicon at rest and a little beside it. Writes
train.extxyz, validation.extxyz and si.data, with which the simulation starts.
"""

import ase
from ase.build import bulk
from ase.io import write
from label import labelled

CRYSTAL = bulk("Si", cubic=True, a=5.431).repeat(2)


def rattled(seed: int, amplitude: float) -> ase.Atoms:
    atoms = CRYSTAL.copy()
    atoms.rattle(amplitude, seed=seed)
    return labelled(atoms)


if __name__ == "__main__":
    write("train.extxyz", [rattled(k, 0.01 + 0.01 * k) for k in range(8)])
    write("validation.extxyz", [rattled(100 + k, 0.03 + 0.02 * k) for k in range(3)])
    write("si.data", CRYSTAL, format="lammps-data", masses=True)
