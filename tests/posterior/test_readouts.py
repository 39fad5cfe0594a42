"""Posteriors of the last layers and of the evidential head: their algebra against explicit
small computations, and whole fits.
"""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from race.deploy.export import export_model
from race.errors import RaceError
from race.posterior import distill, last_layer, llpr
from race.posterior.fit import fit
from race.posterior.options import DistillOptions, EvidentialOptions, LaplaceOptions, LlprOptions
from race.posterior.protocol import Run, member_of, normal_draws, replicated
from race.posterior.registry import POSTERIORS
from race.predict.artifact import ArtifactPredictor
from race.predict.predictor import predict_dataset
from race.train.training import train
from tests.train.conftest import copper, make_config  # noqa: F401

HEADS = {"point": "mse", "equivariant": "nll_jef", "evidential": "evidential"}


@pytest.fixture(scope="module")
def runs(copper, tmp_path_factory):  # noqa: F811
    """runs(head) -> folder of a short float64 run of one member."""
    folder = tmp_path_factory.mktemp("runs")

    def make(head, n_members=1):
        path = folder / f"{head}{n_members}"
        if not path.exists():
            model = {"head": head, "n_members": n_members}
            train(
                make_config(
                    copper, model, {"loss": HEADS[head], "epochs": 8, "schedule": "constant"}
                ),
                path,
            )
        return path

    return make


@pytest.fixture(scope="module")
def point(runs):
    return Run.load(runs("point"))


@pytest.fixture(scope="module")
def batch(point):
    return point.prepare().train.batch([0, 3])


@pytest.mark.parametrize("n_members", [1, 2])
def test_energy_and_forces_are_linear_in_the_features(runs, n_members):
    run = Run.load(runs("point", n_members))
    batch, model = run.prepare().train.batch([0, 3]), run.model
    out, w = model(batch), last_layer.weights(model).detach()
    energy = (
        torch.einsum("nmd,md->nm", last_layer.features(model, batch), w)
        + model.atomic_energies[batch.species][:, None]
    )
    torch.testing.assert_close(energy, out.node_energy.detach(), rtol=1e-12, atol=1e-12)
    J = last_layer.force_features(model, batch, chunk=5)
    torch.testing.assert_close(
        torch.einsum("nmad,md->nma", J, w), out.forces.detach(), rtol=1e-9, atol=1e-10
    )
    assert J.shape == (8, n_members, 3, 16) and out.forces.abs().max() > 1e-3
    # The features of the frame are what unit readouts predict, without hooks.
    unit = replicated(member_of(model, n_members - 1), 16)
    last_layer.set_weights(unit, torch.eye(16))
    expected = unit(batch).energy.detach() - model.pool(
        model.atomic_energies[batch.species][:, None], batch
    )
    torch.testing.assert_close(
        last_layer.frame_features(model, batch)[:, -1], expected, rtol=1e-12, atol=1e-12
    )


def test_normal_matrix_by_hand(point):
    """Rows are written out one by one; forces add 3 N of them per frame."""
    model, dataset = point.model, point.prepare().train
    energy_rows, force_rows = [], []
    for k in range(len(dataset)):
        one = dataset.batch([k])
        # Four atoms
        energy_rows.append(
            last_layer.features(model, one)[:, 0].sum(0) / (model.constants.sigma0_energy * 2)
        )
        force_rows += list(
            last_layer.force_features(model, one)[:, 0].reshape(-1, 16) / model.constants.sigma0
        )
    expected = sum(torch.outer(row, row) for row in energy_rows).numpy()
    np.testing.assert_allclose(llpr.normal_matrix(model, dataset, 4, False), expected, rtol=1e-9)
    expected += sum(torch.outer(row, row) for row in force_rows).numpy()
    np.testing.assert_allclose(llpr.normal_matrix(model, dataset, 4, True), expected, rtol=1e-8)


def test_root_is_that_of_the_closed_form():
    F = np.random.default_rng(0).normal(size=(5, 8))  # singular without zeta
    root = llpr.Curvature.of(F.T @ F).root(0.3)
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(F.T @ F + 0.09 * np.eye(8)), rtol=1e-10)


def test_calibration_finds_what_was_planted():
    """Errors drawn with a known zeta, and an alpha of energies and one of forces."""
    rng = np.random.default_rng(1)
    F = rng.normal(size=(30, 6)) * np.array([30, 10, 3, 1, 0.01, 0.001])
    curvature = llpr.Curvature.of(F.T @ F)
    zeta = float(np.sqrt(llpr.ZETAS[15] * curvature.s.max()))

    def target(d: int, alpha: float) -> llpr.Target:
        rows = rng.normal(size=(4000, d, 6))
        root = alpha * curvature.root(zeta)
        error = (rows @ root @ rng.normal(size=(4000, 6, 1)))[..., 0]
        return llpr.Target(error, rows, np.ones(4000))

    energies, forces = target(1, 0.7), target(3, 2.5)
    found = llpr.calibrate(curvature, energies, forces)
    assert found.zeta == pytest.approx(zeta)
    assert found.alpha_forces == pytest.approx(2.5, rel=0.05)
    assert found.alpha_energy == pytest.approx(0.7, rel=0.05)
    # The closed form: the mean Mahalanobis square is the dimension
    cov = forces.covariance(curvature.root(zeta))
    q = np.einsum("na,nab,nb->n", forces.error, np.linalg.inv(cov), forces.error).mean()
    assert found.alpha_forces == pytest.approx(np.sqrt(q / 3), rel=1e-6)
    given = llpr.calibrate(curvature, energies, forces, 7.0, zeta)
    assert (given.alpha_energy, given.alpha_forces, given.zeta) == (7.0, 7.0, zeta)


def test_the_posterior_of_a_linear_gaussian_model_is_recovered():
    """w ~ N(0, tau^2), y = F w + noise: N(w_map, (F^T F / sigma^2 + 1 / tau^2)^-1) is known.

    The covariances of held-out predictions are found again, with alpha = 1, zeta = 1 / tau;
    over eight problems of 40 weights, alpha scatters by 1 / sqrt(2 * 40 * 8) = 4 %. A
    calibration beside a noise that has the size of the errors, as a head fits it, does not
    find them: its likelihood hardly depends on zeta, and it leaves a seventh of the variance.
    """
    rng = np.random.default_rng(3)
    n_weights, tau, sigma, ratios, alphas, beside, spans = 40, 2.0, 0.3, [], [], [], []
    for _ in range(8):
        w = tau * rng.normal(size=n_weights)
        scales = np.logspace(0, -3, n_weights)  # some directions are seen by the data, some not
        F, J = (rng.normal(size=(n, n_weights)) * scales for n in (60, 900))
        y = F @ w + sigma * rng.normal(size=60)
        precision = F.T @ F / sigma**2 + np.eye(n_weights) / tau**2
        w_map = np.linalg.solve(precision, F.T @ y / sigma**2)
        curvature = llpr.Curvature.of(F.T @ F / sigma**2)
        error, rows = (J @ (w_map - w)).reshape(300, 3), J.reshape(300, 3, n_weights)
        target = llpr.Target(error, rows, np.ones(300))
        found = llpr.calibrate(curvature, target, target)
        got = found.alpha_forces**2 * target.covariance(curvature.root(found.zeta))
        exact = target.rows @ np.linalg.inv(precision) @ np.swapaxes(target.rows, 1, 2)
        ratios.append(np.trace(got, axis1=1, axis2=2) / np.trace(exact, axis1=1, axis2=2))
        alphas.append(found.alpha_forces / (found.zeta * tau))
        beside_noise = replace(target, noise=np.full(300, np.mean(error**2)))
        found = llpr.calibrate(curvature, beside_noise, beside_noise)
        got = found.alpha_forces**2 * target.covariance(curvature.root(found.zeta))
        beside.append(np.einsum("naa->", got) / np.einsum("naa->", exact))
        roots = [curvature.root(z) for z in np.sqrt(llpr.ZETAS * curvature.s.max())]
        spans.append([np.ptp([one.fit(r)[1] for r in roots]) for one in (target, beside_noise)])
    assert np.mean(beside) < 0.3
    alone, beside_errors = np.mean(spans, axis=0)  # nats, from the best zeta to the worst
    assert beside_errors < 0.05 and alone > 10 * beside_errors
    ratio = np.array(ratios)
    # 0.5 of a decade between the zeta^2 that are tried, and one w for each problem
    assert np.exp(np.log(ratio).mean()) == pytest.approx(1.0, rel=0.2)
    assert np.exp(np.abs(np.log(ratio)).mean()) < 1.5
    # What no frame has seen keeps its prior: alpha / zeta = tau
    assert np.exp(np.log(alphas).mean()) == pytest.approx(1.0, rel=0.3)


def draws(n: int) -> torch.Tensor:
    return normal_draws([0] * n, (16,), torch.Generator().manual_seed(2))


def test_samples_converge_to_the_closed_form(point, batch):
    """Energy variance and 3x3 force covariances of M members of the network itself, against
    f^T C f and J C J^T.
    """
    model = point.model
    root = 0.1 * llpr.Curvature.of(llpr.normal_matrix(model, point.prepare().train, 4, False)).root(
        1.0
    )
    f, J = (
        last_layer.frame_features(model, batch)[:, 0].numpy(),
        last_layer.force_features(model, batch)[:, 0].numpy(),
    )
    energy_var, forces_cov = ((f @ root) ** 2).sum(1), np.einsum("nad,nbd->nab", J @ root, J @ root)
    errors = {}
    for n in (16, 400):
        members = llpr.sampled(model, root, draws(n))
        out = members(batch).detach()
        energy, forces = out.energy.numpy(), out.forces.numpy()
        # Centred
        np.testing.assert_allclose(
            energy.mean(1), model(batch).energy[:, 0].detach().numpy(), atol=1e-9
        )
        spread = forces - forces.mean(1, keepdims=True)
        errors[n] = np.linalg.norm(
            np.einsum("nma,nmb->nab", spread, spread) / n - forces_cov
        ) / np.linalg.norm(forces_cov)
        scale = energy.var(1) / energy_var
        assert np.abs(scale - 1).max() < 4 * np.sqrt(2 / n), n
    assert errors[400] < 4 * np.sqrt(2 / 400) and errors[400] < 0.5 * errors[16]
    wrong = llpr.sampled(model, 1.5 * root, draws(400))(batch).energy.detach().numpy()
    # The tolerance sees a wrong scale
    assert np.abs(wrong.var(1) / energy_var - 1).max() > 4 * np.sqrt(2 / 400)


@pytest.mark.parametrize(
    "head, options", [("point", {}), ("equivariant", {"forces": "true", "members": "6"})]
)
def test_llpr_fit(runs, tmp_path, head, options):
    """The new run is one of M members whose mean is the old one and whose force errors on
    the validation set are of the predicted size.
    """
    fit("llpr", [runs(head)], tmp_path / "out", options)
    old, new = Run.load(runs(head)), Run.load(tmp_path / "out")
    assert (
        new.model.n_members == int(options.get("members", 16))
        and new.summary["posterior"]["name"] == "llpr"
    )
    for (name, p), q in zip(old.model.named_parameters(), new.model.parameters(), strict=True):
        same = q == p
        assert same.all() or (
            name.endswith("w2") and same[..., 1:].all() and not same[..., 0].any()
        ), name
    validation = old.prepare().validation
    before, after = (predict_dataset(run.model, validation)[0] for run in (old, new))
    np.testing.assert_allclose(after.forces.mean, before.forces.mean, atol=1e-8)
    labels = predict_dataset(new.model, validation)[1]
    cov = after.forces.total
    q = np.einsum(
        "na,nab,nb->n",
        labels.forces - after.forces.mean,
        np.linalg.inv(cov),
        labels.forces - after.forces.mean,
    ).mean()
    # Samples of the calibrated covariance; uncalibrated (alpha = 1) it is off by far more
    assert 0.2 < q / 3 < 6
    assert np.trace(after.forces.epistemic, axis1=1, axis2=2).min() > 0


def test_energies_spread_by_their_own_alpha(runs, tmp_path, monkeypatch):
    """Errors of energies drawn with an alpha of 0.7, of forces with 2.5: 1000 times each row of
    the validation set, so that the alphas that are found scatter by 2 %.
    """
    run = Run.load(runs("point"))
    options = LlprOptions(members=4, zeta=0.3)
    curvature = llpr.Curvature.of(llpr.normal_matrix(run.model, run.prepare().train, 3, False))
    rng, real = np.random.default_rng(4), llpr.calibration_targets

    def planted(*arguments):
        for target, alpha in zip(real(*arguments), (0.7, 2.5), strict=True):
            rows = target.rows.repeat(1000, axis=0)
            w = alpha * curvature.root(0.3) @ rng.normal(size=(len(rows), rows.shape[2], 1))
            yield llpr.Target((rows @ w)[..., 0], rows, np.ones(len(rows)))

    def spreads(options):
        fitted = llpr.fit([run], options, tmp_path)
        prediction = predict_dataset(fitted.model, fitted.validation)[0]
        parts = prediction.energy.epistemic, prediction.forces.epistemic
        return fitted, [np.sqrt(part) for part in (parts[0], np.trace(parts[1], 0, 1, 2))]

    unit = spreads(options.model_copy(update={"alpha": 1.0}))[1]
    assert min(part.min() for part in unit) > 0
    monkeypatch.setattr(llpr, "calibration_targets", planted)
    fitted, found = spreads(options)
    np.testing.assert_allclose(found[0] / unit[0], 0.7, rtol=0.06)
    np.testing.assert_allclose(found[1] / unit[1], 2.5, rtol=0.06)
    # The file that LAMMPS and ASE run
    export_model(fitted.model, tmp_path / "x.race.pt", dtype="float64")
    frames = run.prepare().validation.frames
    artifact = ArtifactPredictor(tmp_path / "x.race.pt").predict(frames)
    np.testing.assert_allclose(np.sqrt(artifact.energy.epistemic), found[0], rtol=1e-8)
    by_trace = np.sqrt(np.trace(artifact.forces.epistemic, 0, 1, 2))
    np.testing.assert_allclose(by_trace, found[1], rtol=1e-8)


@pytest.mark.parametrize(
    "posterior, head, options",
    [
        ("llpr", "point", LlprOptions(members=2)),
        ("evidential", "evidential", EvidentialOptions()),
        ("laplace", "equivariant", LaplaceOptions(members=2)),
        ("laplace", "point", LaplaceOptions(members=2, structure="diagonal", probes=1)),
    ],
)
def test_frames_that_chose_the_epoch_fit_no_factor(runs, tmp_path, posterior, head, options):
    """A validation set that cannot be read; the calibration part is three frames."""
    run, chose = Run.load(runs(head)), object()
    run._prepared = replace(run.prepare(), validation=chose)
    assert POSTERIORS[posterior].fit()([run], options, tmp_path).validation is chose


def test_frames_that_chose_the_epoch_fit_no_factor_of_a_student(runs, tmp_path, monkeypatch):
    run, seen = Run.load(runs("equivariant", 2)), []
    run._prepared = replace(run.prepare(), calibration=copy.copy(run.prepare().validation))
    monkeypatch.setattr(distill, "fit_total", lambda model, frames, size: seen.append(frames))
    fitted = distill.fit([run], DistillOptions(epochs=1, copies=0), tmp_path)
    assert seen == [run.prepare().calibration] and fitted.validation is run.prepare().validation


def test_evidential_fit(runs, tmp_path):
    fit("evidential", [runs("evidential")], tmp_path / "out", {})
    old, new = Run.load(runs("evidential")), Run.load(tmp_path / "out")
    scale = json.loads((tmp_path / "out" / "summary.json").read_text())["posterior"]["std_scale"]
    validation = old.prepare().validation
    (before, labels), (after, _) = (predict_dataset(run.model, validation) for run in (old, new))
    np.testing.assert_array_equal(after.forces.mean, before.forces.mean)
    for part in ("aleatoric", "epistemic"):  # one factor: kappa is what it was
        np.testing.assert_allclose(
            getattr(after.forces, part),
            scale["forces"] ** 2 * getattr(before.forces, part),
            rtol=1e-10,
        )
    error = labels.forces - after.forces.mean
    assert np.einsum(
        "na,nab,nb->n", error, np.linalg.inv(after.forces.total), error
    ).mean() == pytest.approx(3)
    assert np.mean((labels.energy - after.energy.mean) ** 2 / after.energy.total) == pytest.approx(
        1
    )
    assert abs(np.log(scale["forces"])) > 0.01 and abs(np.log(scale["energy"])) > 0.01


def test_refusals(runs, tmp_path):
    with pytest.raises(RaceError, match="the fit starts from one member.*expected 1; got 2"):
        fit("llpr", [runs("point", 2)], tmp_path / "a", {})
    with pytest.raises(RaceError, match="no evidential posterior for this head.*got point"):
        fit("evidential", [runs("point")], tmp_path / "b", {})
    with pytest.raises(RaceError, match="--zeta"):
        fit("llpr", [runs("point")], tmp_path / "c", {"zeta": "-1"})
    assert not any((tmp_path / name).exists() for name in "abc")
