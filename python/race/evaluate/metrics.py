"""Errors, calibration and scoring rules of Gaussian predictions. Plain NumPy, float64.

Conventions: error = reference - mean; std, var, cov are those predicted; z = error / std.
`bounds(levels) -> (lower, upper)` gives central intervals at level p in units of std: raw
and recalibrated predictions are thus evaluated by the same functions. Units are those of
the arguments.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from scipy.special import ndtr, ndtri

from race.predict import moments

LEVELS = np.arange(1, 100) / 100

Bounds = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def rmse(error: np.ndarray) -> float:
    """Root mean square of all entries."""
    return float(np.sqrt(np.mean(np.square(error))))


def mae(error: np.ndarray) -> float:
    """Mean absolute value of all entries."""
    return float(np.mean(np.abs(error)))


# --- calibration ----------------------------------------------------------------------------------


def gaussian_bounds(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central intervals of the standard normal."""
    upper = ndtri(0.5 + np.asarray(levels) / 2)
    return -upper, upper


def covered(
    z: np.ndarray, levels: np.ndarray = LEVELS, bounds: Bounds = gaussian_bounds
) -> np.ndarray:
    """[n] standardised errors -> [n, n_levels], 1 where the level's central interval holds
    the reference.
    """
    lower, upper = bounds(np.atleast_1d(levels))
    z = np.ravel(z)[:, None]
    return (z >= lower) & (z <= upper)


def observed_coverage(
    z: np.ndarray, levels: np.ndarray = LEVELS, bounds: Bounds = gaussian_bounds
) -> np.ndarray:
    """[n_levels] fraction of z inside each level's central interval; `covered(...).mean(0)`
    without the [n, n_levels] table.
    """
    lower, upper = bounds(np.atleast_1d(levels))
    z = np.sort(np.ravel(z))
    return (np.searchsorted(z, upper, side="right") - np.searchsorted(z, lower, side="left")) / len(
        z
    )


def coverage(z: np.ndarray, level: float = 0.9, bounds: Bounds = gaussian_bounds) -> float:
    """Fraction of z inside the central interval of one level."""
    return float(observed_coverage(z, np.array([level]), bounds)[0])


def calibration_error(z: np.ndarray, bounds: Bounds = gaussian_bounds) -> float:
    """CE = mean over levels p = .01...99 of (p - observed)^2 (Kuleshov et al. 2018, central
    intervals).
    """
    return float(np.mean((LEVELS - observed_coverage(z, LEVELS, bounds)) ** 2))


def miscalibration_area(
    z: np.ndarray, bounds: Bounds = gaussian_bounds, n_levels: int = 100
) -> float:
    """Area between the calibration curve and the diagonal (Tran et al. 2020), exact for the
    piecewise linear curve.
    """
    levels = np.linspace(0, 1, n_levels)
    gap = levels - observed_coverage(z, levels, bounds)
    a, b = gap[:-1], gap[1:]
    crossing = a * b < 0
    scale = np.where(crossing, np.abs(a) + np.abs(b), 1.0)
    # Two triangles where the curve crosses the diagonal
    area = np.where(crossing, (a**2 + b**2) / scale, np.abs(a + b)) / 2
    return float(np.sum(area * np.diff(levels)))


def binned_rms(error: np.ndarray, std: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """RMS of predicted std and of error in equally populated bins of std: two arrays [n_bins]."""
    error, std = np.ravel(error), np.ravel(std)
    bins = np.array_split(np.argsort(std, kind="stable"), min(n_bins, len(std)))
    return np.array([rmse(std[b]) for b in bins]), np.array([rmse(error[b]) for b in bins])


def ence(error: np.ndarray, std: np.ndarray, n_bins: int = 20) -> float:
    """Expected normalised calibration error (Levi et al. 2022): mean over bins of |RMS std -
    RMS error| / RMS std.
    """
    predicted, found = binned_rms(error, std, n_bins)
    return float(np.mean(np.abs(predicted - found) / predicted))


def zms(z: np.ndarray) -> float:
    """Mean square of z (Pernot 2023): 1 when calibrated on average, above 1 when overconfident."""
    return float(np.mean(np.square(z)))


def sharpness(std: np.ndarray) -> float:
    """RMS of the predicted standard deviations."""
    return rmse(std)


# --- scoring rules --------------------------------------------------------------------------------


def mahalanobis(error: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q = e^T cov^-1 e and ln det cov, each [n], of errors [n, d] and covariances [n, d, d]."""
    q, logdet = moments.mahalanobis(torch.tensor(error), torch.tensor(cov))
    return q.numpy(), logdet.numpy()


def multivariate_nll_rows(q: np.ndarray, logdet: np.ndarray, n_dimensions: int = 3) -> np.ndarray:
    """Negative log likelihood [n] of N(0, cov) from `mahalanobis`, constants included (nats)."""
    return 0.5 * (q + logdet + n_dimensions * np.log(2 * np.pi))


def pit_ks(q: np.ndarray, n_dimensions: int = 3) -> float:
    """Kolmogorov-Smirnov distance of the Mahalanobis PIT, chi2_d.cdf(q), from uniform:
    judges the whole covariance at once.
    """
    return float(stats.kstest(stats.chi2.cdf(np.ravel(q), n_dimensions), "uniform").statistic)


def normal_radius(q: np.ndarray, n_dimensions: int = 3) -> np.ndarray:
    """[n]: |z| of a standard normal z that is as improbable as a Mahalanobis square of q or more.
    So maps of standardised errors serve ellipsoids too.
    """
    # By the survival function: the CDF of a far error is 1 to machine precision
    beyond = stats.chi2.sf(np.ravel(q), n_dimensions)
    return stats.norm.isf(np.maximum(beyond, np.finfo(float).tiny) / 2)


def crps_rows(error: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of N(0, std^2) (Gneiting & Raftery 2007), in the unit
    of error, of each entry.
    """
    z = error / std
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return std * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))


def energy_score_rows(error: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Energy score [n] (Gneiting & Raftery 2007) of errors [n, d] under samples [n, k, d];
    unbiased pairs (i, i + 1) for E|X - X'|.
    """
    spread = np.linalg.norm(samples - np.roll(samples, 1, axis=1), axis=-1).mean(axis=1)
    return np.linalg.norm(samples - error[:, None], axis=-1).mean(axis=1) - spread / 2


def gaussian_energy_score_rows(
    error: np.ndarray, cov: np.ndarray, n_samples: int = 64, seed: int = 0, chunk: int = 4096
) -> np.ndarray:
    """[n] energy scores of N(0, cov), each from its own samples."""
    rng = np.random.default_rng(seed)
    rows = []
    for start in range(0, len(error), chunk):
        factor = np.linalg.cholesky(cov[start : start + chunk])
        white = rng.standard_normal((len(factor), n_samples, factor.shape[-1]))
        rows.append(
            energy_score_rows(error[start : start + chunk], white @ np.swapaxes(factor, -1, -2))
        )
    return np.concatenate(rows)
