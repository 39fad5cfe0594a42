"""examples/thermal-conductivity: the formula where its value is known, and the files that LAMMPS
writes for it.
"""

import importlib.util
import sys

import ase.build
import numpy as np
import pytest

from .conftest import ROOT
from .harness import thermo, write_data

EXAMPLE = ROOT / "examples" / "thermal-conductivity"


@pytest.fixture(scope="module")
def conductivity():
    spec = importlib.util.spec_from_file_location("conductivity", EXAMPLE / "conductivity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ornstein_uhlenbeck(n: int, tau: float, spacing: float, seed: int) -> np.ndarray:
    """[n, 3] of variance 1 and correlation exp(-t / tau)."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-spacing / tau)
    out = np.empty((n, 3))
    out[0] = rng.normal(size=3)
    kicks = np.sqrt(1 - decay**2) * rng.normal(size=(n, 3))
    for k in range(1, n):
        out[k] = decay * out[k - 1] + kicks[k]
    return out


def test_members_of_known_conductivity(conductivity):
    """integral <J . J> = 3 a^2 tau for a flux of amplitude a; the potential's share is the
    spread of a^2, without what sampling adds.
    """
    tau, spacing, volume, kelvin = 0.2, 0.02, 8000.0, 500.0
    amplitudes = np.array([0.9, 1.0, 1.05, 1.2])
    flux = ornstein_uhlenbeck(40_000, tau, spacing, 0)[:, None] * amplitudes[:, None]
    kappa = conductivity.conductivities(flux, spacing, 2.0, volume, kelvin, 10)
    unit = conductivity.WATT * tau / (volume * conductivity.BOLTZMANN * kelvin**2)
    found = conductivity.summary(kappa, 0.9)
    truth = unit * amplitudes**2
    np.testing.assert_allclose(kappa.mean(0), truth, rtol=0.2)
    assert abs(found["kappa"] - truth.mean()) < 3 * found["sampling_std"]
    assert found["potential_std"] == pytest.approx(truth.std(ddof=1), rel=0.3)
    # Members that differ by noise alone leave nothing to the potential.
    rng = np.random.default_rng(1)
    alike = flux[:, :1] + 0.5 * rng.normal(size=(40_000, 4, 3))
    kappa = conductivity.conductivities(alike, spacing, 2.0, volume, kelvin, 10)
    found = conductivity.summary(kappa, 0.9)
    assert found["potential_std"] < 0.5 * found["sampling_std"]


def test_the_integral_is_the_sum_over_pairs(conductivity):
    flux = ornstein_uhlenbeck(50, 0.2, 0.1, 3)[:, None]
    lags = [np.mean(np.sum(flux[k:] * flux[: 50 - k], axis=2)) for k in range(6)]
    want = [0.1 * np.trapezoid(lags[: k + 1]) for k in range(6)]
    np.testing.assert_allclose(conductivity.running_integral(flux, 0.1, 6)[:, 0], want, atol=1e-12)


def test_from_lammps(lammps_run, artifacts):
    model = artifacts(
        "silicon",
        elements=["Si"],
        n_members=2,
        n_layers=2,
        irreps_hidden="4x0e+4x1o+4x2e",
        atomic_energies=[-4.0],
        scale=[0.3],
    )
    atoms = ase.build.bulk("Si", cubic=True, a=5.43).repeat((1, 1, 2))
    write_data(lammps_run.folder / "si.data", atoms, ["Si"])
    text = (EXAMPLE / "in.greenkubo").read_text()
    text = text.replace("units metal", f"units metal\nplugin load {lammps_run.plugin}")
    variables = {"model": model, "temperature": 300, "equilibrate": 20, "steps": 100, "every": 5}
    words = [w for name, value in variables.items() for w in ("-var", name, str(value))]
    finished = lammps_run.run(text, 2, arguments=tuple(words))
    assert finished.status == 0, finished.output
    assert thermo(finished.output)[-1]["Step"] == 100
    command = [sys.executable, str(EXAMPLE / "conductivity.py"), "members.dat", "state.dat"]
    command += ["--timestep", "0.001", "--correlation", "0.02", "--segments", "2"]
    said = lammps_run.execute(command)
    assert said.status == 0, said.output
    assert "member 2:" in said.output and "of the potential" in said.output
    too_long = lammps_run.execute([*command, "--segments", "9"])
    assert too_long.status == 1 and "are too short" in too_long.output
