"""The biased calculator against finite differences of its own energy, and against the
formula written out.
"""

import ase
import numpy as np
import pytest

import race
from race.deploy.bias import BiasedCalculator
from race.deploy.export import export_model
from race.errors import RaceError

from .conftest import make_model, numeric_force, numeric_stress

HEIGHT, WIDTH = 3.0, 0.4  # eV: on the order of the members' spread


@pytest.fixture
def atoms() -> ase.Atoms:
    """Two atoms in a cell smaller than the cutoff."""
    return ase.Atoms(
        "BN",
        positions=[[0.1, 0.0, 0.2], [1.3, 1.1, 0.9]],
        cell=[[2.5, 0, 0], [0.4, 2.3, 0], [0.3, -0.5, 2.6]],
        pbc=True,
    )


@pytest.fixture
def biased(artifact):
    return BiasedCalculator(race.Calculator(artifact), HEIGHT, WIDTH)


def energy(calculator, atoms) -> float:
    return calculator.get_property("energy", atoms)


def test_forces_and_stress_are_derivatives(biased, atoms):
    """Central differences, h = 1e-4 A (1e-6 relative); the bias is a large part of the whole."""
    forces = biased.get_property("forces", atoms)
    plain = biased.unbiased.get_property("forces", atoms)
    assert np.abs(forces - plain).max() > 0.05 * np.abs(plain).max()
    h = 1e-4
    numeric = [
        [numeric_force(biased.get_potential_energy, atoms, i, k, h) for k in range(3)]
        for i in range(len(atoms))
    ]
    np.testing.assert_allclose(forces, numeric, atol=1e-6 * np.abs(forces).max())
    stress = biased.get_property("stress", atoms)
    np.testing.assert_allclose(
        numeric_stress(biased.get_potential_energy, atoms, h),
        stress,
        atol=1e-6 * np.abs(stress).max(),
    )


def test_energy_is_the_formula(biased, atoms):
    members = biased.unbiased.get_property("energy_members", atoms)
    bias = HEIGHT * (np.exp(-members.var() / (len(atoms) * WIDTH**2)) - 1)
    assert -HEIGHT < bias < -0.01
    assert biased.get_property("energy_bias", atoms) == pytest.approx(bias, abs=1e-12)
    assert energy(biased, atoms) == pytest.approx(members.mean() + bias, abs=1e-10)


def test_refusals(artifact, tmp_path):
    single = tmp_path / "single.race.pt"
    export_model(make_model(n_members=1), single)
    with pytest.raises(RaceError, match="more than one member"):
        BiasedCalculator(race.Calculator(single), 1.0, 1.0)
    with pytest.raises(RaceError, match="width > 0"):
        BiasedCalculator(race.Calculator(artifact), 1.0, 0.0)
