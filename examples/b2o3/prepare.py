"""Splits the labelled liquid kept out of training into a calibration and a test half, and
writes the LAMMPS starting cell.
"""

import sys
from pathlib import Path

import ase.io

data, out = Path(sys.argv[1]), Path(sys.argv[2])
liquid = [
    frame
    for kelvin in (3000, 1600)
    for frame in ase.io.read(data / f"B2O3_liquid_{kelvin}K_val.extxyz", index=":")
]
ase.io.write(out / "liquid_calibration.extxyz", liquid[::2])
ase.io.write(out / "liquid_test.extxyz", liquid[1::2])
ase.io.write(out / "liquid.data", liquid[-1], format="lammps-data", specorder=["B", "O"])
