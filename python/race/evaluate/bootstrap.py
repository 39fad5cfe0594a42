"""Bootstrap intervals that resample whole structures: the atoms of a frame share its error,
so they are not independent draws.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

N_BOOTSTRAP = 200  # resamples, unless told otherwise


def clustered_interval(
    statistic: Callable[[np.ndarray], float],
    n_clusters: int,
    level: float = 0.9,
    n_resamples: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of `statistic(clusters)`, clusters [n_clusters] being drawn with
    replacement; NaN for fewer than two.
    """
    if n_clusters < 2 or n_resamples < 1:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = [statistic(rng.integers(n_clusters, size=n_clusters)) for _ in range(n_resamples)]
    if np.isnan(draws).all():  # such as a rank correlation with a constant
        return float("nan"), float("nan")
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class ClusteredMean:
    """A mean over rows that can be taken again for any multiset of clusters, at the price of
    a sum over clusters.

    Args:
        rows: [n] or [n, k].
        cluster: [n] cluster of each row, 0 <= cluster < n_clusters, in ascending order.
    """

    def __init__(self, rows: np.ndarray, cluster: np.ndarray, n_clusters: int):
        rows = np.asarray(rows, dtype=np.float64)
        total = np.concatenate([np.zeros_like(rows[:1]), np.cumsum(rows, axis=0)])
        edges = np.searchsorted(cluster, np.arange(n_clusters + 1))
        self.sums = np.diff(total[edges], axis=0)
        self.counts = np.diff(edges)

    def __call__(self, clusters: np.ndarray | slice = slice(None)) -> np.ndarray:
        """[] or [k]: mean over the rows of the given clusters (all of them by default)."""
        return self.sums[clusters].sum(axis=0) / self.counts[clusters].sum()

    def variance(self) -> np.ndarray:
        """[] or [k]: sampling variance of the mean, clusters being independent and rows within
        them not (ratio estimator, Cochran 1977, section 6.3); NaN for fewer than two.
        """
        counts = self.counts.reshape(-1, *[1] * (self.sums.ndim - 1))
        n = int((self.counts > 0).sum())
        if n < 2:
            return np.full(self.sums.shape[1:], np.nan)
        deviation = self.sums - counts * self()
        return (deviation**2).sum(axis=0) / self.counts.sum() ** 2 * n / (n - 1)

    def interval(
        self, function: Callable[[np.ndarray], float], **options: Any
    ) -> tuple[float, float]:
        """`clustered_interval` of function(mean), over the clusters that have rows."""
        filled = np.flatnonzero(self.counts)
        return clustered_interval(
            lambda drawn: function(self(filled[drawn])), len(filled), **options
        )


class ClusteredRows:
    """The rows of any multiset of clusters, for statistics that are no function of a mean
    (ranks, bins, distances of distributions).

    Args:
        cluster: [n] cluster of each row, in ascending order.
        n_clusters: how many there are.
    """

    def __init__(self, cluster: np.ndarray, n_clusters: int):
        edges = np.searchsorted(cluster, np.arange(n_clusters + 1))
        self.start, self.counts = edges[:-1], np.diff(edges)

    def __call__(self, clusters: np.ndarray) -> np.ndarray:
        """Indices of the rows of the given clusters, each as often as its cluster is given."""
        counts = self.counts[clusters]
        before = np.cumsum(counts) - counts  # rows of the clusters that come first
        return np.repeat(self.start[clusters] - before, counts) + np.arange(counts.sum())

    def interval(
        self, function: Callable[[np.ndarray], float], **options: Any
    ) -> tuple[float, float]:
        """`clustered_interval` of function(rows), over the clusters that have rows."""
        filled = np.flatnonzero(self.counts)
        return clustered_interval(
            lambda drawn: function(self(filled[drawn])), len(filled), **options
        )
