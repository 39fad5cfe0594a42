"""POPS: pointwise optimal parameter sets of the last layer (Swinburne and Perez 2025, Mach.
Learn.: Sci. Technol. 6, 015008).

A model of limited form errs where no value of its weights fits all of the data at once.
Posteriors of the weights do not show that: with N frames their spread falls as N^-1/2,
and the error stays. POPS asks of each training point i which weights are the best of those
that fit this point exactly,

    w_i = w + C f_i e_i / (f_i^T C f_i),      C = (F^T F + zeta^2 I)^-1

(e_i: reference minus prediction; rows f_i of F as in race.posterior.llpr, whose energy is
the same linear function of w). The spread of the w_i does not fall with N: it is as wide as
the model is wrong. Samples are drawn from

    covariance   N(w, <(w_i - w)(w_i - w)^T>)
    hypercube    the smallest box around the w_i - w in their principal axes, uniformly

and centred, so that the members' mean is the run's own prediction. A point counts by the
weight of its label, in F as in <>. If labels have noise of their own, it also counts by the
precision: no weights should be asked to fit noise. The samples are the members of the new
run. Only the noise is fitted to the validation set, afterwards.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from race.data import Dataset
from race.model.race import RACE
from race.posterior import last_layer
from race.posterior.llpr import Curvature, energy_noise, force_noise, normal_matrix, sampled
from race.posterior.options import PopsOptions
from race.posterior.protocol import (
    Fitted,
    Run,
    normal_draws,
    require_one_member,
)
from race.progress import progress

logger = logging.getLogger(__name__)

ZETA_SQUARED = 1e-8  # of the largest eigenvalue of F^T F, where zeta is left open
CLIPPED = 0.5  # percent of the corrections at either end of an axis that the box leaves out
# Leverage f_i^T C f_i below this, relative to the largest: what such a point says would ask
# for any weights at all
UNSEEN = 1e-9


def fit(runs: Sequence[Run], options: PopsOptions, folder: Path) -> Fitted:
    """Corrections of the training set's points, and samples as members.

    Raises:
        RaceError: an ensemble.
    """
    (run,) = runs
    require_one_member(run, "take one: race fit RUN --posterior ensemble --take 0 --out NEW")
    prepared, with_forces = run.prepare(), options.forces and run.config.train.forces_weight > 0
    curvature = Curvature.of(
        normal_matrix(run.model, prepared.train, run.config.train.batch_size, with_forces)
    )
    zeta = options.zeta or float(np.sqrt(ZETA_SQUARED * curvature.s.max()))
    changes, weights = corrections(
        run.model, prepared.train, run.config.train.batch_size, with_forces, curvature.root(zeta)
    )
    root = axes(changes, weights, options.shape)
    generator = torch.Generator().manual_seed(options.seed)
    z = normal_draws([0] * options.members, (root.shape[1],), generator)
    if options.shape == "hypercube":
        # Samples of the same ranks, uniform in a box of unit variance; centred again
        z = 3**0.5 * torch.erf(z / 2**0.5)
        z = z - z.mean(0)
    model = sampled(run.model, root, z)
    about = {
        "zeta": zeta,
        "n_features": len(curvature.s),
        "n_points": len(changes),
        "change": float(np.sqrt(np.mean(changes**2))),
    }
    logger.info(f"{len(changes)} points, {len(curvature.s)} features, zeta {zeta:.3g}")
    return Fitted(model, about, prepared.validation)


def pointwise(
    root: np.ndarray, rows: np.ndarray, errors: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """w_i - w of every point [n, D]: the smallest change, in the metric of F^T F, that makes
    row i fit its reference; and the points' weights.

    Args:
        root: [D, D], C = root root^T.
        rows: [n, D], f_i.
        errors: [n], reference minus prediction, in the unit of the rows.
        weights: [n].
    """
    white = rows @ root
    leverage = (white**2).sum(1)
    seen = leverage > UNSEEN * leverage.max(initial=0.0)
    return (errors[seen] / leverage[seen])[:, None] * (white[seen] @ root.T), weights[seen]


def corrections(
    model: RACE, dataset: Dataset, batch_size: int, forces: bool, root: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """w_i - w [n, D] of all energies and, on request, all force components that have a label,
    and their weights [n].
    """
    parts = []
    for batch in progress(
        dataset.batches(batch_size), "points of the training set", dataset.n_batches(batch_size)
    ):
        batch = batch.to(model.embedding.device)
        out = model(batch, forces=forces).detach()
        if batch.energy is not None:
            known, noise = batch.labelled("energy"), energy_noise(model, batch)
            rows = last_layer.frame_features(model, batch)[:, 0] / noise.unsqueeze(1)
            error = (batch.energy - out.energy[:, 0].double()) / noise
            size = torch.ones_like(noise) if model.mean_pooling else batch.n_atoms_per_frame
            precision = model.constants.sigma0_energy**2 * size / noise**2
            point = (rows[known], error[known], batch.weights("energy") * precision[known])
            parts.append(pointwise(root, *(array.cpu().numpy() for array in point)))
        if forces and batch.forces is not None:
            assert out.forces is not None
            known = batch.labelled("forces")
            noise = force_noise(model, batch)[known].repeat_interleave(3)
            rows = last_layer.force_features(model, batch)[:, 0][known].flatten(0, 1)
            error = (batch.forces - out.forces[:, 0])[known].double().flatten() / noise
            precision = model.constants.sigma0**2 / noise**2
            weights = batch.weights("forces").repeat_interleave(3) * precision
            point = (rows / noise.unsqueeze(1), error, weights)
            parts.append(pointwise(root, *(array.cpu().numpy() for array in point)))
    changes, weights = zip(*parts, strict=True)
    return np.concatenate(changes), np.concatenate(weights)


def axes(changes: np.ndarray, weights: np.ndarray, shape: str) -> np.ndarray:
    """R [D, D] with R R^T the second moment of the changes [n, D] about w by their weights [n];
    of a hypercube that of a uniform distribution in the box.
    """
    square, vectors = np.linalg.eigh((weights * changes.T) @ changes / weights.sum())
    if shape == "covariance":
        return vectors * np.sqrt(np.maximum(square, 0.0))
    low, high = np.percentile(
        changes @ vectors,
        [CLIPPED, 100 - CLIPPED],
        axis=0,
        weights=weights,
        method="inverted_cdf",  # the one for which a weight of 2 is the point twice
    )
    return vectors * ((high - low) / 12**0.5)
