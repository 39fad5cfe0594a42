"""One record of figures per split: what `race evaluate` prints and writes. Errors in
meV/atom (of an intensive target 1e-3 of its unit), meV/Angstrom, meV/Angstrom^3.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from race.conventions import ENERGY_ERROR
from race.evaluate import metrics, ranking
from race.evaluate.bootstrap import N_BOOTSTRAP, ClusteredMean
from race.evaluate.calibration import (
    METHODS,
    TABLE_LEVELS,
    IntervalTable,
    Recalibration,
    VarianceScaling,
)
from race.evaluate.split import Residual, Split, rank_rows

MILLI = 1000.0
SUFFIXES = {"energy": "e", "forces": "f", "stress": "s", "pressure": "p"}  # of keys
ELLIPSOID = "force_ellipsoid"  # of a recalibration: of the force as a vector
# Of the trace, in float64: a regular covariance may have a spread 1e5 times its noise
SINGULAR = 1e-13
PIT_LEVELS = np.arange(1, 1000) / 1000
Rows = Callable[[np.ndarray | slice], float]
RANKS = {
    "spearman": ranking.spearman,
    "ause": ranking.ause,
    "auroc_error": ranking.large_error_auroc,
    "auprc_error": ranking.large_error_auprc,
}


def fit_recalibration(split: Split, method: str) -> dict[str, Recalibration]:
    """Quantity -> map, for every quantity of a calibration split that has a predicted
    uncertainty; and one of the ellipsoids that hold a force with a given probability, unless the
    method is one factor.
    """
    out = {}
    for quantity in ("energy", "forces", "stress"):
        residual = split.residual(quantity)
        if residual is not None and residual.probabilistic:
            # A rotation by pi turns a force component into its negative, so the two tails
            # must be alike.
            out[quantity] = METHODS[method].fit(residual.z, symmetric=quantity == "forces")
    q = _mahalanobis(split.residual("forces"))
    if q is not None and method != VarianceScaling.method:  # that is `covariance_scale`
        out[ELLIPSOID] = METHODS[method].fit(metrics.normal_radius(q[0]), symmetric=True)
    return out


def fit_intervals(split: Split, method: str) -> dict[str, Any]:
    """The part of a calibration that an artifact carries: `method`, `levels`, by quantity the
    half-widths in units of the predicted std, `scale`.

    Intervals in MD are symmetric about the prediction, energies' too.
    """
    out: dict[str, Any] = {"method": method, "levels": TABLE_LEVELS.tolist(), "scale": {}}
    for quantity in ("energy", "forces", "stress"):
        residual = split.residual(quantity)
        if residual is not None and residual.probabilistic:
            table = IntervalTable.fit(residual.z, method=method)
            if len(table.factors):
                out[quantity] = table.factors.tolist()
            out["scale"][quantity] = VarianceScaling.fit(residual.z).scale
    return out


def covariance_scale(split: Split) -> float | None:
    """Factor on the force std that makes <e^T Sigma^-1 e> = 3: variance scaling of the whole
    covariance.
    """
    q = _mahalanobis(split.residual("forces"))
    return None if q is None else float(np.sqrt(q[0].mean() / 3))


def _mahalanobis(residual: Residual | None) -> tuple[np.ndarray, np.ndarray] | None:
    """q and ln det, or None where a covariance is missing or singular (M members span M - 1
    directions).
    """
    if residual is None or not residual.probabilistic:
        return None
    cov = residual.cov_matrices
    smallest = np.linalg.eigvalsh(cov)[:, 0]
    if (smallest < SINGULAR * np.trace(cov, axis1=-2, axis2=-1)).any():
        return None
    return metrics.mahalanobis(residual.error.reshape(len(cov), -1), cov)


def split_record(
    split: Split,
    recalibration: dict[str, Recalibration] | None = None,
    scale: float | None = None,
    n_resamples: int = N_BOOTSTRAP,
) -> dict[str, Any]:
    """All figures of one split; `interval90` holds the bootstrap intervals of those that have one.

    Args:
        split: predictions and references.
        recalibration: from `fit_recalibration` on another split.
        scale: from `covariance_scale` on another split.
        n_resamples: bootstrap draws of frames; 0 for no intervals.
    """
    record: dict[str, Any] = {
        "split": split.name,
        "energy_unit": ENERGY_ERROR["sum" if split.extensive else "mean"],
        "n_frames": split.n_frames,
        "n_atoms": int(split.labels.n_atoms.sum()),
        "interval90": {},
    }
    recalibration = recalibration or {}
    for quantity, suffix in SUFFIXES.items():
        residual = split.residual(quantity)
        if residual is not None:
            record |= _errors(residual, suffix, record["interval90"], n_resamples)
            if residual.probabilistic:
                record |= _calibration(
                    residual, suffix, recalibration.get(quantity), record["interval90"], n_resamples
                )
                record |= _scores(residual, suffix, record["interval90"], n_resamples)
                record |= _ranks(residual, suffix, record["interval90"], n_resamples)
            if (q_logdet := _mahalanobis(residual)) is not None:
                of_forces = quantity == "forces"
                record |= _whole_covariance(
                    residual,
                    *q_logdet,
                    suffix,
                    scale if of_forces else None,
                    recalibration.get(ELLIPSOID) if of_forces else None,
                    record["interval90"],
                    n_resamples,
                )
    record |= _spreads(split)
    forces = split.residual("forces")
    if forces is not None:
        record |= _other_scores_of_atoms(split, forces, record["interval90"], n_resamples)
        record["by_element"] = {
            str(s): _part(
                forces, split.labels.symbols[forces.kept] == s, "f", recalibration.get("forces")
            )
            for s in np.unique(split.labels.symbols)
        }
    if split.temperature is not None and np.isfinite(split.temperature).any():
        record["by_temperature"] = {
            f"{kelvin:g}": _at_temperature(split, kelvin, recalibration)
            for kelvin in np.unique(split.temperature[np.isfinite(split.temperature)])
        }
    return record


def _spreads(split: Split) -> dict[str, Any]:
    """The error of a model that knows nothing: the scatter of the energies about the
    best atomic energies, the RMS force.
    """
    out = {}
    symbols, frame = split.labels.symbols, split.labels.frame
    elements = np.unique(symbols)
    counts = np.stack(
        [np.bincount(frame, symbols == element, minlength=split.n_frames) for element in elements],
        axis=1,
    )
    per_atom = split.labels.energy / split.size
    rows = np.isfinite(per_atom)
    composition = (counts / counts.sum(axis=1, keepdims=True))[rows]
    fit = np.linalg.lstsq(composition, per_atom[rows], rcond=1e-8)[0]
    out["spread_e"] = MILLI * metrics.rmse(per_atom[rows] - composition @ fit)
    if split.labels.forces is not None:
        out["spread_f"] = MILLI * metrics.rmse(
            split.labels.forces[np.isfinite(split.labels.forces)]
        )
    return out


def _errors(
    residual: Residual, suffix: str, interval: dict[str, Any], n_resamples: int
) -> dict[str, Any]:
    scaled = MILLI * (residual.error.T / residual.size).T
    interval[f"rmse_{suffix}"] = residual.per_frame(scaled.ravel() ** 2).interval(
        _root, n_resamples=n_resamples
    )
    interval[f"mae_{suffix}"] = residual.per_frame(np.abs(scaled.ravel())).interval(
        float, n_resamples=n_resamples
    )
    return {f"rmse_{suffix}": metrics.rmse(scaled), f"mae_{suffix}": metrics.mae(scaled)}


def _root(mean: np.ndarray) -> float:
    return float(np.sqrt(mean))


def _calibration(
    residual: Residual,
    suffix: str,
    fitted: Recalibration | None,
    interval: dict[str, Any],
    n_resamples: int,
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    z = residual.z.ravel()
    for ending, bounds in (
        ("", metrics.gaussian_bounds),
        ("_recal", fitted.bounds if fitted else None),
    ):
        if bounds is None:
            continue
        out[f"ce_{suffix}{ending}"] = metrics.calibration_error(z, bounds)
        out[f"coverage90_{suffix}{ending}"] = metrics.coverage(z, 0.9, bounds)
        inside = residual.per_frame(metrics.covered(z, metrics.LEVELS, bounds))
        if not ending:
            out |= _floors(inside, suffix)
        interval[f"ce_{suffix}{ending}"] = inside.interval(_squared_gap, n_resamples=n_resamples)
        interval[f"coverage90_{suffix}{ending}"] = inside.interval(_at_90, n_resamples=n_resamples)
    sharpness = MILLI * (residual.std.T / residual.size).T.ravel()
    out[f"zms_{suffix}"], out[f"sharpness_{suffix}"] = metrics.zms(z), metrics.sharpness(sharpness)
    interval[f"zms_{suffix}"] = residual.per_frame(z**2).interval(float, n_resamples=n_resamples)
    interval[f"sharpness_{suffix}"] = residual.per_frame(sharpness**2).interval(
        _root, n_resamples=n_resamples
    )
    by_rows = {
        "miscalibration": lambda rows: metrics.miscalibration_area(residual.z[rows]),
        "ence": lambda rows: metrics.ence(residual.error[rows], residual.std[rows]),
    }
    return out | _by_rows(residual, by_rows, suffix, interval, n_resamples)


def _floors(inside: ClusteredMean, suffix: str) -> dict[str, Any]:
    """The score of a calibrated prediction on so many frames, by chance alone.

    CE is a mean of squares, so it has an expectation above 0: the sampling variance of the
    coverages. The rows of a frame share their errors, so they count as fewer: n_effective
    independent rows would have this variance. The KS distance of n has the expectation
    sqrt(pi / 2) ln 2 / sqrt(n) (Kolmogorov's distribution).
    """
    floor, coverage = float(np.mean(inside.variance())), inside()
    n = float(np.mean(coverage * (1 - coverage)) / floor) if floor > 0 else math.nan
    ks = "pit_ks" if suffix == "f" else f"pit_ks_{suffix}"
    return {
        f"ce_{suffix}_floor": floor,
        f"n_effective_{suffix}": n,
        f"{ks}_floor": float(np.sqrt(np.pi / 2 / n) * np.log(2)),
    }


def _by_rows(
    residual: Residual,
    functions: Mapping[str, Rows],
    suffix: str,
    interval: dict[str, Any],
    n_resamples: int,
) -> dict[str, Any]:
    """Each function of all rows, and its interval."""
    out, frames = {}, residual.frames()
    for name, function in functions.items():
        out[f"{name}_{suffix}"] = function(slice(None))
        interval[f"{name}_{suffix}"] = frames.interval(function, n_resamples=n_resamples)
    return out


def _squared_gap(observed: np.ndarray) -> float:
    """CE from the coverage observed at each of LEVELS."""
    return float(np.mean((metrics.LEVELS - observed) ** 2))


def _at_90(observed: np.ndarray) -> float:
    return float(observed[np.searchsorted(metrics.LEVELS, 0.9)])


def _scores(
    residual: Residual, suffix: str, interval: dict[str, Any], n_resamples: int
) -> dict[str, Any]:
    """CRPS of every component, and the likelihood of energies; that of vectors needs the
    whole covariance.
    """
    crps = (
        MILLI
        * metrics.crps_rows(
            (residual.error.T / residual.size).T, (residual.std.T / residual.size).T
        ).ravel()
    )
    interval[f"crps_{suffix}"] = residual.per_frame(crps).interval(float, n_resamples=n_resamples)
    return {f"crps_{suffix}": float(crps.mean())}


def _ranks(
    residual: Residual, suffix: str, interval: dict[str, Any], n_resamples: int
) -> dict[str, Any]:
    """Rank metrics over rows: std (of a component, RMS over them) against |error|, each
    beside its simulated ideal.
    """
    score, magnitude = rank_rows(residual)
    simulated = (
        np.linalg.norm(ranking.simulated_errors(residual.cov_matrices), axis=-1) / residual.size
    )
    by_rows = {name: partial(_ranked, metric, score, magnitude) for name, metric in RANKS.items()}
    ideal = {
        f"{name}_{suffix}_ideal": ranking.simulated_ideal(metric, score, simulated)
        for name, metric in RANKS.items()
    }
    return _by_rows(residual, by_rows, suffix, interval, n_resamples) | ideal


def _other_scores_of_atoms(
    split: Split, forces: Residual, interval: dict[str, Any], n_resamples: int
) -> dict[str, Any]:
    """AUROC of the largest tenth of force errors by scores that are no uncertainty, beside
    `auroc_error_f`: the grade, and `Split.trivial_atoms`, each from its better side.
    """
    magnitude = np.linalg.norm(forces.error, axis=1)
    out = {}
    for name, score in split.trivial_atoms.items():
        area = ranking.large_error_auroc(score[forces.kept], magnitude)
        out[f"auroc_error_f_by_{name}"] = max(area, 1 - area)
    if out:
        out["auroc_error_f_trivial"] = max(out.values())
    if split.prediction.grade is not None:
        grade = split.prediction.grade[forces.kept]
        by_grade = {"auroc_error_f": partial(_ranked, ranking.large_error_auroc, grade, magnitude)}
        out |= _by_rows(forces, by_grade, "grade", interval, n_resamples)
    return out


def _ranked(
    metric: Callable[..., Any], score: np.ndarray, magnitude: np.ndarray, rows: np.ndarray | slice
) -> float:
    return metric(score[rows], magnitude[rows])


def _whole_covariance(
    residual: Residual,
    q: np.ndarray,
    logdet: np.ndarray,
    suffix: str,
    scale: float | None,
    ellipsoid: Recalibration | None,
    interval: dict[str, Any],
    n_resamples: int,
) -> dict[str, Any]:
    """Scores of a covariance as a whole: of the force on each atom (whose pit_ks has no
    suffix), of a stress, of an energy. Recalibrated: the NLL under one factor, which keeps the
    distribution Gaussian, the PIT under the map of ellipsoids, which does not.
    """
    d = residual.cov_matrices.shape[-1]
    ks = "pit_ks" if suffix == "f" else f"pit_ks_{suffix}"
    rows = metrics.multivariate_nll_rows(q, logdet, d)
    out = {f"nll_{suffix}": float(rows.mean()), ks: metrics.pit_ks(q, d)}
    interval[f"nll_{suffix}"] = residual.per_frame(rows).interval(float, n_resamples=n_resamples)
    interval[ks] = residual.frames().interval(
        lambda rows: metrics.pit_ks(q[rows], d), n_resamples=n_resamples
    )
    if d > 1:  # in one dimension it is the CRPS
        energy_score = MILLI * metrics.gaussian_energy_score_rows(residual.error, residual.cov)
        out[f"energy_score_{suffix}"] = float(energy_score.mean())
        interval[f"energy_score_{suffix}"] = residual.per_frame(energy_score).interval(
            float, n_resamples=n_resamples
        )
    if scale is not None:
        scaled = metrics.multivariate_nll_rows(q / scale**2, logdet + 2 * d * np.log(scale), d)
        out |= {
            f"nll_{suffix}_recal": float(scaled.mean()),
            f"{ks}_recal": metrics.pit_ks(q / scale**2, d),
        }
    if ellipsoid is not None:
        radius = metrics.normal_radius(q, d)
        held = metrics.observed_coverage(radius, PIT_LEVELS, ellipsoid.bounds)
        out[f"{ks}_recal"] = float(np.abs(held - PIT_LEVELS).max())
    return out


def _part(
    residual: Residual, rows: np.ndarray, suffix: str, fitted: Recalibration | None
) -> dict[str, Any]:
    """Error and reliability of some rows (a mask)."""
    size = residual.size[rows]
    out = {f"rmse_{suffix}": MILLI * metrics.rmse((residual.error[rows].T / size).T)}
    if suffix == "f":
        out["n_atoms"] = int(rows.sum())
    if residual.probabilistic:
        z = residual.z[rows]
        out[f"sharpness_{suffix}"] = MILLI * metrics.sharpness((residual.std[rows].T / size).T)
        out |= {f"coverage90_{suffix}": metrics.coverage(z), f"zms_{suffix}": metrics.zms(z)}
        if fitted:
            out[f"coverage90_{suffix}_recal"] = metrics.coverage(z, 0.9, fitted.bounds)
    return out


def _at_temperature(
    split: Split, kelvin: float, recalibration: dict[str, Recalibration]
) -> dict[str, Any]:
    assert split.temperature is not None
    out: dict[str, Any] = {"n_frames": int((split.temperature == kelvin).sum())}
    for quantity, suffix in (("energy", "e"), ("forces", "f"), ("stress", "s")):
        residual = split.residual(quantity)
        if residual is not None and (rows := split.temperature[residual.frame] == kelvin).any():
            out |= _part(residual, rows, suffix, recalibration.get(quantity))
    return out
