"""Posteriors of the last layers and of the evidential head: their algebra against explicit
small computations, and whole fits.
"""

import json

import numpy as np
import pytest
import torch

from race.errors import RaceError
from race.posterior import last_layer, llpr
from race.posterior.command import fit
from race.posterior.protocol import Run, member_of, normal_draws, tiled
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
    unit = tiled(member_of(model, n_members - 1), 16)
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
    """Errors drawn with a known alpha and zeta, head noise beside them."""
    rng = np.random.default_rng(1)
    F = rng.normal(size=(30, 6)) * np.array([30, 10, 3, 1, 0.01, 0.001])
    curvature, rows = llpr.Curvature.of(F.T @ F), rng.normal(size=(4000, 3, 6))
    zeta = float(np.sqrt(llpr.ZETAS[7] * curvature.s.max()))
    noise = np.broadcast_to(0.2 * np.eye(3), (4000, 3, 3))
    white = rows @ (2.5 * curvature.root(zeta))
    error = (white @ rng.normal(size=(4000, 6, 1)))[..., 0] + np.sqrt(0.2) * rng.normal(
        size=(4000, 3)
    )
    target = llpr.Target(rows, error, noise)
    alpha, found = llpr.calibrate(curvature, target, None, None)
    assert found == pytest.approx(zeta) and alpha == pytest.approx(2.5, rel=0.05)
    assert llpr.calibrate(curvature, target, None, zeta)[0] == alpha and llpr.calibrate(
        curvature, target, 7.0, zeta
    ) == (7.0, zeta)
    # Without head noise alpha has a closed form: the mean Mahalanobis square is the dimension.
    bare = llpr.Target(rows, (white @ rng.normal(size=(4000, 6, 1)))[..., 0], 0 * noise)
    cov = np.einsum("nad,nbd->nab", rows @ curvature.root(zeta), rows @ curvature.root(zeta))
    q = np.einsum("na,nab,nb->n", bare.error, np.linalg.inv(cov), bare.error).mean()
    assert bare.best_alpha(curvature.root(zeta))[0] == pytest.approx(np.sqrt(q / 3), rel=1e-4)


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
