"""Labels of the Stillinger-Weber potential, which stands in for a reference method.

python label.py picked.extxyz >> train.extxyz

A cut-out of `fix race/guard` gets forces alone: the energy of its bare surface is not to be
learned. Its column `weight` goes on to the training set.
"""

import io
import sys

import ase
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from race.active.config import OracleConfig
from race.calculators import lammps_calculator

POTENTIAL = OracleConfig(lammps=["pair_style sw", "pair_coeff * * Si.sw Si"], elements=["Si"])


def labelled(atoms: ase.Atoms) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.calc = lammps_calculator(POTENTIAL, "POTENTIAL")
    label = {"forces": atoms.get_forces()}
    if "center" not in atoms.info:
        label["energy"] = atoms.get_potential_energy()
    atoms.calc = SinglePointCalculator(atoms, **label)
    return atoms


if __name__ == "__main__":
    text = io.StringIO()
    write(text, [labelled(atoms) for atoms in read(sys.argv[1], ":")], format="extxyz")
    print(text.getvalue(), end="")
