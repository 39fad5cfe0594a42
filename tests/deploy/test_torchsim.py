"""The model of torch-sim: its own check of what a model must do, and the calculator."""

import sys

import numpy as np
import pytest
import torch
from ase.stress import full_3x3_to_voigt_6_stress

import race
from race.deploy.export import export_model
from race.errors import RaceError
from tests.deploy.conftest import make_model

if sys.version_info < (3, 11):
    pytest.skip("torch-sim needs Python 3.11", allow_module_level=True)

import torch_sim  # noqa: E402
from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from race.deploy.torchsim import RaceModel  # noqa: E402

NAMES = ["energy_std", "energy_members", "forces_cov", "bald", "stress_std"]


@pytest.fixture
def systems(atoms):
    """Two that differ in size, cell and positions."""
    other = atoms.copy()
    other.rattle(0.05, seed=3)
    other.set_cell(1.02 * other.cell, scale_atoms=True)
    del other[0]
    return [atoms, other]


def state_of(systems):
    return torch_sim.io.atoms_to_state(systems, torch.device("cpu"), torch.float64)


def test_it_is_the_calculator(artifact, systems):
    out = RaceModel(artifact, uncertainty=NAMES)(state_of(systems))
    calculator = race.Calculator(artifact)
    first = 0
    for k, atoms in enumerate(systems):
        names = ["energy", "forces", "stress", *NAMES]
        want = {name: calculator.get_property(name, atoms) for name in names}
        stress = full_3x3_to_voigt_6_stress(out["stress"][k].numpy())
        np.testing.assert_allclose(stress, want.pop("stress"), rtol=1e-9, atol=1e-14)
        own = slice(first, first + len(atoms))
        for name, value in want.items():
            rows = own if name in ("forces", "forces_cov", "bald") else k
            np.testing.assert_allclose(out[name][rows].numpy(), value, rtol=1e-9, atol=1e-12)
        first += len(atoms)
    assert first == len(out["forces"]) and out["energy"].shape == (2,)


def test_torch_sim_accepts_it(tmp_path):
    model = make_model(elements=["Si", "Fe"])
    path = tmp_path / "sife.race.pt"
    export_model(model, path)
    validate_model_outputs(RaceModel(path), torch.device("cpu"), torch.float64)


def test_dynamics_conserve_energy(artifact, atoms):
    """torch-sim's integrator on two systems at once; ASE's forces along the way."""
    model = RaceModel(artifact)
    systems = [atoms.copy(), atoms.copy()]
    systems[1].rattle(0.02, seed=1)
    final = torch_sim.integrate(
        system=systems,
        model=model,
        integrator=torch_sim.integrators.nve,
        n_steps=20,
        temperature=100.0,
        timestep=0.0005,
    )
    calculator = race.Calculator(artifact)
    for k, end in enumerate(torch_sim.io.state_to_atoms(final)):
        assert np.abs(end.positions - systems[k].positions).max() > 1e-4
        want = calculator.get_property("forces", end)
        own = final.system_idx == k
        np.testing.assert_allclose(final.forces[own].numpy(), want, rtol=0, atol=1e-7)


def test_a_cluster_has_no_stress(artifact, atoms):
    cluster = atoms.copy()
    cluster.pbc = False
    out = RaceModel(artifact)(state_of([cluster]))
    assert "stress" not in out and out["forces"].shape == (len(cluster), 3)


def test_an_uncertainty_that_the_artifact_does_not_have(artifact):
    with pytest.raises(RaceError, match="does not give this uncertainty.*energy_std"):
        RaceModel(artifact, uncertainty=["force_std"])
