"""One member with a leverage: its parts against their formulas, its factors on errors that are
drawn, and what is far from the training set.
"""

import json
import shutil

import ase
import ase.io
import numpy as np
import pytest
import torch

import race
from race.cli import main
from race.data.dataset import Dataset
from race.data.graph import build_graph
from race.deploy.artifact import read_metadata
from race.deploy.export import export_model
from race.model import grade
from race.model.race import RACE
from race.posterior import leverage
from race.posterior.fit import fit
from race.posterior.options import LeverageOptions
from race.posterior.protocol import Run
from race.predict.artifact import ArtifactPredictor
from race.predict.predictor import ModelPredictor, Prediction, predict_dataset
from race.train import noise
from race.train.checkpoint import write_tensors
from race.train.noise import fit_noise, width_factors
from race.train.run import load_run
from tests.deploy.conftest import graph_of, make_model, triclinic

from .conftest import ELEMENTS, R_MAX, labelled

Z90 = 1.6448536269514722


@pytest.fixture(params=["equivariant", "cholesky"])
def head(request) -> str:
    return request.param


def measured(run: Run) -> RACE:
    """With its leverage, and factors of 1."""
    return leverage.fit([run.as_trained()], LeverageOptions(), run.path).model


def frames(seeds: range, squeeze: float = 1.0) -> list[ase.Atoms]:
    """Like those of the training set."""
    found = []
    for seed in seeds:
        atoms = labelled(seed)
        atoms.calc = None
        atoms.set_cell(atoms.cell * squeeze, scale_atoms=True)
        found.append(atoms)
    return found


def leverages(model: RACE, structures: list[ase.Atoms]) -> np.ndarray:
    """l_i by NumPy, from the features and what the model keeps of the training set's."""
    kept = {name: x.numpy() for name, x in model.leverage.named_buffers()}
    readout, hidden, found = model.layers[-1].readout, [], []
    hook = readout.first.register_forward_hook(lambda _, inputs, out: hidden.append(out))
    for atoms in structures:
        graph = build_graph(atoms, ELEMENTS, R_MAX, torch.float64)
        model(graph, forces=False)
        rows = hidden[-1].detach().numpy()[:, : readout.widths[0]] @ kept["projection"]
        for row, k in zip(rows, graph.species.tolist(), strict=True):
            found.append(np.sum((kept["whiten"][k] @ (row - kept["mean"][k])) ** 2))
    hook.remove()
    return np.array(found)


def test_the_parts_are_noise_times_leverage(trained, fitted, head):
    model = load_run(fitted("leverage", head))[0]
    plain = load_run(trained(head))[0]
    structures = frames(range(30, 33))
    c, found = model.constants.leverage, leverages(model, structures)
    predicted = ModelPredictor(model).predict(structures)
    per_atom = c.forces * found[:, None, None] * predicted.forces.aleatoric
    np.testing.assert_allclose(predicted.forces.epistemic, per_atom, rtol=1e-9)
    factor = model.constants.forces_noise_factor / plain.constants.forces_noise_factor
    before = ModelPredictor(plain).predict(structures)
    if head == "equivariant":  # the other has a floor besides
        np.testing.assert_allclose(
            predicted.forces.aleatoric, factor**2 * before.forces.aleatoric, rtol=1e-9
        )
    np.testing.assert_allclose(predicted.forces.mean, before.forces.mean, rtol=1e-12)
    var = []
    for atoms in structures:
        out = model(build_graph(atoms, ELEMENTS, R_MAX, torch.float64), forces=False)
        var.append(model.node_energy_var(out.raw)[:, 0].detach().numpy())
    rows = found.reshape(len(structures), -1)
    np.testing.assert_allclose(predicted.energy.aleatoric, np.sum(var, 1), rtol=1e-9)
    np.testing.assert_allclose(
        predicted.energy.epistemic, c.energy * np.sum(rows * var, 1), rtol=1e-9
    )


def test_the_grade_is_its_root(fitted, tmp_path):
    """In the artifact, which needs no training set for it; and its parts of the energy, where
    the two factors differ.
    """
    model, _, summary = load_run(fitted("leverage"))
    model.scale_leverage(3.0, 0.5)
    export_model(model, tmp_path / "x.race.pt", summary=summary)
    (atoms,) = frames(range(40, 41))
    atoms.calc = race.Calculator(tmp_path / "x.race.pt", uncertainty=True)
    grade = atoms.calc.get_property("grade", atoms)
    np.testing.assert_allclose(grade**2, leverages(model, [atoms]), rtol=1e-7)
    want, got = (
        predictor.predict([atoms]).energy
        for predictor in (ModelPredictor(model), atoms.calc.predictor)
    )
    np.testing.assert_allclose(got.aleatoric, want.aleatoric, rtol=1e-9)
    np.testing.assert_allclose(got.epistemic, want.epistemic, rtol=1e-9)
    assert atoms.calc.predictor.metadata["grade"] == summary["posterior"]["grade"]
    training = load_run(fitted("leverage"))[1].data.train
    seen = np.sqrt(leverages(model, race.data.read_frames(training[0])[:9]))
    assert 0.3 < np.median(seen) < 1 and seen.max() < 3


def test_the_grade_may_be_a_mixture(fitted, tmp_path):
    """The parts stay those of the distance."""
    path = tmp_path / "x.race.pt"
    assert main(["export", str(fitted("leverage")), "-o", str(path), "--grade", "gmm"]) == 0
    model = load_run(fitted("leverage"))[0]
    structures = frames(range(40, 42))
    predictor = ArtifactPredictor(path)
    assert predictor.metadata["grade"]["kind"] == "gmm"
    want, got = ModelPredictor(model).predict(structures), predictor.predict(structures)
    np.testing.assert_allclose(got.forces.epistemic, want.forces.epistemic, rtol=1e-7)
    np.testing.assert_allclose(got.energy.epistemic, want.energy.epistemic, rtol=1e-9)


def with_labels(model: RACE, structures, a, c, rng) -> Dataset:
    """Errors of a^2 (1 + c l) times what the model says is noise; a, c of energies and forces."""
    predicted = ModelPredictor(model).predict(structures)
    found = leverages(model, structures)
    root = np.linalg.cholesky(predicted.forces.aleatoric)
    drawn = (root @ rng.standard_normal((len(found), 3, 1)))[..., 0]
    forces = predicted.forces.mean + a[1] * np.sqrt(1 + c[1] * found)[:, None] * drawn
    # with c_E of 1 the epistemic part is sum_i l_i var_i
    var = predicted.energy.aleatoric + c[0] * predicted.energy.epistemic
    energy = predicted.energy.mean + a[0] * np.sqrt(var) * rng.standard_normal(len(var))
    out, first = [], 0
    for atoms, e in zip(structures, energy, strict=True):
        atoms = atoms.copy()
        atoms.info["energy"] = e
        atoms.arrays["forces"] = forces[first : first + len(atoms)]
        first += len(atoms)
        out.append(atoms)
    return Dataset(out, ELEMENTS, R_MAX, torch.float64)


def covered(prediction: Prediction, labels) -> tuple[float, float]:
    """Of energies and components of forces, by intervals of 90 %."""
    return tuple(
        float(np.mean(np.abs(getattr(labels, name) - part.mean) <= Z90 * part.std))
        for name, part in (("energy", prediction.energy), ("forces", prediction.forces))
    )


def test_factors_of_errors_that_are_drawn(trained):
    """Both are found, less than they started from included. Nine of ten errors are in the
    interval, in distribution and of squeezed structures, whose epistemic part is the larger.
    """
    rng = np.random.default_rng(0)
    a, c = (1.4, 0.7), (3.0, 0.25)
    model = measured(Run.load(trained()))
    known = with_labels(model, frames(range(1000, 1600)), a, c, rng)
    new = with_labels(model, frames(range(400, 600)), a, c, rng)
    beyond = with_labels(model, frames(range(600, 700), squeeze=0.9), a, c, rng)
    found = fit_noise(model, known.batches(50))
    assert found["energy"] == pytest.approx(a[0], rel=0.15)
    assert found["forces"] == pytest.approx(a[1], rel=0.05)
    factors = model.constants.leverage
    assert factors.energy == pytest.approx(c[0], rel=0.5)
    assert factors.forces == pytest.approx(c[1], rel=0.25)
    assert (found["energy_leverage"], found["forces_leverage"]) == (factors.energy, factors.forces)
    ratios = []
    for dataset in (new, beyond):
        prediction, labels = predict_dataset(model, dataset, 50)
        energies, forces = covered(prediction, labels)
        assert energies == pytest.approx(0.9, abs=0.06) and forces == pytest.approx(0.9, abs=0.02)
        traces = [
            np.trace(getattr(prediction.forces, part), axis1=1, axis2=2)
            for part in ("epistemic", "aleatoric")
        ]
        ratios.append(np.median(traces[0] / traces[1]))
    assert ratios[1] > 5 * ratios[0]


def test_few_energies_leave_their_median_width(trained, monkeypatch):
    model = measured(Run.load(trained()))
    structures = frames(range(100, 130))
    dataset = with_labels(model, structures, (3.0, 1.0), (5.0, 2.0), np.random.default_rng(1))
    before = ModelPredictor(model).predict(structures).energy.aleatoric
    found = fit_noise(model, dataset.batches(30))
    assert found["energy_leverage"] == found["forces_leverage"] != 1
    after = ModelPredictor(model).predict(structures).energy
    # The width of the median frame, whatever one frame far from the training set has
    ratio = np.median(after.total / before)
    assert ratio == pytest.approx(1.0, rel=0.02)
    monkeypatch.setattr(noise, "MIN_ENERGIES", 30)
    again = fit_noise(model, dataset.batches(30))
    assert again["energy_leverage"] != again["forces_leverage"]


def test_a_factor_below_one_is_a_leverages_alone():
    rng = np.random.default_rng(0)
    one, width = np.ones((5000, 1, 1)), rng.uniform(0, 4, (5000, 1, 1))
    error = np.sqrt(1 + 0.09 * width[:, 0]) * rng.standard_normal((5000, 1))
    assert width_factors(error, one, width).spread == 1
    assert width_factors(error, one, width, least=-noise.LARGEST).spread == pytest.approx(0.3, 0.1)


def test_what_is_fitted_next_starts_without_it(fitted, tmp_path):
    """Its weights will be others. A second fit finds about what the first found: the prior of
    the factors is that they change nothing.
    """
    path = fitted("leverage")
    model, config, _ = load_run(path)
    fit("leverage", [path], tmp_path / "again", {})
    again = load_run(tmp_path / "again")[1].constants
    assert again.leverage.forces == pytest.approx(config.constants.leverage.forces, rel=0.2)
    assert again.forces_noise_factor == pytest.approx(config.constants.forces_noise_factor, 0.2)
    fit("ensemble", [path], tmp_path / "taken", {"take": 0})
    taken = load_run(tmp_path / "taken")[0]
    assert not taken.has_leverage and taken.constants.leverage is None
    assert config.constants.as_trained().leverage is None and model.has_leverage


def test_a_run_without_what_it_measures_by_is_refused(fitted, tmp_path):
    shutil.copytree(fitted("leverage"), tmp_path / "run")
    model = load_run(tmp_path / "run")[0]
    write_tensors(tmp_path / "run" / "model.safetensors", dict(model.named_parameters()))
    with pytest.raises(race.RaceError, match=r"do not fit the config: leverage\.mean"):
        load_run(tmp_path / "run")


def test_refusals(trained, tmp_path):
    for run, message in (
        (trained("evidential"), "no leverage posterior for this head.*got evidential"),
        (trained("energy"), "no leverage posterior for this head.*got energy"),
        (trained("equivariant", n_members=3), "starts from one member"),
    ):
        with pytest.raises(race.RaceError, match=message):
            fit("leverage", [run], tmp_path / "x", {})
        assert not (tmp_path / "x").exists()
    run = Run.load(trained())
    changed = run.config.model_copy(deep=True)
    changed.train.forces_weight = 0.0
    with pytest.raises(race.RaceError, match="calibrated by errors of forces"):
        leverage.fit([Run(run.path, run.model, changed, run.summary)], LeverageOptions(), tmp_path)
    changed = run.config.model_copy(deep=True)
    changed.model.energy_aggregation = "paper"
    with pytest.raises(race.RaceError, match="variances of atoms' energies"):
        leverage.fit([Run(run.path, run.model, changed, run.summary)], LeverageOptions(), tmp_path)


def test_an_element_that_was_not_there_has_a_finite_part(trained, tmp_path):
    """The largest; and the artifact's self-test passes, and its total is finite."""
    model = measured(Run.load(trained()))
    model.leverage.whiten[1] = 0
    (atoms,) = frames(range(40, 41))
    predicted = ModelPredictor(model).predict([atoms])
    ratio = predicted.forces.epistemic[:, 0, 0] / predicted.forces.aleatoric[:, 0, 0]
    gold = atoms.symbols == "Au"
    np.testing.assert_allclose(ratio[gold], 1e6, rtol=1e-9)
    assert (ratio[~gold] < 1e3).all() and np.isfinite(predicted.forces_bald).all()
    export_model(model, tmp_path / "x.race.pt", dtype="float32")
    atoms.calc = race.Calculator(tmp_path / "x.race.pt", uncertainty=True)
    bald = atoms.calc.get_property("bald", atoms)
    np.testing.assert_allclose(bald, predicted.forces_bald, rtol=1e-3)
    assert json.loads(atoms.calc.predictor.model.metadata)["head"] == "evidential"


def test_beside_a_noise_of_the_stress(trained, tmp_path):
    """Whose channels stand after that of the leverage, and are what they were."""
    plain = make_model(n_members=1, stress_head="equivariant")
    factors = race.config.LeverageFactors(energy=2.0, forces=3.0)
    tied = RACE(
        plain.config, plain.constants.model_copy(update={"leverage": factors}), torch.float64
    )
    tied.load_state_dict(plain.state_dict() | tied.leverage.state_dict(prefix="leverage."))
    generator = torch.Generator().manual_seed(0)
    for buffer in tied.leverage.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    graph = graph_of(triclinic())
    want, got = plain(graph), tied(graph)
    torch.testing.assert_close(got.virial_cov, want.virial_cov, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        tied.forces_cov(got.raw), plain.forces_cov(want.raw), rtol=1e-12, atol=0
    )
    export_model(tied, tmp_path / "x.race.pt")  # whose self-test has all of it


def test_atoms_far_beyond_the_training_set_do_not_set_the_factors():
    rng = np.random.default_rng(0)
    n = 500
    one, width = np.ones((n, 1, 1)), rng.uniform(0, 4, (n, 1, 1))
    error = np.sqrt(1 + 0.25 * width[:, 0]) * rng.standard_normal((n, 1))
    rows = noise.Errors(error, one, width, np.ones(n), np.zeros(n))
    outlier = rows._replace(epistemic=np.concatenate([np.full((1, 1, 1), 1e6), width[1:]]))

    def factors(rows):
        return width_factors(*rows, least=-noise.LARGEST)

    assert factors(noise._near(outlier)).spread == pytest.approx(factors(rows).spread, rel=0.1)
    assert factors(outlier).spread < 0.1 * factors(rows).spread


def test_a_rare_element_is_seen_beyond_the_first_atoms(trained):
    """Where the leverage is measured, as where a grade is."""
    model = load_run(trained())[0]
    structures = frames(range(4))
    for atoms in structures[:2]:
        atoms.symbols[:] = "Cu"
    batches = [build_graph(atoms, ELEMENTS, R_MAX, torch.float64) for atoms in structures]
    every, of_every = leverage.last_features(model, batches)
    z, species = leverage.last_features(model, batches, grade.Sample(n_atoms=5, n_rare=1))
    assert species.tolist() == [0] * 5 + [1]
    gold = torch.nonzero(of_every == 1)[:1, 0]
    assert torch.equal(z, torch.cat([every[:5], every[gold]]))


def test_the_head_is_the_trained_one_wherever_it_is_shown(fitted, tmp_path, capsys):
    """What librace runs it by is its own affair."""
    run, artifact = fitted("leverage"), tmp_path / "x.race.pt"
    assert main(["export", str(run), "-o", str(artifact)]) == 0
    ase.io.write(tmp_path / "test.extxyz", [labelled(seed) for seed in range(60, 62)])
    for model in (run, artifact):
        out = tmp_path / f"evaluation-{model.name}"
        arguments = [str(model), str(tmp_path / "test.extxyz"), "--out", str(out)]
        assert main(["evaluate", *arguments, "--bootstrap", "0"]) == 0
        (record,) = json.loads((out / "metrics.json").read_text())
        assert (record["posterior"], record["head"]) == ("leverage", "equivariant")
    capsys.readouterr()
    assert main(["info", str(artifact), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["head"] == "equivariant"
    assert read_metadata(artifact)[0]["head"] == "evidential"
