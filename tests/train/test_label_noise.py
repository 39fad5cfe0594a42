"""Noise of labels by source, against the slow way: each row alone with its own covariance, or, if
all labels are alike, a run whose constants hold the noise.
"""

from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from race.config import Config
from race.data import Dataset
from race.data.label_noise import NOISE, frame_noise
from race.errors import RaceError
from race.evaluate.evaluated import evaluated_run, of_labels
from race.heads import HEADS
from race.model.race import RACE
from race.posterior import distill, last_layer, pops
from race.posterior.evidence import Observations
from race.posterior.ggn import Noise, loss_curvature
from race.posterior.llpr import Target, force_noise, normal_matrix
from race.posterior.shallow import JointLoss
from race.predict.moments import total_variance
from race.predict.predictor import predict_batch
from race.train.loss import STRESS_LENGTH, Loss
from race.train.metrics import Z90, Metrics, total_forces_cov
from race.train.noise import fit_noise, width_factors
from race.train.parallel import Ranks
from race.train.prepare import prepare
from race.train.training import train
from tests.data.test_plausibility import copper
from tests.train.conftest import labelled
from tests.train.test_missing_labels import CASES, problem

# Of each frame: energy eV, forces eV/A, stress eV/A^3
STD = np.array([[0.0, 0.0, 0.0], [0.3, 0.2, 0.01], [0.05, 1.0, 0.002], [0.0, 0.0, 0.0]])
GAUSSIAN = [case for case in CASES if not HEADS[case[1]].own_epistemic]


def noisy(std=STD):
    frames = copper(4)
    for atoms, own in zip(frames, std, strict=True):
        atoms.info[NOISE] = list(own)
    return Dataset(frames, ["Cu"], 4.0, torch.float64)


def batch_of(dataset):
    return dataset.batch(range(len(dataset)))


def rows_of(batch, k):
    return [int(i) for i in (batch.frame == k).nonzero()]


def test_a_batch_has_the_noise_of_its_frames():
    batch = noisy().batch([2, 1])
    assert batch.noise.tolist() == STD[[2, 1]].tolist()
    assert batch.noise_var("forces").tolist() == pytest.approx([1.0] * 8 + [0.04] * 8)
    plain = Dataset(copper(4), ["Cu"], 4.0, torch.float64)
    assert batch_of(plain).noise is None and batch_of(plain).noise_var("energy") is None
    mixed = copper(2)
    mixed[1].info[NOISE] = [1.0, 2.0, 3.0]
    assert batch_of(Dataset(mixed, ["Cu"], 4.0, torch.float64)).noise.tolist() == [
        [0.0, 0.0, 0.0],
        [1.0, 2.0, 3.0],
    ]


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("kind", "head"), GAUSSIAN)
def test_loss_row_by_row(kind, head, beta):
    config, model, loss = problem(kind, head)
    batch, constants = batch_of(noisy()), config.constants
    out = model(batch).detach()
    rows = {name: value.numpy() for name, value in loss.rows(out, batch, beta).items()}
    cov = model.forces_cov(out.raw).detach().numpy() if kind == "nll_jef" else None
    for k, (s_energy, s_forces, s_stress) in enumerate(STD):
        volume = float(batch.volume[k])
        for m in range(2):
            error = float(out.energy[k, m] - batch.energy[k])
            unit = 8 * constants.sigma0_energy**2 + s_energy**2
            expected = 0.5 * error**2 / unit
            if kind != "mse":
                var = float(out.energy_var[k, m]) + s_energy**2
                nll = -norm.logpdf(error, scale=var**0.5) - 0.5 * np.log(2 * np.pi)
                expected = (var / unit) ** beta * nll
            assert rows["energy"][k, m] == pytest.approx(expected, rel=1e-9)
            for i in rows_of(batch, k):
                e = (out.forces[i, m] - batch.forces[i]).numpy()
                unit = constants.sigma0**2 + s_forces**2
                expected = 0.5 * (e @ e) / unit
                if cov is not None:
                    total = cov[i, m] + s_forces**2 * np.eye(3)
                    nll = -multivariate_normal.logpdf(e, cov=total) - 1.5 * np.log(2 * np.pi)
                    expected = (np.linalg.det(total) ** (1 / 3) / unit) ** beta * nll
                assert rows["forces"][i, m] == pytest.approx(expected, rel=1e-8)
            # The stress knows the model's force deviation, not that of the force labels
            each = [constants.sigma0**2] * 8
            if cov is not None:
                each = [np.linalg.det(cov[i, m]) ** (1 / 3) for i in rows_of(batch, k)]
            w = volume * (out.stress[k, m] - batch.stress[k]).numpy()
            unit = sum(each) * STRESS_LENGTH**2 + (volume * s_stress) ** 2
            assert rows["stress"][k, m] == pytest.approx(0.5 * (w @ w) / unit, rel=1e-8)


def test_noise_of_the_stress_beside_a_predicted_one():
    config, model, loss = problem("nll_jef", "equivariant")
    batch = batch_of(noisy())
    out = model(batch).detach()
    random = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    cov = random @ random.mT + torch.eye(6)
    rows = loss.rows(replace(out, virial_cov=cov), batch)["stress"].numpy()
    for k in range(4):
        volume = float(batch.volume[k])
        total = cov[k, 0].numpy() + (volume * STD[k, 2]) ** 2 * np.eye(6)
        w = volume * (out.stress[k, 0] - batch.stress[k]).numpy()
        nll = -multivariate_normal.logpdf(w, cov=total) - 3 * np.log(2 * np.pi)
        assert rows[k, 0] == pytest.approx(nll, rel=1e-8)


@pytest.mark.parametrize(("kind", "head"), GAUSSIAN)
def test_its_gradient_is_finite_and_none_without_noise_changes(kind, head):
    _, model, loss = problem(kind, head)
    for std, other in ((0 * STD, Dataset(copper(4), ["Cu"], 4.0, torch.float64)), (STD, None)):
        batch = batch_of(noisy(std))
        loss(model(batch, create_graph=True), batch, 0.3)["loss"].sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        assert grads and all(torch.isfinite(grad).all() for grad in grads)
        model.zero_grad()
        if other is not None:
            plain = batch_of(other)
            loss(model(plain, create_graph=True), plain, 0.3)["loss"].sum().backward()
            expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            torch.testing.assert_close(grads, expected, rtol=1e-8, atol=1e-10)
            model.zero_grad()


def test_joint_loss_of_a_shallow_ensemble():
    config, model, _ = problem("nll_jef", "equivariant")
    loss = JointLoss(config, model.force_covariance)
    batch = batch_of(noisy())
    out = model(batch).detach()
    rows = loss.rows(out, batch)
    floor = 1e-4 * np.array([config.constants.sigma0_energy, config.constants.sigma0]) ** 2
    energy = total_variance(out.energy)
    for k in range(4):
        var = float(energy.total[k]) + 8 * floor[0] + STD[k, 0] ** 2
        error = float(energy.mean[k] - batch.energy[k])
        expected = 0.5 * (error**2 / var + np.log(var))
        assert float(rows["energy"][k, 0]) == pytest.approx(expected, rel=1e-8)
    forces = total_variance(out.forces)
    for i in range(batch.n_atoms):
        var = floor[1] + STD[int(batch.frame[i]), 1] ** 2
        e = (forces.mean[i] - batch.forces[i]).numpy()
        total = forces.total[i].numpy() + var * np.eye(3)
        nll = -multivariate_normal.logpdf(e, cov=total) - 1.5 * np.log(2 * np.pi)
        # Two members spread along a line: the covariance is nearly singular
        assert float(rows["forces"][i, 0]) == pytest.approx(nll, rel=1e-6)


def test_metrics_judge_labels_by_both():
    config, model, _ = problem("nll_jef", "equivariant")
    batch = batch_of(noisy())
    out = model(batch).detach()
    metrics = Metrics(config.model, config.constants)
    metrics.update(batch, out, total_forces_cov(model, out.raw))
    result = metrics.result(Ranks())
    bare = Metrics(config.model, config.constants)
    bare.update(replace(batch, noise=None), out, total_forces_cov(model, out.raw))
    for name, value in bare.result(Ranks()).items():
        if not name.endswith(("_nll", "_coverage")):
            torch.testing.assert_close(result[name], value, equal_nan=True)
    cov, inside, nll = model.forces_cov(out.raw).detach(), [], []
    for i in range(batch.n_atoms):
        total = cov[i, 1].numpy() + STD[int(batch.frame[i]), 1] ** 2 * np.eye(3)
        e = (out.forces[i, 1] - batch.forces[i]).numpy()
        inside.append(abs(e) <= Z90 * np.sqrt(np.diag(total)))
        nll.append(-multivariate_normal.logpdf(e, cov=total) - 1.5 * np.log(2 * np.pi))
    assert float(result["forces_nll"][1]) == pytest.approx(np.mean(nll), rel=1e-8)
    assert float(result["forces_coverage"][1]) == pytest.approx(np.mean(inside))
    var = out.energy_var[:, 1].numpy() + STD[:, 0] ** 2
    error = (out.energy[:, 1] - batch.energy).numpy()
    expected = np.mean(0.5 * (error**2 / var + np.log(var)))
    assert float(result["energy_nll"][1]) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("a", "b"), [(0.6, 1.0), (1.0, 1.5)])
def test_factors_are_found_beside_the_noise_of_labels(a, b):
    """Errors that are drawn with it; without it the factor on the noise would be twice as large."""
    rng = np.random.default_rng(0)
    n = 20000
    root = rng.normal(size=(2, n, 3, 3))
    aleatoric, epistemic = root[0] @ root[0].swapaxes(1, 2) + np.eye(3), np.zeros((n, 3, 3))
    epistemic[:] = root[1] @ root[1].swapaxes(1, 2) * rng.choice([0.1, 10.0], n)[:, None, None]
    own = rng.choice([0.0, 9.0, 30.0], n)
    cov = a**2 * aleatoric + b**2 * epistemic + own[:, None, None] * np.eye(3)
    error = (np.linalg.cholesky(cov) @ rng.normal(size=(n, 3, 1)))[..., 0]
    found = width_factors(error, aleatoric, epistemic, own=own)
    assert found == pytest.approx((a, b), rel=0.05)
    assert width_factors(error, aleatoric, epistemic).noise > 1.5 * a
    alone = (np.linalg.cholesky(b**2 * epistemic + 9 * np.eye(3)) @ rng.normal(size=(n, 3, 1)))[
        ..., 0
    ]
    assert width_factors(alone, None, epistemic, own=np.full(n, 9.0)).spread == pytest.approx(
        b, rel=0.05
    )


def test_fitted_factors_know_it(monkeypatch):
    monkeypatch.setattr("race.train.noise.MIN_ENERGIES", 1)
    found = []
    for std in (0 * STD, STD + 3.0):
        _, model, _ = problem("nll_jef", "equivariant")
        found.append(fit_noise(model, [batch_of(noisy(std))]))
    assert found[1]["forces"] < 0.9 * found[0]["forces"]
    assert found[1]["energy"] < found[0]["energy"]


def alike(std):
    """(dataset of labels with noise, model; dataset without it, model whose constants hold it)."""
    config, _, _ = problem("mse", "point")
    constants = config.constants
    wider = constants.model_copy(
        update={
            "sigma0": (constants.sigma0**2 + std[1] ** 2) ** 0.5,
            "sigma0_energy": (constants.sigma0_energy**2 + std[0] ** 2 / 8) ** 0.5,
        }
    )
    one = config.model.model_copy(update={"n_members": 1})
    torch.manual_seed(0)
    models = [RACE(one, each, torch.float64) for each in (constants, wider)]
    models[1].load_state_dict(models[0].state_dict())
    plain = Dataset(copper(4), ["Cu"], 4.0, torch.float64)
    configs = [config, config.model_copy(update={"constants": wider})]
    return [
        (noisy([std] * 4), models[0], configs[0]),
        (plain, models[1], configs[1]),
    ]


def test_curvature_is_that_of_constants_that_hold_the_noise():
    found = []
    for dataset, model, config in alike([0.3, 0.2, 0.0]):
        batch = batch_of(dataset)
        matrix = normal_matrix(model, dataset, 2, True)
        observed = Observations(config, model)
        observed.add(batch)
        loss = Loss(config, model.force_covariance)
        generator = torch.Generator().manual_seed(0)
        fisher = loss_curvature(config, model, loss, [batch], generator)
        root = np.linalg.inv(np.linalg.cholesky(matrix + 1e-3 * np.eye(len(matrix)))).T
        changes, weights = pops.corrections(model, dataset, 2, True, root)
        found.append([matrix, observed.residuals, *fisher, changes, weights])
    for one, other in zip(*(part[:-1] for part in found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-12)
    ratio = np.unique(np.round(found[0][-1] / found[1][-1], 9))  # of energies, of forces
    c = problem("mse", "point")[0].constants
    expected = [c.sigma0**2 / (c.sigma0**2 + 0.04), 8 * c.sigma0_energy**2]
    expected[1] /= expected[1] + 0.09
    np.testing.assert_allclose(ratio, sorted(expected), rtol=1e-6)


def test_curvatures_of_sources_add_up():
    (_, model, config), _ = alike([0.0] * 3)
    whole = normal_matrix(model, noisy(), 2, True)
    parts = 0.0
    for k, std in enumerate(STD):
        pairs = alike(std)
        plain, wider, _ = pairs[1]
        one = Dataset([plain.frames[k]], ["Cu"], 4.0, torch.float64)
        parts = parts + normal_matrix(wider, one, 1, True)
    np.testing.assert_allclose(whole, parts, rtol=1e-8, atol=1e-10)
    assert force_noise(model, batch_of(noisy()))[8:16].tolist() == pytest.approx(
        [(config.constants.sigma0**2 + 0.04) ** 0.5] * 8
    )
    assert last_layer.weights(model).shape[1] == len(whole)


def test_whitening_of_a_likelihood():
    config, model, _ = problem("nll_jef", "cholesky")
    batch = batch_of(noisy())
    out = model(batch).detach()
    noise = Noise.of(config, model, batch, out)
    own = torch.from_numpy(STD**2)
    torch.testing.assert_close(noise.energy**2, out.energy_var + own[:, :1])
    expected = model.forces_cov(out.raw).detach()
    expected = expected + own[batch.frame, 1].view(-1, 1, 1, 1) * torch.eye(3)
    torch.testing.assert_close(noise.forces @ noise.forces.mT, expected)


def test_calibration_of_llpr_beside_noise():
    """alpha of errors that are drawn, and the likelihood that a grid of alphas has, too."""
    rng = np.random.default_rng(0)
    rows, noise = rng.normal(size=(4000, 3, 5)), rng.choice([0.0, 4.0], 4000)
    root = np.diag([1.0, 0.5, 0.3, 0.2, 0.1])
    cov = Target(np.zeros((4000, 3)), rows, np.ones(4000)).covariance(root)
    total = 0.7**2 * cov + noise[:, None, None] * np.eye(3)
    error = (np.linalg.cholesky(total) @ rng.normal(size=(4000, 3, 1)))[..., 0]
    target = Target(error, rows, np.ones(4000), noise)
    alpha, nll = target.fit(root)
    assert alpha == pytest.approx(0.7, rel=0.03)
    grid = [target.fit(root, a)[1] for a in np.linspace(0.6, 0.8, 41)]
    assert nll <= min(grid) + 1e-9
    slow = -np.mean(
        [multivariate_normal.logpdf(e, cov=c) for e, c in zip(error, total, strict=True)]
    )
    assert target.fit(root, 0.7)[1] == pytest.approx(slow - 1.5 * np.log(2 * np.pi), rel=1e-6)
    assert Target(error, rows, np.ones(4000)).fit(root)[0] > 1.0
    none = Target(error, rows, np.ones(4000), 0 * noise)
    assert none.fit(root) == Target(error, rows, np.ones(4000)).fit(root)


def test_a_student_learns_from_its_teacher_and_is_judged_by_labels(monkeypatch):
    _, teacher, _ = problem("nll_jef", "equivariant")
    dataset = noisy()
    taught = distill.Taught(dataset.frames, teacher, torch.float64, (1e-3, 1e-3))
    assert taught.batch([0, 1]).noise is None
    monkeypatch.setattr(distill, "MIN_ENERGIES", 1)
    found = []
    for std in (0 * STD, STD + 30.0):
        student = distill.student_of(teacher, 0, 0).eval()
        found.append(distill.fit_total(student, noisy(std), 2))
    assert all(found[1][name] < found[0][name] for name in ("energy", "forces"))


def test_predictions_of_labels():
    _, model, _ = problem("nll_jef", "equivariant")
    dataset = noisy()
    found = predict_batch(model, batch_of(dataset))
    wider = of_labels(found, dataset.frames)
    np.testing.assert_allclose(wider.energy.total - found.energy.total, STD[:, 0] ** 2)
    own = np.repeat(STD[:, 1], 8)[:, None, None] ** 2 * np.eye(3)
    np.testing.assert_allclose(wider.forces.total - found.forces.total, own, atol=1e-12)
    own = STD[:, 2, None, None] ** 2 * np.eye(6)
    np.testing.assert_allclose(wider.stress.total - found.stress.total, own, atol=1e-12)
    assert of_labels(found, copper(4)) is found


# ---- options -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    frames = [labelled(seed) for seed in range(16)]
    for k, atoms in enumerate(frames):
        atoms.info["method"] = "dft" if k % 2 else "qmc"
    ase.io.write(folder / "a.xyz", frames[:6])
    ase.io.write(folder / "b.xyz", frames[6:12])
    ase.io.write(folder / "v.xyz", frames[12:])
    return folder


def config(files, **data):
    data |= {"train": [files / "a.xyz", files / "b.xyz"], "validation": [files / "v.xyz"]}
    model = {"r_max": 3.5, "irreps_hidden": "4x0e+4x1o+4x2e", "n_features": 4}
    options = {"epochs": 1, "dtype": "float64", "n_threads": 1, "stress_weight": 0.1}
    return Config.model_validate({"data": data, "model": model, "train": options})


GIVEN = {"energy": 0.01, "forces": 0.05}


@pytest.mark.parametrize(
    ("key", "source", "noisy_frames"),
    [("file", "b.xyz", range(6, 12)), ("method", "qmc", range(0, 12, 2))],
)
def test_frames_of_a_source_have_its_noise(files, key, source, noisy_frames):
    prepared = prepare(config(files, label_noise={source: GIVEN}, source_key=key))
    for k, atoms in enumerate(prepared.train.frames):
        expected = [4 * 0.01, 0.05, 0.0] if k in noisy_frames else [0.0] * 3
        assert frame_noise(atoms).tolist() == pytest.approx(expected)
    line = f"labels of {source}: energy 0.01 eV/atom, forces 0.05 eV/A"
    assert line in prepared.report.text()


def test_a_run_and_its_test_set_know_it(files, tmp_path):
    options = config(files, label_noise={"qmc": GIVEN}, source_key="method")
    train(options, tmp_path / "run")
    source = evaluated_run(tmp_path / "run")
    frames = source.read(files / "v.xyz")
    assert [frame_noise(atoms)[0] for atoms in frames] == pytest.approx([0.04, 0, 0.04, 0])
    judged = source.split("test", frames).prediction.energy.total
    bare = source.moments(frames).energy.total
    np.testing.assert_allclose(judged - bare, [0.0016, 0, 0.0016, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ({"c.xyz": GIVEN}, {}, "no frame is of c.xyz.*expected a.xyz, b.xyz, v.xyz"),
        ({"a.xyz": {"force": 0.1}}, {}, "label_noise"),
        ({"a.xyz": {"forces": -0.1}}, {}, "label_noise"),
        ({"a.xyz": GIVEN}, {"head": "evidential"}, "data.label_noise needs a Gaussian"),
        ({"a.xyz": GIVEN}, {"head": "eip"}, "other than evidential and eip"),
    ],
)
def test_refusals(files, data, model, message):
    with pytest.raises((RaceError, ValueError), match=message):
        made = config(files, label_noise=data).model_dump(exclude_unset=True)
        made["model"] |= model
        if model:
            made["train"]["loss"] = model["head"]
        prepare(Config.model_validate(made))
