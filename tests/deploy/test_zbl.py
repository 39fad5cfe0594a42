"""The repulsive core: against its formula written out, smooth for every pair, silent where
the model was trained.
"""

import warnings

import ase
import numpy as np
import pytest
from ase.data import atomic_numbers

import race
from race.deploy.export import export_model
from race.errors import RaceError

from .conftest import make_model, numeric_force, numeric_stress, triclinic

SHORTEST = {"B-B": 1.5, "B-N": 1.3}  # N-N is a pair that no training set had
FULL = 0.7
pytestmark = pytest.mark.filterwarnings("ignore:zbl. no core between N and N")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("zbl") / "model.race.pt"
    export_model(
        make_model(head="equivariant"),
        path,
        summary={"training": {"cutoff": 3.2, "min_distance": SHORTEST}},
    )
    return path


@pytest.fixture(scope="module")
def calculators(path):
    return race.Calculator(path, uncertainty=True), race.Calculator(
        path, uncertainty=True, zbl=True
    )


def pair_energy(r, first: str, second: str) -> np.ndarray:
    """eV, of distances in Angstrom."""
    z = atomic_numbers[first], atomic_numbers[second]
    x = r * (z[0] ** 0.23 + z[1] ** 0.23) / 0.4685
    screening = sum(
        c * np.exp(-d * x)
        for c, d in ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    )
    t = np.clip((r / SHORTEST[f"{first}-{second}"] - FULL) / (1 - FULL), 0, 1)
    return 14.399645 * z[0] * z[1] / r * screening * (1 - 10 * t**3 + 15 * t**4 - 6 * t**5)


def core(calculators, atoms: ase.Atoms, name: str = "energy"):
    """What `zbl` adds."""
    plain, repelled = (calculator.get_property(name, atoms) for calculator in calculators)
    return repelled - plain


def dimer(pair: str, r: float) -> ase.Atoms:
    return ase.Atoms(pair.split("-"), positions=[[0, 0, 0], r * np.array([2, -1, 2]) / 3])


@pytest.mark.parametrize("pair", SHORTEST)
def test_dimers_against_the_formula(calculators, pair):
    symbols, h = pair.split("-"), 1e-5
    for r in SHORTEST[pair] * np.linspace(0.3, 0.999, 15):
        expected = pair_energy(r, *symbols)
        assert core(calculators, dimer(pair, r)) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        np.testing.assert_allclose(
            core(calculators, dimer(pair, r), "energies"), [expected / 2] * 2, rtol=1e-9, atol=1e-9
        )
        slope = (pair_energy(r + h, *symbols) - pair_energy(r - h, *symbols)) / (2 * h)
        along = core(calculators, dimer(pair, r), "forces") @ [2, -1, 2] / 3
        np.testing.assert_allclose(along, [slope, -slope], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pair", SHORTEST)
def test_two_continuous_derivatives(calculators, pair):
    """Where the switch begins and ends, forces and their slopes are those of the other side
    to the first order of the step.
    """

    def force(r):
        return core(calculators, dimer(pair, r), "forces")[1] @ [2, -1, 2] / 3

    for r in (SHORTEST[pair], FULL * SHORTEST[pair]):
        for h in (1e-3, 1e-4):
            below, at, above = force(r - h), force(r), force(r + h)
            scale = abs(force(0.85 * SHORTEST[pair])) / SHORTEST[pair]
            assert (
                abs(above - below) < 200 * h * scale
                and abs((above - at) / h - (at - below) / h) < 1e4 * h * scale
            )


def test_silent_in_the_training_range(calculators):
    """Bit for bit, at the shortest distance itself, beyond it, and for a pair that
    training never had.
    """
    structures = [dimer(pair, r) for pair, r in SHORTEST.items()] + [
        dimer("B-B", 1.7),
        dimer("N-N", 0.4),
        dimer("N-B", 3.0),
    ]
    for atoms in structures:
        for name in ("energy", "energies", "forces"):
            assert np.all(core(calculators, atoms, name) == 0)


def test_pair_without_core_is_a_warning(path):
    """Of the elements that are there; N-N is no pair of the training set."""
    calculator = race.Calculator(path, zbl=True)
    with pytest.warns(
        UserWarning, match=r"zbl: no core between N and N, .*model .*model\.race\.pt"
    ) as found:
        calculator.get_potential_energy(dimer("B-N", 1.6))
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.get_potential_energy(dimer("B-B", 1.6))
        race.Calculator(path).get_potential_energy(dimer("B-N", 1.6))


@pytest.fixture
def squeezed():
    """Pairs of every kind, and images of an atom, on both sides of the switch."""
    atoms = triclinic()
    atoms.set_cell(0.62 * atoms.cell, scale_atoms=True)
    distances = atoms.get_all_distances(mic=True) + 9 * np.eye(len(atoms))
    assert (
        distances.min() < FULL * SHORTEST["B-N"] < np.sort(distances.ravel())[20] < SHORTEST["B-N"]
    )
    return atoms


def test_forces_and_stress_against_finite_differences(calculators, squeezed):
    h = 1e-5

    def energy(atoms):
        return core(calculators, atoms)

    forces = core(calculators, squeezed, "forces")
    assert np.abs(forces).max() > 10 and np.abs(forces.sum(0)).max() < 1e-9
    for atom, axis in ((0, 0), (3, 1), (6, 2)):
        assert numeric_force(energy, squeezed, atom, axis, h) == pytest.approx(
            forces[atom, axis], rel=1e-6, abs=1e-5
        )
    stress = core(calculators, squeezed, "stress")
    np.testing.assert_allclose(numeric_stress(energy, squeezed, h), stress, rtol=1e-6, atol=1e-7)


def test_members_have_the_same_core(calculators, squeezed):
    for name in ("energy_std", "forces_cov", "stress_std", "bald"):
        np.testing.assert_allclose(core(calculators, squeezed, name), 0, atol=1e-9)
    members = core(calculators, squeezed, "forces_members")
    np.testing.assert_allclose(
        members,
        np.broadcast_to(core(calculators, squeezed, "forces")[:, None], members.shape),
        atol=1e-9,
    )
    np.testing.assert_allclose(
        core(calculators, squeezed, "energy_members"), core(calculators, squeezed), atol=1e-9
    )


def test_model_without_distances_is_refused(tmp_path):
    export_model(make_model(), tmp_path / "bare.race.pt")
    with pytest.raises(RaceError, match=r"bare\.race\.pt: zbl: the model does not say how close"):
        race.Calculator(tmp_path / "bare.race.pt", zbl=True)
