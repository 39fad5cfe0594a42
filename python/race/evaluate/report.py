"""One record of figures per split: what `race evaluate` prints and writes. Errors in meV/atom, meV/Angstrom, meV/Angstrom^3."""

from dataclasses import dataclass

import numpy as np

from race.evaluate import metrics, ranking
from race.evaluate.bootstrap import ClusteredMean
from race.evaluate.calibration import METHODS, TABLE_LEVELS, IntervalTable, Recalibration, VarianceScaling
from race.posterior.prediction import Labels, Prediction, marginal_std

MILLI = 1000.0
N_BOOTSTRAP = 200


@dataclass(frozen=True)
class Residual:
    """Errors of one quantity in independent rows, each belonging to a frame.

    error [n] or [n, d] = reference - mean; cov [n] variances or [n, d, d]; frame [n]; size [n] what a reported error is divided by
    (atoms per frame for energies, else 1); kept: which rows of the labels these are.
    """

    error: np.ndarray
    cov: np.ndarray
    frame: np.ndarray
    size: np.ndarray
    kept: np.ndarray

    @property
    def std(self) -> np.ndarray:
        return marginal_std(self.cov)

    @property
    def z(self) -> np.ndarray:
        """Standardised errors, in the shape of error; not finite where nothing is predicted."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.error / self.std

    @property
    def probabilistic(self) -> bool:
        """Whether every error comes with a positive variance."""
        return bool((self.std > 0).all())

    def per_frame(self, rows: np.ndarray) -> ClusteredMean:
        """Means over rows [n_values or n, k] laid out as error, to be bootstrapped by frame."""
        return ClusteredMean(rows, np.repeat(self.frame, rows.shape[0] // len(self.frame)), int(self.frame[-1]) + 1)


@dataclass(frozen=True)
class Split:
    """A named set of frames with predictions and references."""

    name: str
    prediction: Prediction
    labels: Labels
    ood: bool = False

    @property
    def n_frames(self) -> int:
        return len(self.labels.n_atoms)

    def residual(self, quantity: str) -> Residual | None:
        """Of "energy", "forces" or "stress"; None where there are no references. Unlabelled rows are left out."""
        reference, estimate = getattr(self.labels, quantity), getattr(self.prediction, quantity)
        if reference is None or estimate is None:
            return None
        frame = self.labels.frame if quantity == "forces" else np.arange(self.n_frames)
        size = self.labels.n_atoms.astype(float) if quantity == "energy" else np.ones(len(frame))
        error = reference - estimate.mean
        rows = np.isfinite(error.reshape(len(error), -1)).all(axis=1)
        return Residual(error[rows], estimate.total[rows], frame[rows], size[rows], rows) if rows.any() else None


def fit_recalibration(split: Split, method: str) -> dict[str, Recalibration]:
    """Quantity -> map, for every quantity of a calibration split that has a predicted uncertainty."""
    out = {}
    for quantity in ("energy", "forces", "stress"):
        residual = split.residual(quantity)
        if residual is not None and residual.probabilistic:
            # A rotation by pi turns a force component into its negative, so the two tails must be alike.
            out[quantity] = METHODS[method].fit(residual.z, symmetric=quantity == "forces")
    return out


def fit_intervals(split: Split, method: str) -> dict:
    """What an artifact carries of a calibration: `method`, `levels`, by quantity the half-widths in units of the predicted std, `scale`.

    Intervals in MD are symmetric about the prediction, energies' too.
    """
    out: dict = {"method": method, "levels": TABLE_LEVELS.tolist(), "scale": {}}
    for quantity in ("energy", "forces", "stress"):
        residual = split.residual(quantity)
        if residual is not None and residual.probabilistic:
            table = IntervalTable.fit(residual.z, method=method)
            if len(table.factors):
                out[quantity] = table.factors.tolist()
            out["scale"][quantity] = VarianceScaling.fit(residual.z).scale
    return out


def covariance_scale(split: Split) -> float | None:
    """Factor on the force std that makes <e^T Sigma^-1 e> = 3: variance scaling of the whole covariance."""
    q = _mahalanobis(split.residual("forces"))
    return None if q is None else float(np.sqrt(q[0].mean() / 3))


def _mahalanobis(residual: Residual | None) -> tuple[np.ndarray, np.ndarray] | None:
    """q and ln det, or None where a covariance is missing or singular (an ensemble of M < 4 points spans M - 1 directions)."""
    if residual is None or not residual.probabilistic:
        return None
    scale = np.trace(residual.cov, axis1=-2, axis2=-1)
    if (np.linalg.det(residual.cov / scale[:, None, None]) < 1e-18).any():
        return None
    return metrics.mahalanobis(residual.error, residual.cov)


def split_record(
    split: Split, recalibration: dict[str, Recalibration] | None = None, scale: float | None = None, n_resamples: int = N_BOOTSTRAP
) -> dict:
    """All figures of one split; `interval90` holds the bootstrap intervals of those that have one.

    Args:
        split: predictions and references.
        recalibration: from `fit_recalibration` on another split.
        scale: from `covariance_scale` on another split.
        n_resamples: bootstrap draws of frames; 0 for no intervals.
    """
    record: dict = {"split": split.name, "n_frames": split.n_frames, "n_atoms": int(split.labels.n_atoms.sum()), "interval90": {}}
    recalibration = recalibration or {}
    for quantity, suffix in (("energy", "e"), ("forces", "f"), ("stress", "s")):
        residual = split.residual(quantity)
        if residual is not None:
            record |= _errors(residual, suffix, record["interval90"], n_resamples)
            if residual.probabilistic:
                record |= _calibration(residual, suffix, recalibration.get(quantity), record["interval90"], n_resamples)
                record |= _scores(residual, suffix) | _ranks(residual, suffix)
    forces = split.residual("forces")
    if forces is not None:
        if (q_logdet := _mahalanobis(forces)) is not None:
            record |= _whole_covariance(forces, *q_logdet, scale, record["interval90"], n_resamples)
        record["by_element"] = {str(s): _element(split, forces, s, recalibration) for s in np.unique(split.labels.symbols)}
    return record


def _errors(residual: Residual, suffix: str, interval: dict, n_resamples: int) -> dict:
    scaled = MILLI * (residual.error.T / residual.size).T
    mean = residual.per_frame(scaled.ravel() ** 2)
    interval[f"rmse_{suffix}"] = mean.interval(lambda m: float(np.sqrt(m)), n_resamples=n_resamples)
    return {f"rmse_{suffix}": metrics.rmse(scaled), f"mae_{suffix}": metrics.mae(scaled)}


def _calibration(residual: Residual, suffix: str, fitted: Recalibration | None, interval: dict, n_resamples: int) -> dict:
    out: dict = {}
    z = residual.z.ravel()
    for ending, bounds in (("", metrics.gaussian_bounds), ("_recal", fitted.bounds if fitted else None)):
        if bounds is None:
            continue
        out[f"ce_{suffix}{ending}"] = metrics.calibration_error(z, bounds)
        out[f"coverage90_{suffix}{ending}"] = metrics.coverage(z, 0.9, bounds)
        inside = residual.per_frame(metrics.covered(z, metrics.LEVELS, bounds))
        interval[f"ce_{suffix}{ending}"] = inside.interval(_squared_gap, n_resamples=n_resamples)
        interval[f"coverage90_{suffix}{ending}"] = inside.interval(_at_90, n_resamples=n_resamples)
    out[f"miscalibration_{suffix}"] = metrics.miscalibration_area(z)
    out[f"zms_{suffix}"] = metrics.zms(z)
    out[f"ence_{suffix}"] = metrics.ence(residual.error, residual.std)
    out[f"sharpness_{suffix}"] = MILLI * metrics.sharpness((residual.std.T / residual.size).T)
    return out


def _squared_gap(observed: np.ndarray) -> float:
    """CE from the coverage observed at each of LEVELS."""
    return float(np.mean((metrics.LEVELS - observed) ** 2))


def _at_90(observed: np.ndarray) -> float:
    return float(observed[np.searchsorted(metrics.LEVELS, 0.9)])


def _scores(residual: Residual, suffix: str) -> dict:
    crps = MILLI * metrics.crps_gaussian((residual.error.T / residual.size).T, (residual.std.T / residual.size).T)
    if residual.error.ndim > 1:
        return {f"crps_{suffix}": crps}
    return {f"crps_{suffix}": crps, f"nll_{suffix}": float(metrics.nll_rows(residual.error, residual.cov).mean())}


def _ranks(residual: Residual, suffix: str) -> dict:
    """Rank metrics over rows: std (of a component, RMS over them) against |error|, each beside its simulated ideal."""
    rows = len(residual.error)
    score = np.sqrt(np.mean(residual.std.reshape(rows, -1) ** 2, axis=1)) / residual.size
    magnitude = np.linalg.norm(residual.error.reshape(rows, -1), axis=1) / residual.size
    cov = residual.cov.reshape(rows, *(residual.cov.shape[1:] or (1, 1)))
    simulated = np.linalg.norm(ranking.simulated_errors(cov), axis=-1) / residual.size
    out = {}
    for name, metric in (("spearman", ranking.spearman), ("ause", ranking.ause), ("auroc_error", ranking.large_error_auroc)):
        out[f"{name}_{suffix}"] = metric(score, magnitude)
        out[f"{name}_{suffix}_ideal"] = ranking.simulated_ideal(metric, score, simulated)
    return out


def _whole_covariance(forces: Residual, q: np.ndarray, logdet: np.ndarray, scale: float | None, interval: dict, n_resamples: int) -> dict:
    """What judges the full 3x3 covariance of the force on each atom."""
    rows = metrics.multivariate_nll_rows(q, logdet)
    out = {"nll_f": float(rows.mean()), "pit_ks": metrics.pit_ks(q)}
    out["energy_score_f"] = MILLI * metrics.energy_score(forces.error, forces.cov)
    interval["nll_f"] = forces.per_frame(rows).interval(float, n_resamples=n_resamples)
    if scale is not None:
        scaled = metrics.multivariate_nll_rows(q / scale**2, logdet + 6 * np.log(scale))
        out |= {"nll_f_recal": float(scaled.mean()), "pit_ks_recal": metrics.pit_ks(q / scale**2)}
    return out


def _element(split: Split, forces: Residual, symbol: str, recalibration: dict[str, Recalibration]) -> dict:
    rows = split.labels.symbols[forces.kept] == symbol
    out = {"n_atoms": int(rows.sum()), "rmse_f": MILLI * metrics.rmse(forces.error[rows])}
    if forces.probabilistic:
        z = forces.z[rows]
        out |= {"sharpness_f": MILLI * metrics.sharpness(forces.std[rows]), "coverage90_f": metrics.coverage(z), "zms_f": metrics.zms(z)}
        if fitted := recalibration.get("forces"):
            out["coverage90_f_recal"] = metrics.coverage(z, 0.9, fitted.bounds)
    return out
