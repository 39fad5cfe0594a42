"""How wide the predicted noise is: a factor on its standard deviation, one for energies and
one for forces, fitted after training.

The likelihood makes the noise of each member as wide as that member's own error. The mean
of the members errs by less: of any numbers
    (y - <y_m>)^2 = <(y - y_m)^2> - <(y_m - <y_m>)^2>                  (ambiguity
                                                                       decomposition,
                                                                       Krogh and Vedelsby
                                                                       1995)
so by noise minus spread, where the law of total variance gives noise plus spread. And the
noise of energies, which have one label a frame, is often still following the errors down
when the learning rate is spent.

The factors c minimise the CRPS of the validation set's errors under c^2 aleatoric +
epistemic, in units of the noise. It is proper as the likelihood is, but grows with the
size of an error, not with its square: a few large ones, which forces always have, do not
decide how wide the noise of all others is. The factors are among the model's constants
and change neither a weight, nor a mean, nor a spread of members. Training itself always
runs with factors of 1.
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import ndtr
from torch import Tensor

from race.data import Batch
from race.model.race import RACE
from race.predict.moments import total_variance
from race.train.parallel import Ranks

# Energies have one label a frame. A factor found on fewer than these follows the accidents of
# the validation set, and of a head that was still learning how wide its noise is
MIN_ENERGIES = 100
logger = logging.getLogger(__name__)

PRIOR_ERRORS = 5  # so many further errors of the size that c = 1 predicts: few frames change little
LARGEST = 4.0  # of |ln c|


class Rows(NamedTuple):
    """Errors of the mean prediction [n, d], [n, d, d] the noise and the spread of members, and
    [n] weights.
    """

    error: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray
    weights: np.ndarray


def fit_noise(
    model: RACE, batches: Iterable[Batch | None], ranks: Ranks | None = None
) -> dict[str, float]:
    """Fits the factors, and multiplies those of `model` by them, in place.

    The evidential head tells aleatoric from epistemic by itself, and the paper's
    intensive energy variance has no unit to scale:
    these are left alone.

    Args:
        model: trained.
        batches: of the validation set, on the model's device; of several ranks, each its
            share (None: an empty one).
        ranks: those that share the validation set.

    Returns:
        "energy" and "forces" -> factor, of those that the head predicts and the batches
        have enough labels for.
    """
    if not model.has_energy_var or model.own_epistemic:
        return {}
    parts: dict[str, list[Rows]] = {"energy": [], "forces": []}
    for batch in batches:
        if batch is not None:
            for name, rows in _rows(model, batch).items():
                parts[name].append(rows)
    factors = {}
    for name in parts:
        shares = [rows for share in (ranks or Ranks()).gather(parts[name]) for rows in share]
        n_rows = sum(len(rows.error) for rows in shares)
        if name == "energy" and 0 < n_rows < MIN_ENERGIES:
            if ranks is None or ranks.first:
                logger.info(
                    f"the noise of energies stays as the head predicts it: {n_rows} validation "
                    f"frames, and a factor is fitted to {MIN_ENERGIES} or more"
                )
        elif n_rows:
            factors[name] = noise_factor(
                *(np.concatenate(columns) for columns in zip(*shares, strict=True))
            )
    model.scale_noise(factors.get("energy", 1.0), factors.get("forces", 1.0))
    return factors


def _rows(model: RACE, batch: Batch) -> dict[str, Rows]:
    labels = batch.forces if model.has_forces_cov else None
    out = model(batch, forces=labels is not None).detach()
    rows = {}
    if not model.paper_energy_var and batch.energy is not None:
        rows["energy"] = _split(
            out.energy.unsqueeze(2),
            out.energy_var[..., None, None],
            batch.energy.unsqueeze(1),
            batch.weights("energy"),
        )
    if labels is not None:
        with torch.no_grad():
            rows["forces"] = _split(
                out.forces, model.forces_cov(out.raw), labels, batch.weights("forces")
            )
    return rows


def _split(members: Tensor, covariance: Tensor, label: Tensor, weights: Tensor) -> Rows:
    """members [n, M, d], covariance [n, M, d, d], label [n, d], weights [n_labelled]; rows
    without a label are left out.
    """
    known = torch.isfinite(label).all(1)
    moments = total_variance(members[known].double(), covariance[known].double().mean(1))
    error = label[known].double() - moments.mean
    parts = (error, moments.aleatoric, moments.epistemic, weights)
    return Rows(*(part.cpu().numpy() for part in parts))


def noise_factor(
    error: np.ndarray,
    aleatoric: np.ndarray,
    epistemic: np.ndarray,
    weights: np.ndarray | float = 1.0,
) -> float:
    """The best c for errors [n, d] with the predicted covariance c^2 aleatoric + epistemic,
    both [n, d, d]; aleatoric is regular. An error of weight 2, of `weights` [n], counts twice.

    Minimises the sum over components, in a frame where the noise is the unit matrix and
    the spread diagonal, of the CRPS of a normal distribution (Gneiting and Raftery 2007,
    eq. 21), and PRIOR_ERRORS times its expectation over standard normal errors.
    """
    whiten = np.linalg.inv(np.linalg.cholesky(aleatoric))
    spread, axes = np.linalg.eigh(whiten @ epistemic @ whiten.swapaxes(1, 2))
    rotated = (axes.swapaxes(1, 2) @ whiten @ error[..., None])[..., 0]

    def cost(log_c: float) -> float:
        square = np.exp(2 * log_c)
        std = np.sqrt(square + np.maximum(spread, 0))
        z = rotated / std
        crps = std * (
            z * (2 * ndtr(z) - 1) + np.sqrt(2 / np.pi) * np.exp(-0.5 * z * z) - np.sqrt(1 / np.pi)
        )
        expected = np.sqrt(2 * (1 + square) / np.pi) - np.sqrt(square / np.pi)
        return float(np.sum(np.sum(crps, axis=1) * weights)) + PRIOR_ERRORS * float(expected)

    return float(
        np.exp(
            minimize_scalar(
                cost, bounds=(-LARGEST, LARGEST), method="bounded", options={"xatol": 1e-6}
            ).x
        )
    )
