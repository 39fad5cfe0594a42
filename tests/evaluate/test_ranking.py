"""Rank metrics against scikit-learn and SciPy, and their simulated ideals."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from race.evaluate import ranking


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    std = np.exp(0.6 * rng.standard_normal(3000))
    return std, std * rng.standard_normal(3000)


@pytest.mark.parametrize("decimals", [1, 12])  # 1: many ties
def test_against_oracles(data, decimals):
    std, error = data
    score = std.round(decimals)
    positive = np.abs(error) > 1
    assert ranking.auroc(score, positive) == pytest.approx(
        roc_auc_score(positive, score), abs=1e-10
    )
    assert ranking.auprc(score, positive) == pytest.approx(
        average_precision_score(positive, score), abs=1e-10
    )
    assert ranking.spearman(score, error) == pytest.approx(
        stats.spearmanr(score, np.abs(error)).statistic, abs=1e-10
    )


def test_detection_of_large_errors_against_scikit_learn(data):
    std, error = data
    large = np.abs(error) > np.quantile(np.abs(error), 0.9)
    assert ranking.large_error_auroc(std, error) == pytest.approx(
        roc_auc_score(large, std), abs=1e-10
    )
    assert ranking.large_error_auprc(std, error) == pytest.approx(
        average_precision_score(large, std), abs=1e-10
    )
    # Knowing nothing: a tenth
    assert ranking.large_error_auprc(np.random.default_rng(3).permutation(std), error) < 0.15


def test_one_sided_data_have_no_rank():
    assert np.isnan(ranking.auroc(np.arange(3.0), np.zeros(3)))
    assert np.isnan(ranking.auprc(np.arange(3.0), np.zeros(3)))
    assert np.isnan(ranking.spearman(np.ones(3), np.arange(3.0)))


def test_sparsification(data):
    std, error = data
    assert ranking.ause(np.abs(error), error) == pytest.approx(0, abs=1e-12)
    fraction, kept = ranking.sparsification(std, error)
    assert kept[0] == 1
    half = np.argsort(-std)[len(std) // 2 :]
    assert kept[np.searchsorted(fraction, 0.5)] == pytest.approx(
        np.sqrt(np.mean(error[half] ** 2) / np.mean(error**2))
    )
    assert (
        0
        < ranking.ause(std, error)
        < ranking.ause(np.random.default_rng(1).permutation(std), error)
    )


def test_calibrated_sigmas_reach_their_ideal_and_shuffled_ones_do_not(data):
    std, error = data
    draws = np.abs(ranking.simulated_errors(std[:, None, None] ** 2)[..., 0])
    shuffled = np.random.default_rng(2).permutation(std)
    for metric in (
        ranking.spearman,
        ranking.large_error_auroc,
        ranking.large_error_auprc,
        ranking.ause,
    ):
        ideal = ranking.simulated_ideal(metric, std, draws)
        assert metric(std, np.abs(error)) == pytest.approx(ideal, abs=0.05)
        assert abs(metric(shuffled, np.abs(error)) - ideal) > 0.1


def test_simulated_errors_have_the_covariance():
    # The second is singular
    cov = np.array(
        [[[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.4]], np.diag([1.0, 0.0, 0.0])]
    )
    draws = ranking.simulated_errors(cov, 40000)
    np.testing.assert_allclose(np.einsum("sna,snb->nab", draws, draws) / 40000, cov, atol=0.05)


def test_frame_score():
    values, frame = np.array([1.0, 3.0, -5.0]), np.array([0, 0, 1])
    np.testing.assert_allclose(ranking.frame_score(values, frame, 2), [2, -5])
    np.testing.assert_allclose(ranking.frame_score(values, frame, 2, "max"), [3, -5])
