"""POPS: every pointwise optimum fits its point, and their spread is that of a wrong model."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from race.posterior import last_layer, pops
from race.posterior.llpr import Curvature, normal_matrix
from race.posterior.protocol import Run


def line(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A straight line through a parabola: features [n, 2] and errors of the best fit."""
    x = np.linspace(-1, 1, n)
    rows, y = np.stack([np.ones(n), x], axis=1), x**2
    return rows, y - rows @ np.linalg.lstsq(rows, y, rcond=None)[0]


def test_each_set_is_the_best_that_fits_its_point():
    """Against a constrained minimiser, which knows nothing of the closed form."""
    rows, errors = line(7)
    root = Curvature.of(rows.T @ rows).root(0.0)
    changes, _ = pops.pointwise(root, rows, errors, np.ones(7))
    np.testing.assert_allclose((rows * changes).sum(1), errors, rtol=1e-10)
    for i in range(len(rows)):
        found = minimize(
            lambda w: ((errors - rows @ w) ** 2).sum(),
            np.zeros(2),
            constraints={"type": "eq", "fun": lambda w, i=i: rows[i] @ w - errors[i]},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(changes[i], found.x, atol=1e-5)


@pytest.mark.parametrize("shape", ["covariance", "hypercube"])
def test_the_spread_is_of_the_size_of_the_error_whatever_the_number_of_points(shape):
    """A Bayesian posterior's falls as N^-1/2."""
    stds, bayes = [], []
    for n in (100, 10_000):
        rows, errors = line(n)
        root = Curvature.of(rows.T @ rows).root(0.0)
        points = pops.pointwise(root, rows, errors, np.ones(n))
        spread = rows @ pops.axes(*points, shape)
        stds.append(np.sqrt((spread**2).sum(1).mean()))
        bayes.append(np.sqrt(((rows @ root) ** 2).sum(1).mean()))
        assert 0.5 < stds[-1] / np.sqrt(np.mean(errors**2)) < 4
    assert stds[1] == pytest.approx(stds[0], rel=0.1)
    assert bayes[1] < 0.2 * bayes[0]


def test_a_point_without_leverage_asks_for_nothing():
    rows = np.array([[1.0, 0.0], [0.0, 0.0]])
    changes, weights = pops.pointwise(np.eye(2), rows, np.array([0.5, 0.1]), np.array([2.0, 3.0]))
    np.testing.assert_array_equal(changes, [[0.5, 0.0]])
    np.testing.assert_array_equal(weights, [2.0])


def test_the_model_itself_fits_the_point(trained):
    """The energy of a frame with its own correction in place is the reference."""
    run = Run.load(trained("equivariant"))
    train = run.prepare().train
    curvature = Curvature.of(normal_matrix(run.model, train, 3, False))
    root = curvature.root(1e-2 * curvature.s.max() ** 0.5)
    changes, _ = pops.corrections(run.model, train, 3, False, root)
    assert changes.shape == (len(train), len(curvature.s))
    w = last_layer.weights(run.model).detach().clone()
    before = []
    for k in range(3):
        batch = train.batch([k])
        error = run.model(batch, forces=False).energy[0, 0].detach() - batch.energy
        before.append(error.abs().item())
        last_layer.set_weights(run.model, w + torch.from_numpy(changes[k]))
        energy = run.model(batch, forces=False).energy[0, 0]
        assert energy.item() == pytest.approx(batch.energy.item(), abs=1e-9)
        last_layer.set_weights(run.model, w)
    assert min(before) > 1e-6
