"""A run of head `evidential` or `eip` as a posterior (e2IP, arXiv:2602.10419; eIP): it already
tells aleatoric from epistemic, but not their size.

kappa (nu of `eip`), the ratio of the two, is not identified by the likelihood. Only the
regulariser of the loss sets it, so training calibrates neither the parts nor their total.
One factor on the standard deviation of the force is fitted, and one on that of the
energy. With the totals Sigma and var, they make

    mean_i e_i^T Sigma_i^-1 e_i = 3   and   mean_k (E_k - E_ref,k)^2 / var_k = 1

on frames of the validation set (the maximum of the Gaussian likelihood), if there are enough
of them on those that did not choose the epoch (race.train.prepare). The ratio of the parts
stays what it was: kappa is a score, not a variance. The factors go into sigma0 and
sigma0_energy of the constants; the weights are the run's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from race.data.weights import label_weights
from race.heads import OWN_EPISTEMIC
from race.model.race import RACE
from race.posterior.options import EvidentialOptions
from race.posterior.protocol import Fitted, Run, require_head, require_one_member
from race.predict.predictor import predict_dataset


def fit(runs: Sequence[Run], options: EvidentialOptions, folder: Path) -> Fitted:
    """Calibrates the total on the run's calibration frames.

    Raises:
        RaceError: another head, or several members: the factors would not scale their
            spread (`race evaluate --calibrate` does).
    """
    (run,) = runs
    require_head(run, OWN_EPISTEMIC, "evidential")
    require_one_member(run, "calibrate an ensemble with `race evaluate --calibrate`")
    prepared, batch_size = run.prepare(), run.config.train.batch_size
    prediction, labels = predict_dataset(run.model, prepared.calibration, batch_size)
    frames = prepared.calibration.frames
    weights = {name: label_weights(frames, name) for name in ("energy", "forces")}
    z = known(labels.energy - prediction.energy.mean, prediction.energy.std)
    scale = {"energy": rms(z, weights["energy"])}
    changes = {"sigma0_energy": run.model.constants.sigma0_energy * scale["energy"]}
    if prediction.forces is not None and labels.forces is not None:
        scale["forces"] = mahalanobis_scale(
            labels.forces - prediction.forces.mean, prediction.forces.total, weights["forces"]
        )
        changes["sigma0"] = run.model.constants.sigma0 * scale["forces"]
    calibrated = RACE(
        run.model.config,
        run.model.constants.model_copy(update=changes),
        run.model.embedding.dtype,
    )
    calibrated.load_state_dict(run.model.state_dict())
    return Fitted(calibrated.eval(), {"std_scale": scale}, prepared.validation)


def known(error: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Standardised errors [n_labelled] of the frames that have a label."""
    return (error / std)[np.isfinite(error)]


def rms(z: np.ndarray, weights: np.ndarray) -> float:
    """The weighted root mean square."""
    return float(np.sqrt(np.average(z**2, weights=weights)))


def mahalanobis_scale(error: np.ndarray, cov: np.ndarray, weights: np.ndarray) -> float:
    """The factor c for which the mean of e^T (c^2 cov)^-1 e over labelled rows is their
    dimension; error [n, d], cov [n, d, d], weights [n_labelled].
    """
    rows = np.isfinite(error).all(1)
    white = np.linalg.solve(np.linalg.cholesky(cov[rows]), error[rows][..., None])
    return rms(np.sqrt((white**2).mean((1, 2))), weights)
