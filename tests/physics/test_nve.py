"""Energy conservation in NVE: drift within bounds, fluctuations falling as dt^2 (forces are
the energy's exact gradient).
"""

import ase.build
import numpy as np
import pytest
import torch
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

import race
from race.config import ModelConfig
from race.deploy.export import export_model
from race.model.race import RACE

FEMTOSECONDS = 300.0


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Untrained weights on a soft scale: any smooth energy must be conserved."""
    folder = tmp_path_factory.mktemp("nve")
    torch.manual_seed(0)
    config = ModelConfig(
        elements=["B", "N"],
        r_max=3.0,
        n_layers=2,
        irreps_hidden="8x0e+8x1o+8x2e",
        n_features=8,
        n_members=1,
        radial_mlp=[16],
        readout_hidden=16,
        avg_num_neighbors=16.0,
        scale=[0.3, 0.3],
    )
    model = RACE.untrained(config, torch.float64)
    paths = {}
    for dtype in ("float64", "float32"):
        paths[dtype] = folder / f"{dtype}.race.pt"
        export_model(model, paths[dtype], dtype=dtype)
    return paths


def crystal():
    atoms = ase.build.bulk("BN", "zincblende", a=3.6, cubic=True).repeat((2, 1, 1))
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    Stationary(atoms)
    return atoms


def total_energies(path, dt: float, force_error: float = 0.0) -> np.ndarray:
    """Total energy per atom, meV, every femtosecond."""
    atoms = crystal()
    atoms.calc = race.Calculator(path)
    if force_error:
        atoms.calc.calculate = _with_error(atoms.calc, force_error)
    energies = []
    dynamics = VelocityVerlet(atoms, timestep=dt * units.fs)
    dynamics.attach(
        lambda: energies.append(atoms.get_total_energy()), interval=max(1, round(1.0 / dt))
    )
    dynamics.run(round(FEMTOSECONDS / dt))
    return 1e3 * np.array(energies) / len(atoms)


def _with_error(calc, relative):
    plain = calc.calculate

    def calculate(*args, **kwargs):
        plain(*args, **kwargs)
        calc.results["forces"] = calc.results["forces"] * (1 + relative)

    return calculate


def drift(energies: np.ndarray) -> float:
    """Slope of a straight line through the total energy, meV/atom/ps."""
    time = np.linspace(0, FEMTOSECONDS / 1000, len(energies))
    return abs(np.polyfit(time, energies, 1)[0])


@pytest.mark.parametrize("dtype, bound", [("float64", 0.01), ("float32", 0.05)])
def test_drift(artifacts, dtype, bound):
    energies = total_energies(artifacts[dtype], dt=0.25)
    assert np.ptp(energies) > 0
    assert drift(energies) < bound


def test_fluctuations_scale_as_dt_squared(artifacts):
    coarse, fine = (np.std(total_energies(artifacts["float64"], dt)) for dt in (0.5, 0.25))
    assert abs(coarse / fine - 4.0) < 0.4


def test_a_wrong_force_is_seen(artifacts):
    coarse, fine = (
        np.std(total_energies(artifacts["float64"], dt, force_error=0.01)) for dt in (0.5, 0.25)
    )
    assert abs(coarse / fine - 4.0) > 0.4
