"""Candidates from dynamics with the current model: where it goes, it will be asked to predict."""

from pathlib import Path

import ase
import numpy as np
from ase import units
from ase.md.langevin import Langevin

from race.active.config import ExploreConfig
from race.data.graph import neighbors


def export_run(run: Path, artifact: Path) -> Path:
    """The artifact of a run, made once."""
    from race.deploy.export import export_model
    from race.train.run import load_run

    if not artifact.exists():
        model, _, summary = load_run(run)
        aside = artifact.with_name(f".{artifact.name}")
        export_model(model, aside, summary=summary)
        aside.rename(artifact)
    return artifact


def walk(start: ase.Atoms, artifact: Path, config: ExploreConfig, seed: int) -> list[ase.Atoms]:
    """Frames every `every` steps of Langevin dynamics, until it ends or leaves what can be
    trusted; the frame that does is the last.

    A frame on which two atoms coincide (closer than half of `closest`) is left out: no
    oracle should be asked about it.
    """
    from race import Calculator

    atoms = ase.Atoms(
        numbers=start.numbers, positions=start.positions, cell=start.cell, pbc=start.pbc
    )
    atoms.calc = Calculator(artifact)
    rng = np.random.RandomState(seed)
    kt = units.kB * config.temperature
    atoms.set_momenta(
        rng.standard_normal((len(atoms), 3)) * np.sqrt(kt * atoms.get_masses())[:, None]
    )
    dynamics = Langevin(
        atoms,
        config.timestep * units.fs,
        temperature_K=config.temperature,
        friction=config.friction / units.fs,
        rng=rng,
        fixcm=False,
    )
    frames = []
    for step in range(config.every, config.steps + 1, config.every):
        dynamics.run(config.every)
        closest = shortest_distance(atoms, config.closest)
        if not np.isfinite(atoms.positions).all() or closest < 0.5 * config.closest:
            break
        frame = ase.Atoms(
            numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc
        )
        std = largest_force_std(atoms)
        frame.info = {"step": step, "temperature": config.temperature, "max_force_std": std}
        frames.append(frame)
        if not std <= config.max_force_std or closest < config.closest:
            break
    return frames


def shortest_distance(atoms: ase.Atoms, cutoff: float) -> float:
    """Angstrom, periodic images included; infinite beyond `cutoff`."""
    if not np.isfinite(atoms.positions).all():
        return 0.0
    *_, vector = neighbors(atoms.positions, np.asarray(atoms.cell.array), atoms.pbc, cutoff)
    return float(np.linalg.norm(vector, axis=1).min(initial=np.inf))


def largest_force_std(atoms: ase.Atoms) -> float:
    """max over atoms of sqrt(tr Sigma / 3), eV/A; 0 for a model without force uncertainty."""
    if "forces_cov" not in atoms.calc.implemented_properties:
        return 0.0
    cov = atoms.calc.get_property("forces_cov", atoms)
    return float(np.sqrt(np.trace(cov, axis1=1, axis2=2).max() / 3))
