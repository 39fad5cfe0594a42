"""Weights of labels, against the slow way: a frame of weight 2 is there twice, and a force of
weight 0 is NaN.
"""

import ase.io
import numpy as np
import pytest
import torch

from race.config import Config
from race.data import Dataset, read_frames
from race.data.statistics import atomic_energies, energy_scale, force_scale
from race.data.weights import WEIGHT
from race.errors import RaceError
from race.posterior import distill, last_layer, pops
from race.posterior.evidence import Observations
from race.posterior.ggn import weighted
from race.posterior.ivon import default_ess
from race.posterior.llpr import Target, normal_matrix
from race.train.members import initial_model
from race.train.metrics import Metrics, total_forces_cov
from race.train.noise import fit_noise
from race.train.parallel import Ranks
from race.train.prepare import prepare
from tests.data.test_plausibility import copper
from tests.train.test_missing_labels import CASES, problem

TIMES = [1, 3, 2, 1]


def as_weights():
    """Frames with weights TIMES; atom 2 of frame 0 counts twice, atom 3 not at all."""
    frames = copper(4)
    for atoms, n in zip(frames, TIMES, strict=True):
        atoms.info[WEIGHT] = float(n)
    frames[0].arrays[WEIGHT] = np.ones(8)
    frames[0].arrays[WEIGHT][2] = 2.0
    frames[0].arrays["forces"][3] = np.nan
    del frames[1].info["energy"], frames[2].info["stress"]
    return frames


def as_copies():
    """The same without weights. The force that counts twice is alone in a further frame."""
    frames = as_weights()
    copies = [atoms.copy() for atoms, n in zip(frames, TIMES, strict=True) for _ in range(n)]
    again = frames[0].copy()
    again.arrays["forces"][np.arange(8) != 2] = np.nan
    del again.info["energy"], again.info["stress"]
    for atoms in (*copies, again):
        atoms.info.pop(WEIGHT), atoms.arrays.pop(WEIGHT, None)
    return [*copies, again]


def both():
    return [Dataset(frames, ["Cu"], 4.0, torch.float64) for frames in (as_weights(), as_copies())]


def batches():
    return [dataset.batch(range(len(dataset))) for dataset in both()]


def same(one, other, rtol=1e-9):
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_loss_and_its_gradient(kind, head):
    terms, grads = [], []
    for batch in batches():
        _, model, loss = problem(kind, head)
        terms.append(loss(model(batch, create_graph=True), batch, 0.3))
        terms[-1]["loss"].sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for name, value in terms[0].items():
        same(value.detach(), terms[1][name].detach())
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_training_divides_by_the_mean_weight_of_the_set():
    """Batches of one frame: over an epoch the gradient is that of the whole set."""
    _, model, loss = problem("mse", "point")
    dataset = both()[0]
    whole = dataset.batch(range(4))
    loss(model(whole, create_graph=True), whole)["energy"].sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    n = 3  # energies
    for k in range(4):
        batch = dataset.batch([k])
        count = len(batch.weights("energy")) * dataset.mean_weight("energy")
        sums = loss.sums(model(batch, create_graph=True), batch)
        terms = loss.means(sums, dict.fromkeys(sums, count))
        if count:
            (terms["energy"].sum() / n).backward()
    got = [p.grad for p in model.parameters() if p.grad is not None]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_metrics(kind, head):
    config, model, _ = problem(kind, head)
    results = []
    for batch in batches():
        metrics, out = Metrics(config.model, config.constants), model(batch, forces=True).detach()
        metrics.update(batch, out, total_forces_cov(model, out.raw))
        results.append(metrics.result(Ranks()))
    assert {"energy_rmse", "forces_mae", "stress_rmse"} <= results[0].keys()
    for name, value in results[0].items():
        same(value, results[1][name])


def test_noise_factors():
    factors = []
    for batch in batches():
        _, model, _ = problem("nll_jef", "equivariant")
        factors.append(fit_noise(model, [batch])["forces"])
    assert factors[0] == pytest.approx(factors[1], rel=1e-5) and factors[0] != 1.0


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_statistics(pooling):
    frames, copies = as_weights(), as_copies()
    for atoms in (*frames, *copies):  # two elements whose energies a fit must compromise on
        atoms.numbers[: int(atoms.info["energy"] * 1e3) % 7 if "energy" in atoms.info else 1] = 79
    e0 = [atomic_energies(part, ["Cu", "Au"], pooling=pooling) for part in (frames, copies)]
    same(*e0)
    same(*(energy_scale(part, ["Cu", "Au"], e0[0], pooling=pooling) for part in (frames, copies)))
    same(force_scale(frames), force_scale(copies))
    plain = copper(4)
    assert abs(force_scale(plain) - force_scale(frames)) > 1e-3


def test_curvature_of_readouts():
    """F^T F of LLPR and POPS, corrections and their axes, residuals and rows of Laplace."""
    config, _, _ = problem("mse", "point")
    one_member = config.model.model_copy(update={"n_members": 1})
    model = initial_model(one_member, config.constants, 0, torch.float64)
    weights, copies = both()
    matrices = [normal_matrix(model, part, 2, True) for part in (weights, copies)]
    same(*matrices, rtol=1e-7)
    root = np.linalg.inv(np.linalg.cholesky(matrices[0] + 1e-3 * np.eye(len(matrices[0])))).T
    found = [pops.corrections(model, part, 2, True, root) for part in (weights, copies)]
    for shape in ("covariance", "hypercube"):
        squares = [r @ r.T for r in (pops.axes(*one, shape) for one in found)]
        same(*squares, rtol=1e-6)
    parts = []
    for dataset in (weights, copies):
        observed = Observations(config, model)
        batch = dataset.batch(range(len(dataset)))
        _, noise = observed.add(batch)
        rows = noise.whiten_energy(last_layer.frame_features(model, batch)).double()
        rows = weighted(rows, batch, "energy")
        parts.append((observed.residuals, observed.counts, torch.einsum("nmd,nme->de", rows, rows)))
    for one, other in zip(*parts, strict=True):
        same(one, other, rtol=1e-7)
    assert parts[0][1] == [4.0, 3 * (7 + 1 + 3 * 8 + 2 * 8 + 8)]


def test_calibration_of_llpr():
    rng = np.random.default_rng(0)
    error, rows, times = rng.normal(size=(9, 3)), rng.normal(size=(9, 3, 4)), np.arange(1, 10)
    one = Target(error, rows, times.astype(float)).fit(np.eye(4))
    copies = Target(*(np.repeat(a, times, axis=0) for a in (error, rows)), np.ones(45))
    same(one, copies.fit(np.eye(4)))


def test_calibration_of_a_student(monkeypatch):
    """Of both totals, one frame at a time."""
    monkeypatch.setattr(distill, "MIN_ENERGIES", 1)
    _, teacher, _ = problem("nll_jef", "equivariant")
    found = []
    for dataset in both():
        student = distill.student_of(teacher, 0, 0).eval()
        student.scale_noise(1000.0, 100.0)  # from where the factors are within their bounds
        found.append(distill.fit_total(student, dataset, 1))
    for name in ("energy", "forces"):
        same(found[0][name], found[1][name], rtol=1e-5)
        assert abs(np.log(found[0][name])) < 3.9


def test_effective_sample_size():
    weights, copies = both()
    train = Config(data={"train": ["x"]}).train
    sizes = [
        default_ess(train, part.total_weight("energy"), part.total_weight("forces"))
        for part in (weights, copies)
    ]
    assert sizes[0] == sizes[1] == (7 + 1 + 3 * 8 + 2 * 8 + 8) / train.forces_weight


def written(tmp_path, frames):
    for atoms in frames:
        stress = atoms.info.pop("stress")
        atoms.info["stress"] = stress[[0, 1, 2, 5, 4, 3]]
        atoms.info.pop("race_origin")
    ase.io.write(tmp_path / "a.xyz", frames, format="extxyz")
    return tmp_path / "a.xyz"


def test_files_have_weights_of_frames_atoms_and_types(tmp_path):
    frames = copper(5)
    frames[0].info["weight"] = 0.5
    frames[1].info |= {"weight": 4, "config_type": "liquid"}
    frames[2].info["config_type"] = "liquid"
    frames[3].info["weight"] = 0
    frames[4].arrays["weight"] = np.array([0, 1, 1, 2, 1, 1, 1, 0])
    path = written(tmp_path, frames)
    read = read_frames(path, weight_key="weight", config_weights={"liquid": 0.25})
    assert [atoms.info.get(WEIGHT, 1.0) for atoms in read] == [0.5, 1.0, 0.25, 1.0]
    forces = read[3].arrays["forces"]
    assert np.isnan(forces).all(1).tolist() == [True] + 6 * [False] + [True]
    graph = Dataset(read, ["Cu"], 4.0, torch.float64).batch([2, 3])
    assert graph.weights("energy").tolist() == [0.25, 1.0]
    assert graph.weights("forces").tolist() == 8 * [0.25] + [1, 1, 2, 1, 1, 1]
    plain = read_frames(path)
    assert len(plain) == 5 and not any(WEIGHT in atoms.info for atoms in plain)


def test_a_mask_is_a_weight(tmp_path):
    frames = copper(2)
    frames[0].arrays["inner"] = np.arange(8) < 3
    read = read_frames(written(tmp_path, frames), weight_key="inner")
    assert np.isfinite(read[0].arrays["forces"]).all(1).tolist() == 3 * [True] + 5 * [False]


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), "heavy"])
def test_what_is_no_weight_is_refused(tmp_path, wrong):
    frames = copper(2)
    frames[1].info["weight"] = wrong
    path = written(tmp_path, frames)
    with pytest.raises(RaceError, match="frame 1: weight is no weight.*data.weight_key"):
        read_frames(path, weight_key="weight")


def test_the_options_reach_the_training_set(tmp_path):
    frames = copper(12)
    for k, atoms in enumerate(frames):
        atoms.info |= {"weight": 1.0 + k, "config_type": "abc"[k % 3]}
    path = written(tmp_path, frames)
    options = {"train": [path], "config_weights": {"a": 2.0, "b": 0.0}}
    prepared = prepare(Config(data=options, model={"r_max": 4.0}))
    every = [*prepared.train.frames, *prepared.validation.frames]
    assert len(every) == 8
    for atoms in every:
        k = int(atoms.info["race_origin"].split()[-1])
        assert atoms.info[WEIGHT] == (1.0 + k) * (2.0 if k % 3 == 0 else 1.0)
    assert "weights     7 of 7 frames, 2 to 20" in prepared.report.text()
    with pytest.raises(RaceError, match="no frame of config_type z.*expected a, b, c"):
        prepare(Config(data=options | {"config_weights": {"z": 2.0}}))
