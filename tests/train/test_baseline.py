"""A model on top of another potential: the training is the one on labels from which that potential
was subtracted by hand, and every prediction is the sum.
"""

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

import race
from race.cli import main
from race.config import BaselineOptions
from race.data.baseline import Baseline
from race.deploy.export import export_model
from race.deploy.hybrid import hybrid_lines
from race.errors import RaceError
from race.evaluate.evaluated import evaluated_run, open_model
from race.train.checkpoint import read_tensors
from race.train.prepare import prepare
from race.train.run import load_run
from race.train.training import train
from tests.train.conftest import labelled, make_config

ARGUMENTS = {"sigma": 2.2, "epsilon": 0.15, "rc": 4.5, "smooth": True}
LJ = {"calculator": "ase.calculators.lj:LennardJones", "arguments": ARGUMENTS}
STRESS = {"stress_weight": 1.0}
NAMES = ("energy", "forces", "stress")


def minus(atoms, other):
    """By hand."""
    out = atoms.copy()
    out.calc = other
    own = {name: out.calc.get_property(name, out) for name in NAMES}
    results = {name: atoms.calc.results[name] - own[name] for name in NAMES}
    out.calc = SinglePointCalculator(out, **results)
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Exact to the last digit, which extended xyz is not."""
    folder = tmp_path_factory.mktemp("baseline")
    frames = [labelled(seed) for seed in range(12)]
    ase.io.write(folder / "total.traj", frames)
    ase.io.write(
        folder / "rest.traj", [minus(atoms, LennardJones(**ARGUMENTS)) for atoms in frames]
    )
    return folder


@pytest.fixture(scope="module")
def run(files):
    train(make_config(files / "total.traj", train=STRESS, baseline=LJ), files / "run")
    return files / "run"


@pytest.fixture(scope="module")
def artifact(run):
    model, _, summary = load_run(run)
    export_model(model, run.parent / "x.race.pt", summary=summary)
    return run.parent / "x.race.pt"


def test_training_is_that_on_the_rest(files, run):
    train(make_config(files / "rest.traj", train=STRESS), files / "by-hand")
    one, other = (read_tensors(folder / "model.safetensors") for folder in (run, files / "by-hand"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-9, atol=1e-11)


def test_resumed_and_read_again(files, run):
    again = make_config(files / "total.traj", train=STRESS, baseline=LJ)
    assert train(again, run, resume=True).state.epoch == 2
    with pytest.raises(RaceError, match=r"data\.baseline: differs from the run that --resume"):
        other = {**LJ, "arguments": {**ARGUMENTS, "epsilon": 0.2}}
        train(make_config(files / "total.traj", train=STRESS, baseline=other), run, resume=True)


def test_predictions_are_the_sum(files, run, artifact):
    """Of a run, an artifact and the calculator: the model's own plus the baseline's."""
    atoms = labelled(99)
    rest = minus(atoms, LennardJones(**ARGUMENTS))
    baseline = {name: atoms.calc.results[name] - rest.calc.results[name] for name in NAMES}
    calculator = race.Calculator(artifact, uncertainty=True)
    alone = calculator.predictor.members(atoms)
    energy = float(alone.energy.mean()) + baseline["energy"]
    forces = alone.forces.mean(1).numpy() + baseline["forces"]
    voigt = [0, 1, 2, 5, 4, 3]
    stress = alone.stress.mean(0).numpy()[voigt] + baseline["stress"]
    for source in (open_model(run), open_model(artifact)):
        found = source.moments([atoms])
        assert found.energy.mean[0] == pytest.approx(energy, abs=1e-8)
        np.testing.assert_allclose(found.forces.mean, forces, atol=1e-8)
        np.testing.assert_allclose(found.stress.mean[0][voigt], stress, atol=1e-9)
    got = {name: calculator.get_property(name, atoms) for name in NAMES}
    assert got["energy"] == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(got["forces"], forces, atol=1e-9)
    np.testing.assert_allclose(got["stress"], stress, atol=1e-10)
    members = calculator.get_property("forces_members", atoms)
    np.testing.assert_allclose(members.mean(1), got["forces"], atol=1e-9)
    assert "energies" not in calculator.implemented_properties
    assert np.mean(np.abs(baseline["forces"])) > 0.1  # else the test would not see it


def test_errors_are_those_of_training(files, run):
    """`race evaluate` of the run on the files as they are."""
    source = evaluated_run(run)
    split = source.split("all", source.read(files / "total.traj"))
    by_hand = evaluated_run(run)
    by_hand.baseline = None
    rest = by_hand.split("rest", by_hand.read(files / "rest.traj"))
    error = split.prediction.forces.mean - split.labels.forces
    expected = rest.prediction.forces.mean - rest.labels.forces
    np.testing.assert_allclose(error, expected, atol=1e-9)


def test_predict_writes_the_sum(files, artifact, run):
    for model in (run, artifact):
        out = files / "predicted.extxyz"
        assert main(["predict", str(model), str(files / "total.traj"), "-o", str(out)]) == 0
        atoms = ase.io.read(out, 3)
        expected = race.Calculator(artifact).get_property("energy", labelled(3))
        assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-5)


def test_isolated_atoms_lose_it_too(files, tmp_path):
    """E0 of a model on top of EMT is that of the atom minus EMT's."""
    emt = {"calculator": "ase.calculators.emt.EMT"}
    atom = {symbol: EMT().get_potential_energy(ase.Atoms(symbol)) for symbol in ("Cu", "Au")}
    assert abs(atom["Cu"]) > 1.0
    given = {"Cu": -10.0, "Au": -20.0}
    config = make_config(files / "total.traj", baseline=LJ, atomic_energies=given)
    constants = prepare(config).config.constants
    assert constants.atomic_energies == [-10.0, -20.0]  # a pair potential has none of an atom
    config = make_config(
        files / "rest.traj", baseline=emt, atomic_energies=given, accept=["huge-forces"]
    )
    constants = prepare(config).config.constants
    values = dict(zip(constants.elements, constants.atomic_energies, strict=True))
    assert values == pytest.approx({s: given[s] - atom[s] for s in given})


def test_zeros_of_the_file_are_still_seen(files, tmp_path):
    """Forces of frozen atoms are zero before the baseline is subtracted."""
    frames = [labelled(seed) for seed in range(12)]
    for atoms in frames:
        atoms.calc.results["forces"][:2] = 0.0
    ase.io.write(tmp_path / "frozen.traj", frames)
    report = prepare(make_config(tmp_path / "frozen.traj", baseline=LJ)).report
    assert "24 atoms of 12 frames" in dict(report.findings)["zero-forces"]


def test_frames_that_it_cannot_compute(files, tmp_path):
    """One line with the frame; left out where the user allows it."""
    frames = [labelled(seed) for seed in range(12)]
    frames[5].symbols[1] = "Fe"  # EMT has none
    frames[5].calc.atoms = frames[5].copy()
    ase.io.write(tmp_path / "iron.traj", frames)
    emt = {"calculator": "ase.calculators.emt.EMT"}
    options = {"baseline": emt, "accept": ["huge-forces"]}
    options |= {"atomic_energies": {"Cu": 0.0, "Au": 0.0}}
    with pytest.raises(RaceError, match=r"iron.traj, frame 5: the baseline failed .*Fe"):
        prepare(make_config(tmp_path / "iron.traj", **options))
    zero = {"model": {"scale": [1.0, 1.0], "sigma0": 0.1}, "train": {"forces_weight": 0.0}}
    zero["train"] |= {"loss": "nll_e"}
    prepared = prepare(make_config(tmp_path / "iron.traj", skip_bad_frames=1, **options, **zero))
    assert len(prepared.train) + len(prepared.validation) == 11
    assert len(prepared.summary["left_out"]) == 1


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({}, "a baseline is a calculator, or lammps commands"),
        ({"lammps": ["pair_style lj/cut 5"]}, "baseline.elements names"),
        ({"lammps": ["pair_coeff * * 1 1"], "elements": ["Cu"]}, "one pair_style"),
        ({"lammps": ["pair_style hybrid zbl 1 2"], "elements": ["Cu"]}, "hybrid/overlay"),
        ({"calculator": "ase.calculators.none.None"}, "data.baseline.calculator: no such"),
        ({"calculator": "race.nothing:X"}, "data.baseline.calculator: no such"),
        ({**LJ, "arguments": 3}, "arguments"),
    ],
)
def test_refusals(files, baseline, message, tmp_path, capsys):
    import yaml

    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump({"data": {"train": [str(files / "total.traj")], "baseline": baseline}})
    )
    assert main(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_warm_start_keeps_it(files, run, tmp_path):
    config = make_config(files / "total.traj", train={"warm_start": run})
    config.model.__pydantic_fields_set__.clear()
    with pytest.raises(RaceError, match=r"data\.baseline: differs .* expected .*Lennard.* none"):
        train(config, tmp_path / "run")


def test_means_over_atoms_have_none(files):
    with pytest.raises(ValueError, match="data.baseline needs model.pooling sum"):
        make_config(files / "total.traj", model={"pooling": "mean"}, baseline=LJ)


def test_lines_of_lammps():
    zbl = ["pair_style zbl 3.0 4.0", "pair_coeff 1 1 29 29", "pair_modify shift yes"]
    options = BaselineOptions(lammps=zbl, elements=["Cu", "H"])
    assert hybrid_lines(options, "x.race.pt", ["Au", "Cu"]) == [
        "pair_style hybrid/overlay race x.race.pt zbl 3.0 4.0",
        "pair_coeff * * race Cu NULL",
        "pair_coeff 1 1 zbl 29 29",
        "pair_modify pair zbl shift yes",
    ]
    both = ["pair_style hybrid/overlay zbl 3 4 lj/cut 5", "pair_coeff * * lj/cut 0.1 2"]
    options = BaselineOptions(lammps=both, elements=["Cu"])
    assert hybrid_lines(options, "x.race.pt", ["Cu"])[::2] == [
        "pair_style hybrid/overlay race x.race.pt zbl 3 4 lj/cut 5",
        "pair_coeff * * lj/cut 0.1 2",
    ]
    assert hybrid_lines(BaselineOptions(**LJ), "x", ["Cu"]) == []


class Counted(EMT):
    """How many of it are made, and what each is asked about."""

    asked: list[list[str]] = []

    def __init__(self):
        super().__init__()
        self.asked.append([])
        self.mine = self.asked[-1]

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        self.mine.append(str(atoms.symbols))
        if "Au" in atoms.symbols:
            raise RuntimeError("no gold")
        super().calculate(atoms, properties, system_changes)


def test_a_calculator_is_kept_while_the_atoms_are_the_same(monkeypatch):
    """And made anew for others, for a cluster, whose box may not be kept, and after a failure."""
    monkeypatch.setattr(Counted, "asked", [])
    baseline = Baseline(BaselineOptions(calculator=f"{__name__}.Counted"))
    copper = ase.build.bulk("Cu", cubic=True)
    nickel, gold = (ase.build.bulk(x, cubic=True) for x in ("Ni", "Au"))
    cluster = copper.copy()
    cluster.pbc = False

    def made(atoms):
        baseline.of(atoms)
        return len(Counted.asked)

    assert [made(x) for x in (copper, copper, nickel, copper)] == [1, 1, 2, 3]
    assert [made(x) for x in (cluster, cluster, copper)] == [4, 5, 6]
    with pytest.raises(RaceError, match="the baseline failed .no gold"):
        baseline.of(gold)
    with pytest.raises(RaceError, match="the baseline failed .no gold"):
        baseline.of(gold)
    assert len(Counted.asked) == 8
