"""`lead` of the calculator: one member moves the atoms, all say how sure they are."""

import pickle

import ase.units
import numpy as np
import pytest
from ase.md.verlet import VelocityVerlet

from race.deploy.calculator import MEAN, Calculator
from race.deploy.export import alone, export_model
from race.errors import RaceError
from race.predict.artifact import ArtifactPredictor

from .conftest import make_model, triclinic

UNCERTAIN = ["energy_std", "forces_cov", "forces_cov_epistemic", "energy_members", "stress_cov"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """An ensemble that carries its members and a distilled one, and each of these alone."""
    folder = tmp_path_factory.mktemp("lead")
    model = make_model(n_members=3)
    distilled = make_model(seed=3, n_members=1, irreps_hidden="6x0e+4x1o+2x2e")
    leaders = {**alone(model), "distilled": distilled}
    training = {"training": {"cutoff": 3.2, "min_distance": {"B-B": 2.5, "B-N": 2.0, "N-N": 2.5}}}
    export_model(model, folder / "ensemble.race.pt", leaders=leaders, summary=training)
    for name, each in leaders.items():
        export_model(each, folder / f"{name}.race.pt", summary=training)
    return folder


@pytest.mark.parametrize("zbl", [False, True])
@pytest.mark.parametrize("name", ["1", "3", "distilled"])
def test_the_leader_moves_and_all_members_judge(paths, name, zbl):
    atoms = triclinic()
    led = Calculator(paths / "ensemble.race.pt", lead=name, zbl=zbl)
    own = Calculator(paths / f"{name}.race.pt", zbl=zbl)
    mean = Calculator(paths / "ensemble.race.pt", zbl=zbl)
    for quantity in MEAN:
        found, want = (calc.get_property(quantity, atoms) for calc in (led, own))
        np.testing.assert_allclose(found, want, atol=1e-10, err_msg=quantity)
    assert abs(led.results["energy"] - mean.get_property("energy", atoms)) > 1e-3
    for quantity in UNCERTAIN:
        found, want = (calc.get_property(quantity, atoms) for calc in (led, mean))
        np.testing.assert_allclose(found, want, atol=1e-12, err_msg=quantity)
    assert led.results["energy"] == pytest.approx(own.results["energy"], abs=1e-10)


def test_dynamics_pay_for_one_member(paths, monkeypatch):
    """All members are evaluated where an uncertainty is asked for, and nowhere else."""
    asked = []
    evaluate = ArtifactPredictor.members

    def counted(self, atoms, uncertainty=True):
        asked.append((self.metadata["n_members"], uncertainty))
        return evaluate(self, atoms, uncertainty)

    monkeypatch.setattr(ArtifactPredictor, "members", counted)
    atoms = triclinic()
    atoms.calc = Calculator(paths / "ensemble.race.pt", lead="2")
    dynamics = VelocityVerlet(atoms, 0.5 * ase.units.fs)
    dynamics.run(3)
    assert asked == [(1, False)] * 4
    atoms.calc.get_property("energy_std", atoms)
    assert asked[4:] == [(1, False), (3, True)]


def test_copies_know_their_leader(paths):
    atoms = triclinic()
    led = Calculator(paths / "ensemble.race.pt", lead="2")
    copy = pickle.loads(pickle.dumps(led))
    assert copy.get_property("energy", atoms) == led.get_property("energy", atoms)
    assert led.todict()["lead"] == "2"


def test_a_leader_that_the_file_does_not_carry(paths):
    with pytest.raises(RaceError, match="no such member.*--leaders"):
        Calculator(paths / "1.race.pt", lead="2")
