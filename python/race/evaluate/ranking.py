"""Rank metrics: does a large predicted uncertainty go with a large error, or with a
structure unlike the training set?

A rank metric depends on how widely the predicted sigmas spread: a calibrated predictor
whose sigmas are all alike scores no better than chance. `simulated_ideal` therefore gives
the value that the same sigmas score when errors are truly drawn from them.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata


def spearman(std: np.ndarray, error: np.ndarray) -> float:
    """Spearman's rank correlation of std with |error|; NaN when either is constant."""
    a, b = rankdata(std), rankdata(np.abs(error))
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else float("nan")


def sparsification(
    score: np.ndarray, error: np.ndarray, n_points: int = 101
) -> tuple[np.ndarray, np.ndarray]:
    """Fractions removed [n_points], highest score first, and the RMS of the errors that
    remain, relative to all; NaN if there are none.
    """
    squared = np.square(error[np.argsort(-score, kind="stable")])
    remaining = np.cumsum(squared[::-1])[::-1] / np.arange(len(squared), 0, -1)
    fraction = np.linspace(0, 1, n_points)[:-1]
    kept = np.floor(fraction * len(squared)).astype(int)
    with np.errstate(invalid="ignore"):
        return fraction, np.sqrt(remaining[kept] / remaining[0])


def ause(std: np.ndarray, error: np.ndarray, n_points: int = 101) -> float:
    """Area between the sparsification curve by std and the oracle's by |error| (Ilg et al.
    2018), relative RMSE; 0 is perfect.
    """
    fraction, by_std = sparsification(std, error, n_points)
    _, by_error = sparsification(np.abs(error), error, n_points)
    return float(np.trapezoid(by_std - by_error, fraction))


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive row outscores a negative one, ties counting half; NaN
    without both kinds.
    """
    positive = np.asarray(positive, dtype=bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    return float(
        (rankdata(score)[positive].sum() - n_positive * (n_positive + 1) / 2)
        / (n_positive * n_negative)
    )


def auprc(score: np.ndarray, positive: np.ndarray) -> float:
    """Average precision: sum over thresholds of precision times the gain in recall; NaN
    without positives.
    """
    positive = np.asarray(positive, dtype=bool)
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # one threshold per distinct score
    hits = np.cumsum(positive[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float(np.sum(precision * np.diff(hits, prepend=0)) / hits[-1])


def large_error_auroc(std: np.ndarray, error: np.ndarray, fraction: float = 0.1) -> float:
    """AUROC of std as a detector of the largest `fraction` of the |error|."""
    return auroc(std, np.abs(error) > np.quantile(np.abs(error), 1 - fraction))


def large_error_auprc(std: np.ndarray, error: np.ndarray, fraction: float = 0.1) -> float:
    """AUPRC of the same detection; `fraction` for a score that knows nothing."""
    return auprc(std, np.abs(error) > np.quantile(np.abs(error), 1 - fraction))


def simulated_ideal(
    metric: Callable[[np.ndarray, np.ndarray], float], score: np.ndarray, draws: np.ndarray
) -> float:
    """Mean of metric(score, magnitude) over draws [n_simulations, n]: what perfect
    calibration with these scores reaches.
    """
    return float(np.mean([metric(score, magnitude) for magnitude in draws]))


def simulated_errors(cov: np.ndarray, n_simulations: int = 10, seed: int = 0) -> np.ndarray:
    """[n_simulations, n, d] errors drawn from N(0, cov), cov [n, d, d] positive semi-definite."""
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(np.maximum(values, 0))[..., None, :]
    return np.einsum("nab,snb->sna", root, rng.standard_normal((n_simulations, *cov.shape[:2])))


def frame_score(
    values: np.ndarray, frame: np.ndarray, n_frames: int, pooling: str = "mean"
) -> np.ndarray:
    """[n_atoms] -> [n_frames]: mean or max over the atoms of each frame."""
    if pooling == "mean":
        return np.bincount(frame, values, n_frames) / np.bincount(frame, minlength=n_frames)
    out = np.full(n_frames, -np.inf)
    np.maximum.at(out, frame, values)
    return out
