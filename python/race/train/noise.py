"""The width of predicted errors: factors on the standard deviations of the noise and of the
members' spread. Energies have a factor on each, and so have forces. They are fitted after
training.

The likelihood makes the noise of each member as wide as that member's own error. The mean
of the members errs by less. By the ambiguity decomposition (Krogh and Vedelsby 1995), any
numbers have

    (y - <y_m>)^2 = <(y - y_m)^2> - <(y_m - <y_m>)^2>,

that is noise minus spread, where the law of total variance gives noise plus spread. Also,
energies have one label a frame: their noise is often still too large when training ends. The
spread errs to the other side: members that share data and architecture err together in part,
which their spread does not show. It is never made
narrower than that of independent members (race.predict.moments.spread_of_independent).

The factors a on the noise and b >= 1 on the spread minimise the CRPS of the validation set's
errors under a^2 aleatoric + b^2 epistemic, in units of the noise. A head without noise has b
alone, in units of the spread. Both are fitted at once: where frames differ in the ratio
of the two, their errors tell one from the other. The CRPS is proper as the likelihood is,
but grows with the size of an error, not with its square. A few large errors, which forces
always have, therefore do not decide the width of all others. The factors are among the
model's constants and change neither a weight nor a mean. Training itself runs without
them.

One member with a leverage (race.model.outputs) has an epistemic part of its own in place of
the spread. Its factor b may be less than 1: nothing else says how large it is.
"""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
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

# So many further errors of the size that factors of 1 predict: few frames change little
PRIOR_ERRORS = 5
LARGEST = 4.0  # of |ln factor|
FITTED_LEVERAGE = 100.0  # the largest that factors are fitted to: ten times the grade of the edge


class Errors(NamedTuple):
    """Errors of the mean prediction [n, d], [n, d, d] the noise and the spread of members, [n]
    weights, and [n] the variance of the labels' own noise; aleatoric None: the head has none.
    """

    error: np.ndarray
    aleatoric: np.ndarray | None
    epistemic: np.ndarray
    weights: np.ndarray
    own: np.ndarray


class Factors(NamedTuple):
    """On the standard deviations of noise and spread."""

    noise: float
    spread: float


def fit_noise(
    model: RACE, batches: Iterable[Batch | None], ranks: Ranks | None = None
) -> dict[str, float]:
    """Fits the factors, and multiplies those of `model` by them, in place.

    The heads `evidential` and `eip` tell aleatoric from epistemic by themselves, and the paper's
    intensive energy variance has no unit to scale:
    these are left alone. Where energies are too few to fit their factors to, a leverage has
    that of forces, and the variance of the median frame stays what it was.

    Args:
        model: trained.
        batches: of the validation set, on the model's device; of several ranks, each its
            share (None: an empty one).
        ranks: those that share the validation set.

    Returns:
        "energy", "forces" (noise), "energy_spread", "forces_spread" -> factor, of those
        that the model has and the batches have enough labels for; "energy_leverage",
        "forces_leverage" -> factors on c_E, c_F, which a fit starts from 1.
    """
    if model.head_epistemic or not (model.has_energy_var or model.n_members > 1):
        return {}
    parts: dict[str, list[Errors]] = {"energy": [], "forces": []}
    for batch in batches:
        if batch is not None:
            for name, rows in _rows(model, batch).items():
                parts[name].append(rows)
    found: dict[str, float] = {}
    too_few: Errors | None = None
    for name in parts:
        shares = [rows for share in (ranks or Ranks()).gather(parts[name]) for rows in share]
        n_rows = sum(len(rows.error) for rows in shares)
        if name == "energy" and 0 < n_rows < MIN_ENERGIES:
            if ranks is None or ranks.first:
                logger.info(
                    f"the width of energies stays as it is predicted: {n_rows} validation "
                    f"frames, and a factor is fitted to {MIN_ENERGIES} or more"
                )
            too_few = _columns(shares)
        elif n_rows:
            columns = _columns(shares)
            if model.has_leverage:
                columns = _near(columns)
            factors = width_factors(*columns, least=-LARGEST if model.has_leverage else 0.0)
            if columns.aleatoric is not None:
                found[name] = factors.noise
            if model.n_members > 1:
                found[f"{name}_spread"] = factors.spread
            if model.has_leverage:  # of the noise, which has become wider itself
                found[f"{name}_leverage"] = (factors.spread / factors.noise) ** 2
    if "forces_leverage" in found and "energy_leverage" not in found:
        found["energy_leverage"] = found["forces_leverage"]
    if model.has_leverage and too_few is not None:
        assert too_few.aleatoric is not None
        ratio = found.get("energy_leverage", 1.0)
        # The median: one frame far from the training set would narrow all others
        share = float(np.median(too_few.epistemic / too_few.aleatoric))
        found["energy"] = (1 + ratio * share) ** -0.5
    model.scale_noise(found.get("energy", 1.0), found.get("forces", 1.0))
    model.scale_spread(found.get("energy_spread", 1.0), found.get("forces_spread", 1.0))
    if model.has_leverage:
        ratios = (found.get(f"{name}_leverage", 1.0) for name in parts)
        model.scale_leverage(*ratios)
    return found


def _near(rows: Errors) -> Errors:
    """Those whose leverage is moderate. Errors of a few atoms far beyond the training set, or of an
    element that it does not have, say nothing of the slope within it.
    """
    assert rows.aleatoric is not None
    epistemic, aleatoric = (
        np.trace(part, axis1=1, axis2=2) for part in (rows.epistemic, rows.aleatoric)
    )
    near = epistemic <= FITTED_LEVERAGE * aleatoric
    if not near.any():
        return rows
    kept = (rows.epistemic[near], rows.weights[near], rows.own[near])
    return Errors(rows.error[near], rows.aleatoric[near], *kept)


def _columns(shares: list[Errors]) -> Errors:
    return Errors(*(_joined(column) for column in zip(*shares, strict=True)))


def _joined(parts: tuple[Any, ...]) -> Any:
    return None if parts[0] is None else np.concatenate(parts)


def _rows(model: RACE, batch: Batch) -> dict[str, Errors]:
    several, constants = model.n_members > 1, model.constants
    labels = batch.forces if model.has_forces_cov or several else None
    out = model(batch, forces=labels is not None).detach()
    rows = {}
    if not (model.has_energy_var and model.paper_energy_var) and batch.energy is not None:
        rows["energy"] = _split(
            out.energy.unsqueeze(2),
            None if out.energy_var is None else out.energy_var[..., None, None],
            None if out.energy_epistemic is None else out.energy_epistemic[..., None, None],
            batch.energy.unsqueeze(1),
            constants.energy_spread_factor,
            batch.weights("energy"),
            batch.noise_var("energy"),
        )
    if labels is not None and out.forces is not None:
        with torch.no_grad():
            noise, own_part = model.own_forces_cov(out.raw)
        spread = constants.forces_spread_factor
        weights, own = batch.weights("forces"), batch.noise_var("forces")
        rows["forces"] = _split(out.forces, noise, own_part, labels, spread, weights, own)
    return rows


def _split(
    members: Tensor,
    noise: Tensor | None,
    own_part: Tensor | None,
    label: Tensor,
    spread: float,
    weights: Tensor,
    own: Tensor | None,
) -> Errors:
    """members [n, M, d], noise and what each member itself holds to be epistemic [n, M, d, d],
    label [n, d], weights [n_labelled], own [n]; rows without a label are left out.
    """
    known = torch.isfinite(label).all(1)
    epistemic = None if own_part is None else own_part[known].double().mean(1)
    moments = total_variance(members[known].double(), epistemic=epistemic, spread=spread)
    aleatoric = None if noise is None else noise[known].double().mean(1).cpu().numpy()
    error = label[known].double() - moments.mean
    own = torch.zeros_like(weights) if own is None else own[known]
    numbers = (tensor.cpu().numpy() for tensor in (moments.epistemic, weights, own))
    return Errors(error.cpu().numpy(), aleatoric, *numbers)


def width_factors(
    error: np.ndarray,
    aleatoric: np.ndarray | None,
    epistemic: np.ndarray,
    weights: np.ndarray | float = 1.0,
    own: np.ndarray | float = 0.0,
    least: float = 0.0,
) -> Factors:
    """The best a and b, ln b >= least, for errors [n, d] with the covariance a^2 aleatoric +
    b^2 epistemic + own I, the first two [n, d, d] and predicted; aleatoric is regular, or
    None for zero; own [n] is the variance of the labels' own noise. An error of weight 2, of
    `weights` [n], counts twice.

    Minimises the sum over components, in a frame where the noise is the unit matrix and
    the spread diagonal, of the CRPS of a normal distribution (Gneiting and Raftery 2007,
    eq. 21); and, for either factor, PRIOR_ERRORS times its expectation over errors that
    are drawn with a factor of 1, of the mean square spread for b. Without noise the
    components are Cartesian and the unit is the mean square spread. A factor on what is
    not there is 1.
    """
    if aleatoric is None and not epistemic.any():
        return Factors(1.0, 1.0)
    errors, noise, spread, known = _components(error, aleatoric, epistemic, own)
    counts = np.broadcast_to(weights, len(error))[:, None]
    mean_spread = float(np.sqrt(np.mean(spread)))

    def cost(logs: np.ndarray) -> tuple[float, np.ndarray]:
        squares = np.exp(2 * logs)
        std = np.sqrt(squares[0] * noise + squares[1] * spread + known)
        z = errors / std
        density = np.sqrt(2 / np.pi) * np.exp(-0.5 * z * z)  # twice that of N(0, 1)
        crps = std * (z * (2 * ndtr(z) - 1) + density - np.sqrt(1 / np.pi))
        by_square = (density - np.sqrt(1 / np.pi)) / (2 * std)  # d crps / d std^2
        value = float(np.sum(counts * crps))
        slope = 2 * squares * [np.sum(counts * by_square * part) for part in (noise, spread)]
        for k, unit in enumerate((float(noise > 0), mean_spread)):
            expected = np.sqrt(2 * (1 + squares[k]) / np.pi) - np.sqrt(squares[k] / np.pi)
            rise = np.sqrt(2 / np.pi / (1 + squares[k])) - 1 / np.sqrt(np.pi * squares[k])
            value += PRIOR_ERRORS * unit * expected
            slope[k] += PRIOR_ERRORS * unit * squares[k] * rise
        return value / len(errors), slope / len(errors)

    bounds = [(-LARGEST, LARGEST) if noise else (0, 0), (least, LARGEST) if mean_spread else (0, 0)]
    best = minimize(cost, np.zeros(2), jac=True, bounds=bounds, tol=1e-14)
    return Factors(*np.exp(best.x).tolist())


def _components(
    error: np.ndarray,
    aleatoric: np.ndarray | None,
    epistemic: np.ndarray,
    own: np.ndarray | float,
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Independent components [n, d] of the errors, the variance of their noise (1 or 0), their
    spread [n, d] and the variance of the labels' own noise [n, d], in one unit.
    """
    own = np.broadcast_to(own, len(error))[:, None]
    if aleatoric is None:
        spread = np.diagonal(epistemic, axis1=1, axis2=2)
        unit = np.mean(spread)
        # Forces that are zero by symmetry have no spread; theirs is that of rounding
        return error / np.sqrt(unit), 0.0, np.maximum(spread / unit, 1e-20), own / unit
    whiten = np.linalg.inv(np.linalg.cholesky(aleatoric))
    spread, axes = np.linalg.eigh(whiten @ epistemic @ whiten.swapaxes(1, 2))
    turn = axes.swapaxes(1, 2) @ whiten
    rotated = (turn @ error[..., None])[..., 0]
    # Isotropic before: its components are dependent now, which their CRPS do not ask for
    return rotated, 1.0, np.maximum(spread, 0), own * (turn**2).sum(2)
