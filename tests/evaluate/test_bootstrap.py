import numpy as np
import pytest

from race.evaluate.bootstrap import ClusteredMean, ClusteredRows, clustered_interval


def correlated(
    seed: int = 0, n_frames: int = 30, n_atoms: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms of a frame share most of their error."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(n_frames)[:, None] + 0.3 * rng.standard_normal((n_frames, n_atoms))
    return rows.ravel(), np.repeat(np.arange(n_frames), n_atoms)


def test_clustering_widens_the_interval_of_correlated_rows():
    rows, frame = correlated()
    low, high = ClusteredMean(rows, frame, 30).interval(float)
    naive_low, naive_high = ClusteredMean(rows, np.arange(len(rows)), len(rows)).interval(float)
    assert (high - low) > 4 * (naive_high - naive_low)
    width = 2 * 1.645 * np.std(rows.reshape(30, -1).mean(1)) / np.sqrt(30)
    assert high - low == pytest.approx(width, rel=0.25)


def test_intervals_hold_the_truth_as_often_as_they_say():
    hits = 0
    for seed in range(200):
        rows, frame = correlated(seed)
        low, high = ClusteredMean(rows, frame, 30).interval(float, seed=seed)
        hits += low <= 0 <= high
    assert 0.82 < hits / 200 < 0.96


def test_mean_of_uneven_clusters_equals_the_mean_of_rows():
    rng = np.random.default_rng(0)
    cluster = np.array([0, 0, 0, 2, 2, 3])  # 1 has no rows
    rows = rng.standard_normal((6, 4))
    mean = ClusteredMean(rows, cluster, 4)
    np.testing.assert_allclose(mean(), rows.mean(axis=0))
    np.testing.assert_allclose(mean(np.array([0, 3, 3])), rows[[0, 1, 2, 5, 5]].mean(axis=0))


def test_one_cluster_has_no_interval():
    assert np.isnan(clustered_interval(lambda rows: 1.0, 1)).all()


def test_rows_of_clusters_against_a_loop():
    cluster = np.array([0, 0, 0, 2, 2, 3])  # 1 has no rows
    rows = ClusteredRows(cluster, 4)
    draw = np.array([3, 0, 1, 0, 2])
    np.testing.assert_array_equal(
        rows(draw), np.concatenate([np.flatnonzero(cluster == c) for c in draw])
    )


def test_rows_and_means_give_the_same_interval():
    rows, frame = correlated()
    assert ClusteredRows(frame, 30).interval(lambda k: rows[k].mean()) == pytest.approx(
        ClusteredMean(rows, frame, 30).interval(float)
    )
    # Not clustered: too narrow
    naive = ClusteredRows(np.arange(len(rows)), len(rows)).interval(lambda k: rows[k].mean())
    assert naive[1] - naive[0] < 0.25 * np.diff(
        ClusteredRows(frame, 30).interval(lambda k: rows[k].mean())
    )


def test_a_statistic_that_does_not_exist_has_no_interval():
    assert np.isnan(clustered_interval(lambda rows: float("nan"), 5)).all()
