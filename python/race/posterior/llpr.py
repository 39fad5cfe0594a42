"""LLPR: last-layer prediction rigidity (Bigi, Chong, Ceriotti and Grasselli 2024, Mach.
Learn.: Sci. Technol. 5, 045018).

The energy is linear in the last layers' weights w (race.posterior.last_layer), so their
Gaussian posterior needs no further training:

    cov(w) = alpha^2 (F^T F + zeta^2 I)^-1,      var(E) = f^T cov(w) f,      cov(F_i) =
                                                 J_i cov(w) J_i^T

The rows of F are the training frames' features over the noise that the loss gives them:
sum_j f_j / (sigma0_energy sqrt(n_atoms)) and, on request, those of the force components,
J / sigma0. (For frames of one size this is the paper's formula, with alpha and zeta in
another unit.)

alpha, and zeta where it is left open, minimise the Gaussian negative log likelihood of
the validation set, of forces where there are any:
the variance is the one above plus the head's aleatoric one. Samples w + alpha (F^T F +
zeta^2 I)^-1/2 eps are the members of the new run; the eps are centred, so that the
members' mean is the run's own prediction, and scaled so that their spread is unbiased.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import minimize_scalar
from torch import Tensor

from race.data import Batch, Dataset
from race.errors import RaceError
from race.model.race import RACE
from race.posterior import last_layer
from race.posterior.protocol import (
    Fitted,
    Run,
    SampleOptions,
    normal_draws,
    progress,
    require_one_member,
    tiled,
)
from race.predict.predictor import predict_batch

ZETAS = np.logspace(-6, 1, 15)  # zeta^2 that are tried, in units of the largest eigenvalue of F^T F
CALIBRATION_BATCH = 8  # frames: the radial weights of 16 members are made anew for every pass
ALPHAS = np.log([1e-6, 1e6])  # bounds of ln alpha


class LlprOptions(SampleOptions):
    """The curvature and its calibration."""

    members: int = Field(
        default=16, ge=2, description="samples of the last layers: members of the new run"
    )
    forces: bool = Field(
        default=False,
        description="force components are rows of F too: D / 16 further passes of 16 members over "
        "the data",
    )
    zeta: float | None = Field(
        default=None, gt=0, description="regulariser; none: chosen on the validation set"
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        description="factor on the standard deviation; none: chosen on the validation set",
    )
    calibration_frames: int = Field(
        default=32, ge=2, description="validation frames that choose alpha and zeta, at most"
    )


@dataclass(frozen=True)
class Curvature:
    """F^T F = U diag(s) U^T; s [D], U [D, D], float64."""

    s: np.ndarray
    U: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> "Curvature":
        s, vectors = np.linalg.eigh(matrix)
        return cls(np.maximum(s, 0.0), vectors)

    def root(self, zeta: float) -> np.ndarray:
        """R [D, D] with R R^T = (F^T F + zeta^2 I)^-1."""
        return self.U / np.sqrt(self.s + zeta**2)


@dataclass(frozen=True)
class Target:
    """What the calibration predicts: error [n, d] = J w - reference, noise [n, d, d] the
    head's own covariance, rows [n, d, D] = J.
    """

    rows: np.ndarray
    error: np.ndarray
    noise: np.ndarray

    def nll(self, root: np.ndarray, ln_alpha: float) -> float:
        """Mean Gaussian negative log likelihood, without the constant."""
        white = self.rows @ root
        return _nll(self.error, self.noise, white @ np.swapaxes(white, 1, 2), ln_alpha)

    def best_alpha(self, root: np.ndarray) -> tuple[float, float]:
        """alpha, and the likelihood there."""
        white = self.rows @ root
        shape = white @ np.swapaxes(white, 1, 2)
        found = minimize_scalar(
            lambda ln_alpha: _nll(self.error, self.noise, shape, ln_alpha),
            bounds=ALPHAS,
            method="bounded",
        )
        return float(np.exp(found.x)), float(found.fun)


def _nll(error: np.ndarray, noise: np.ndarray, shape: np.ndarray, ln_alpha: float) -> float:
    cov = noise + np.exp(2 * ln_alpha) * shape
    # An atom whose force is zero by symmetry
    cov = cov + 1e-12 * np.trace(cov, axis1=1, axis2=2)[:, None, None] * np.eye(cov.shape[-1])
    factor = np.linalg.cholesky(cov)
    white = np.linalg.solve(factor, error[..., None])[..., 0]
    return float(
        np.mean(0.5 * (white**2).sum(1) + np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1))
    )


def fit(runs: Sequence[Run], options: LlprOptions, folder: Path) -> Fitted:
    """Curvature from the training set, alpha and zeta from the validation set, samples as members.

    Raises:
        RaceError: an ensemble; validation frames without errors to calibrate on.
    """
    (run,) = runs
    require_one_member(run, "take one: race fit RUN --posterior ensemble --take 0 --out NEW")
    prepared = run.prepare()
    curvature = Curvature.of(
        normal_matrix(run.model, prepared.train, run.config.train.batch_size, options.forces)
    )
    chosen = np.random.RandomState(options.seed).permutation(len(prepared.validation))[
        : options.calibration_frames
    ]
    batches = [
        np.sort(chosen)[k : k + CALIBRATION_BATCH] for k in range(0, len(chosen), CALIBRATION_BATCH)
    ]
    target = calibration_target(
        run.model, prepared.validation, batches, run.config.train.forces_weight > 0
    )
    alpha, zeta = calibrate(curvature, target, options.alpha, options.zeta)
    eps = normal_draws(
        [0] * options.members, (len(curvature.s),), torch.Generator().manual_seed(options.seed)
    )
    model = sampled(run.model, alpha * curvature.root(zeta), eps)
    about = {
        "alpha": alpha,
        "zeta": zeta,
        "n_features": len(curvature.s),
        "nll": target.nll(curvature.root(zeta), float(np.log(alpha))),
    }
    print(f"alpha {alpha:.3g}, zeta {zeta:.3g}, {len(curvature.s)} features")
    return Fitted(model, about, prepared.validation)


def normal_matrix(model: RACE, dataset: Dataset, batch_size: int, forces: bool) -> np.ndarray:
    """F^T F [D, D] over a dataset."""
    n_features, device = last_layer.weights(model).shape[1], model.embedding.device
    total = torch.zeros(n_features, n_features, dtype=torch.float64, device=device)
    for batch in progress(
        dataset.batches(batch_size), "features of the training set", dataset.n_batches(batch_size)
    ):
        batch = batch.to(device)
        rows = last_layer.frame_features(model, batch)[:, 0] / energy_noise(model, batch).unsqueeze(
            1
        )
        total += rows.T @ rows
        if forces:
            rows = (
                last_layer.force_features(model, batch)[:, 0].flatten(0, 1) / model.constants.sigma0
            )
            total += rows.T @ rows
    return total.cpu().numpy()


def energy_noise(model: RACE, batch: Batch) -> Tensor:
    """The standard deviation that the loss `mse` gives the energy of each frame, [n_frames] eV."""
    size = torch.ones_like(batch.volume) if model.mean_pooling else batch.n_atoms_per_frame.double()
    return model.constants.sigma0_energy * size.sqrt()


def calibration_target(
    model: RACE, dataset: Dataset, batches: Sequence[np.ndarray], forces: bool
) -> Target:
    """Forces of the frames in `batches` where they are labelled, else energies."""
    parts = []
    for indices in progress(batches, "features of the calibration frames", len(batches)):
        batch = dataset.batch(indices).to(model.embedding.device)
        prediction = predict_batch(model, batch, forces)
        if forces:
            assert prediction.forces is not None and batch.forces is not None
            reference = batch.forces.double().cpu().numpy()
            rows = last_layer.force_features(model, batch)[:, 0].cpu().numpy()
            part = (
                rows,
                prediction.forces.mean - reference,
                prediction.forces.aleatoric + prediction.forces.epistemic,
            )
            labelled = np.isfinite(reference).all(1)
            parts.append(tuple(array[labelled] for array in part))
        else:
            assert batch.energy is not None
            error = (prediction.energy.mean - batch.energy.cpu().numpy())[:, None]
            parts.append(
                (
                    last_layer.frame_features(model, batch).cpu().numpy(),
                    error,
                    prediction.energy.total[:, None, None],
                )
            )
    target = Target(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    if not target.error.any():
        raise RaceError(
            "no errors to calibrate on",
            expected="labelled validation frames that the run does not reproduce exactly",
        )
    return target


def calibrate(
    curvature: Curvature, target: Target, alpha: float | None, zeta: float | None
) -> tuple[float, float]:
    """alpha and zeta, those that are not given by the maximum of the likelihood."""
    zetas = [zeta] if zeta is not None else list(np.sqrt(ZETAS * curvature.s.max()))
    scored = []
    for candidate in zetas:
        root = curvature.root(candidate)
        best, nll = (
            target.best_alpha(root)
            if alpha is None
            else (alpha, target.nll(root, float(np.log(alpha))))
        )
        scored.append((nll, best, candidate))
    _, best, candidate = min(scored)
    return best, candidate


def sampled(model: RACE, root: np.ndarray, eps: Tensor) -> RACE:
    """The member of `model` with its energy weights moved by root eps_m, m = 1 .. M; eps [M, D]."""
    out = tiled(model, len(eps))
    last_layer.set_weights(
        out,
        (last_layer.weights(out).detach().double().cpu() + eps @ torch.from_numpy(root.T)).to(
            out.embedding.dtype
        ),
    )
    return out
