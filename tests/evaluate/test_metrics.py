"""Our metrics against independent implementations, and against what is known of calibrated data."""

import numpy as np
import pytest
import scoringrules
import uncertainty_toolbox as uct
from scipy import stats

from race.evaluate import metrics

TOLERANCE = 1e-10


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    std = np.exp(0.7 * rng.standard_normal(2000))
    mean = 3 * rng.standard_normal(2000)
    return mean, std, mean + 1.3 * std * rng.standard_normal(2000)


def test_scores_agree_with_scoringrules(data):
    mean, std, reference = data
    error = reference - mean
    np.testing.assert_allclose(
        metrics.multivariate_nll_rows(error**2 / std**2, 2 * np.log(std), 1),
        scoringrules.logs_normal(reference, mean, std),
        atol=TOLERANCE,
    )
    rng = np.random.default_rng(2)
    errors, samples = rng.standard_normal((50, 3)), rng.standard_normal((50, 20, 3))
    oracle = scoringrules.es_ensemble(errors, samples, estimator="akr", backend="numpy")
    np.testing.assert_allclose(metrics.energy_score_rows(errors, samples), oracle, atol=TOLERANCE)


def test_calibration_agrees_with_uncertainty_toolbox(data):
    mean, std, reference = data
    error = reference - mean
    assert metrics.miscalibration_area(error / std) == pytest.approx(
        uct.miscalibration_area(mean, std, reference), abs=TOLERANCE
    )
    nll = metrics.multivariate_nll_rows(error**2 / std**2, 2 * np.log(std), 1)
    assert nll.mean() == pytest.approx(uct.nll_gaussian(mean, std, reference), abs=TOLERANCE)
    assert metrics.crps_rows(error, std).mean() == pytest.approx(
        uct.crps_gaussian(mean, std, reference), abs=TOLERANCE
    )
    assert metrics.sharpness(std) == pytest.approx(uct.sharpness(std), abs=TOLERANCE)
    accuracy = uct.prediction_error_metrics(mean, reference)
    assert (metrics.rmse(error), metrics.mae(error)) == pytest.approx(
        (accuracy["rmse"], accuracy["mae"]), abs=TOLERANCE
    )
    observed = [
        uct.get_proportion_in_interval(mean, std, reference, level) for level in metrics.LEVELS
    ]
    assert metrics.calibration_error(error / std) == pytest.approx(
        np.mean((metrics.LEVELS - observed) ** 2), abs=TOLERANCE
    )


def test_multivariate_likelihood_agrees_with_scipy():
    rng = np.random.default_rng(3)
    errors = rng.standard_normal((30, 3))
    root = rng.standard_normal((30, 3, 3))
    cov = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(3)
    q, logdet = metrics.mahalanobis(errors, cov)
    expected = [
        -stats.multivariate_normal.logpdf(e, cov=c) for e, c in zip(errors, cov, strict=True)
    ]
    np.testing.assert_allclose(metrics.multivariate_nll_rows(q, logdet), expected, atol=TOLERANCE)
    np.testing.assert_allclose(
        q, [e @ np.linalg.solve(c, e) for e, c in zip(errors, cov, strict=True)], rtol=TOLERANCE
    )
    u = np.sort(stats.chi2.cdf(q, 3))
    k = np.arange(1, 31)
    assert metrics.pit_ks(q) == pytest.approx(
        max((k / 30 - u).max(), (u - (k - 1) / 30).max()), abs=TOLERANCE
    )


def test_energy_score_of_one_dimension_is_the_crps(data):
    mean, std, reference = data
    error = (reference - mean)[:, None]
    sampled = metrics.gaussian_energy_score_rows(
        error, std[:, None, None] ** 2, n_samples=400, chunk=300
    )
    assert sampled.mean() == pytest.approx(metrics.crps_rows(error[:, 0], std).mean(), rel=0.02)


def test_coverage_table_equals_counting(data):
    mean, std, reference = data
    z = (reference - mean) / std
    np.testing.assert_array_equal(metrics.observed_coverage(z), metrics.covered(z).mean(axis=0))
    assert metrics.coverage(z, 0.9) == np.mean(np.abs(z) <= stats.norm.ppf(0.95))


@pytest.mark.parametrize("planted, calibrated", [(1.0, True), (1.5, False), (1 / 1.5, False)])
def test_calibrated_data_pass_and_a_planted_scale_fails(planted, calibrated):
    rng = np.random.default_rng(4)
    root = rng.standard_normal((20000, 3, 3)) * 0.4 + np.eye(3)
    cov = root @ np.swapaxes(root, 1, 2)
    errors = planted * np.einsum(
        "nab,nb->na", np.linalg.cholesky(cov), rng.standard_normal((20000, 3))
    )
    std = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    z = errors / std
    q, _ = metrics.mahalanobis(errors, cov)
    assert (abs(metrics.coverage(z) - 0.9) < 0.01) == calibrated
    assert (metrics.pit_ks(q) < 0.02) == calibrated
    assert (metrics.calibration_error(z) < 1e-4) == calibrated
    assert (metrics.ence(errors, std) < 0.05) == calibrated
    assert (abs(metrics.zms(z) - 1) < 0.03) == calibrated


def test_ence_by_hand():
    # Bins of sigma: {1, 1} and {3, 4}
    error, std = (
        np.array([5.0, -0.5, 1.5, 0.2]),
        np.array([4.0, 1.0, 1.0, 3.0]),
    )
    low, high = np.sqrt((0.5**2 + 1.5**2) / 2), np.sqrt((5**2 + 0.2**2) / 2)
    expected = (abs(1 - low) / 1 + abs(np.sqrt(12.5) - high) / np.sqrt(12.5)) / 2
    assert metrics.ence(error, std, n_bins=2) == pytest.approx(expected, abs=TOLERANCE)


def test_a_covariance_of_right_marginals_but_wrong_directions_fails_the_mahalanobis_pit():
    rng = np.random.default_rng(5)
    cov = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    errors = rng.standard_normal((20000, 3)) @ np.linalg.cholesky(cov).T
    q, _ = metrics.mahalanobis(errors, np.broadcast_to(np.eye(3), (20000, 3, 3)))
    assert metrics.calibration_error(errors) < 1e-4
    assert metrics.pit_ks(q) > 0.05


@pytest.mark.parametrize("d", [1, 3, 6])
def test_likelihood_and_pit_in_any_dimension_agree_with_scipy(d):
    rng = np.random.default_rng(6)
    errors, root = rng.standard_normal((40, d)), rng.standard_normal((40, d, d))
    cov = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(d)
    q, logdet = metrics.mahalanobis(errors, cov)
    expected = [
        -stats.multivariate_normal.logpdf(e, cov=c) for e, c in zip(errors, cov, strict=True)
    ]
    np.testing.assert_allclose(
        metrics.multivariate_nll_rows(q, logdet, d), expected, atol=TOLERANCE
    )
    assert metrics.pit_ks(q, d) == pytest.approx(
        stats.kstest(q, stats.chi2(d).cdf).statistic, abs=TOLERANCE
    )


def test_crps_of_each_row_agrees_with_scoringrules(data):
    mean, std, reference = data
    np.testing.assert_allclose(
        metrics.crps_rows(reference - mean, std),
        scoringrules.crps_normal(reference, mean, std),
        atol=TOLERANCE,
    )


def test_energy_score_of_an_isotropic_gaussian():
    """At error 0 it is E|X| - E|X - X'| / 2 = (1 - 1 / sqrt 2) sigma E|chi_d|."""
    for d in (3, 6):
        sampled = metrics.gaussian_energy_score_rows(
            np.zeros((4000, d)), np.broadcast_to(4 * np.eye(d), (4000, d, d))
        )
        assert sampled.mean() == pytest.approx((1 - 0.5**0.5) * 2 * stats.chi(d).mean(), rel=0.01)
