"""Silicon with a vacancy under the Stillinger-Weber potential, which stands in for the truth."""

import ase
import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.units import fs

from race.active.config import OracleConfig
from race.calculators import lammps_calculator

POTENTIAL = OracleConfig(lammps=["pair_style sw", "pair_coeff * * Si.sw Si"], elements=["Si"])


def vacancy() -> ase.Atoms:
    """63 atoms: a cubic cell of silicon without one."""
    atoms = bulk("Si", cubic=True, a=5.431).repeat(2)
    del atoms[0]
    return atoms


def labels(frames: list[ase.Atoms]) -> list[ase.Atoms]:
    """The frames with energy and forces of the potential."""
    calculator, out = lammps_calculator(POTENTIAL, "POTENTIAL"), []
    for frame in frames:
        atoms = frame.copy()
        atoms.calc = calculator
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        out.append(atoms)
    return out


def dynamics(temperature: float, n_frames: int, spacing: int, seed: int) -> list[ase.Atoms]:
    """A labelled frame every `spacing` fs at `temperature` (K), after 1 ps."""
    atoms, rng = vacancy(), np.random.default_rng(seed)
    atoms.calc = lammps_calculator(POTENTIAL, "POTENTIAL")
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=rng)
    md, frames = (
        Langevin(atoms, 1 * fs, temperature_K=temperature, friction=0.005 / fs, rng=rng),
        [],
    )
    md.run(1000)
    for _ in range(n_frames):
        md.run(spacing)
        frames.append(atoms.copy())
    return labels(frames)
