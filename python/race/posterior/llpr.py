"""LLPR: last-layer prediction rigidity (Bigi, Chong, Ceriotti and Grasselli 2024, Mach.
Learn.: Sci. Technol. 5, 045018).

The energy is linear in the last layers' weights w (race.posterior.last_layer), so their
Gaussian posterior needs no further training:

    cov(w)   = alpha^2 (F^T F + zeta^2 I)^-1
    var(E)   = f^T cov(w) f
    cov(F_i) = J_i cov(w) J_i^T

The rows of F are the features of the training set's labels, times the root of their
weights, over the noise that the loss gives them. They are
sum_j f_j / (sigma0_energy sqrt(n_atoms)) for energies and, on request, J / sigma0 for the
components of forces. Noise of the labels' own is added in quadrature. (For frames of one
size this is the paper's formula, with alpha and zeta in another unit.)

The posterior is calibrated alone, without the noise that the head predicts. That noise was
fitted to the very errors that the posterior is to explain: with both in one likelihood,
neither would be identified. alpha_F and zeta, if it is not given, maximise the likelihood
of held-out force errors under the closed form above. alpha_E does the same for energies at
this zeta. The frames are those of the validation set that did not choose the epoch, where
there are enough of them (race.train.prepare). Given zeta, alpha has a closed
form: the mean Mahalanobis square is the dimension. (If labels have noise of their own, its
variance adds to the posterior's, and alpha is found numerically.) The noise is fitted
afterwards, to the rest of the errors (race.train.noise).

Samples w + alpha_F (F^T F + zeta^2 I)^-1/2 eps are the members of the new run. The eps are
centred, so that the members' mean is the run's own prediction, and scaled so that their
spread is unbiased. Weights have one scale; the factor of the new run on the members' spread
of energies is alpha_E / alpha_F. Factors that are fitted with the noise multiply it.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from race.data import Batch, Dataset
from race.errors import RaceError
from race.model.race import RACE
from race.posterior import last_layer
from race.posterior.options import LlprOptions
from race.posterior.protocol import (
    Fitted,
    Run,
    normal_draws,
    replicated,
    require_one_member,
)
from race.predict.moments import mahalanobis
from race.progress import progress

logger = logging.getLogger(__name__)

# zeta^2 that are tried, in units of the largest eigenvalue of F^T F
ZETAS = np.logspace(-12, 1, 27)
CALIBRATION_BATCH = 8  # frames: the radial weights of 16 members are made anew for every pass
WIDEST = 12.0  # of |ln alpha| about errors that are the posterior's alone
UNSEEN = 1e-9  # rows of F smaller than this, relative to the largest: zero by symmetry


@dataclass(frozen=True)
class Curvature:
    """F^T F = U diag(s) U^T; s [D], U [D, D], float64."""

    s: np.ndarray
    U: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> "Curvature":
        """The eigenvalues and eigenvectors of a symmetric matrix."""
        s, vectors = np.linalg.eigh(matrix)
        return cls(np.maximum(s, 0.0), vectors)

    def root(self, zeta: float) -> np.ndarray:
        """R [D, D] with R R^T = (F^T F + zeta^2 I)^-1."""
        return self.U / np.sqrt(self.s + zeta**2)


@dataclass(frozen=True)
class Target:
    """Errors [n, d] of the run's own predictions, rows [n, d, D] = J of their derivatives with
    respect to w, weights [n] and the variance [n] of the labels' own noise (None: zero):
    energies (d = 1) or forces (d = 3).
    """

    error: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    noise: np.ndarray | None = None

    def covariance(self, root: np.ndarray) -> np.ndarray:
        """J C J^T in closed form, [n, d, d], C = root root^T."""
        white = self.rows @ root
        return white @ np.swapaxes(white, 1, 2)

    def fit(self, root: np.ndarray, alpha: float | None = None) -> tuple[float, float]:
        """The best alpha (unless it is given), and the mean negative log likelihood there
        without its constant.
        """
        cov = self.covariance(root)
        trace = np.trace(cov, axis1=1, axis2=2)
        seen = trace > UNSEEN**2 * trace.max()  # the force on an atom may be zero by symmetry,
        cov, trace, d = cov[seen], trace[seen], cov.shape[-1]  # wholly or in one direction
        cov = cov + 1e-9 * trace[:, None, None] * np.eye(d)
        q, logdet = mahalanobis(torch.from_numpy(self.error[seen]), torch.from_numpy(cov))
        mean = functools.partial(np.average, weights=self.weights[seen])
        if self.noise is not None and self.noise[seen].any():
            return self._fit_beside_noise(cov, self.noise[seen], seen, alpha)
        square = float(mean(q.numpy())) / d if alpha is None else alpha**2
        nll = 0.5 * (mean(q.numpy()) / square + d * np.log(square) + mean(logdet.numpy()))
        return float(np.sqrt(square)), float(nll)

    def _fit_beside_noise(
        self, cov: np.ndarray, noise: np.ndarray, seen: np.ndarray, alpha: float | None
    ) -> tuple[float, float]:
        """`fit` for errors of covariance alpha^2 cov + noise, both those of the rows `seen`."""
        error, eye = torch.from_numpy(self.error[seen]), np.eye(cov.shape[-1])
        own = noise[:, None, None] * eye

        def nll(log: float) -> float:
            total = torch.from_numpy(np.exp(2 * log) * cov + own)
            q, logdet = mahalanobis(error, total)
            return 0.5 * float(np.average((q + logdet).numpy(), weights=self.weights[seen]))

        if alpha is not None:
            return alpha, nll(np.log(alpha))
        scale = 0.5 * np.log(np.mean(self.error[seen] ** 2) / np.mean(np.trace(cov, 0, 1, 2)))
        found = minimize_scalar(nll, bounds=(scale - WIDEST, scale + WIDEST), method="bounded")
        return float(np.exp(found.x)), float(found.fun)


@dataclass(frozen=True)
class Calibration:
    """alpha_energy, alpha_forces: factors on the standard deviation; nll: of the errors that
    chose zeta.
    """

    alpha_energy: float
    alpha_forces: float
    zeta: float
    nll: float


def fit(runs: Sequence[Run], options: LlprOptions, folder: Path) -> Fitted:
    """Curvature from the training set, alpha and zeta from held-out frames, samples as members.

    Raises:
        RaceError: an ensemble; frames without errors to calibrate on.
    """
    (run,) = runs
    require_one_member(run, "take one: race fit RUN --posterior ensemble --take 0 --out NEW")
    prepared = run.prepare()
    curvature = Curvature.of(
        normal_matrix(run.model, prepared.train, run.config.train.batch_size, options.forces)
    )
    energies, forces = calibration_targets(run, prepared.calibration, options)
    found = calibrate(curvature, energies, forces, options.alpha, options.zeta)
    eps = normal_draws(
        [0] * options.members, (len(curvature.s),), torch.Generator().manual_seed(options.seed)
    )
    root = found.alpha_forces * curvature.root(found.zeta)
    model = sampled(run.model, root, eps)
    model.scale_spread(found.alpha_energy / found.alpha_forces, 1.0)
    target = forces or energies
    drawn = target.rows @ root @ eps.numpy().T  # [n, d, M]
    about = {
        "alpha": found.alpha_forces,
        "alpha_energy": found.alpha_energy,
        "zeta": found.zeta,
        "n_features": len(curvature.s),
        "nll": found.nll,
        "std": rms(np.sqrt(np.trace(target.covariance(root), axis1=1, axis2=2))),
        "std_of_samples": rms(np.sqrt(drawn.var(2).sum(1))),
    }
    logger.info(
        f"alpha {found.alpha_forces:.3g} (energies {found.alpha_energy:.3g}), zeta "
        f"{found.zeta:.3g}, {len(curvature.s)} features; {options.members} samples spread by "
        f"{about['std_of_samples'] / about['std']:.2f} of the closed form"
    )
    return Fitted(model, about, prepared.validation)


def rms(values: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(values**2)))


def normal_matrix(model: RACE, dataset: Dataset, batch_size: int, forces: bool) -> np.ndarray:
    """F^T F [D, D] over a dataset."""
    n_features, device = last_layer.weights(model).shape[1], model.embedding.device
    total = torch.zeros(n_features, n_features, dtype=torch.float64, device=device)
    for batch in progress(
        dataset.batches(batch_size), "features of the training set", dataset.n_batches(batch_size)
    ):
        batch = batch.to(device)
        if (known := batch.labelled("energy")).any():
            rows = last_layer.frame_features(model, batch)[:, 0]
            rows = (rows / energy_noise(model, batch).unsqueeze(1))[known]
            total += (batch.weights("energy") * rows.T) @ rows
        if forces and (known := batch.labelled("forces")).any():
            noise = force_noise(model, batch)[known].view(-1, 1, 1)
            rows = (last_layer.force_features(model, batch)[:, 0][known] / noise).flatten(0, 1)
            total += (batch.weights("forces").repeat_interleave(3) * rows.T) @ rows
    return total.cpu().numpy()


def energy_noise(model: RACE, batch: Batch) -> Tensor:
    """The standard deviation that the loss `mse` gives the energy of each frame, [n_frames] eV."""
    size = torch.ones_like(batch.volume) if model.mean_pooling else batch.n_atoms_per_frame.double()
    return (model.constants.sigma0_energy**2 * size + _own(batch, "energy")).sqrt()


def force_noise(model: RACE, batch: Batch) -> Tensor:
    """Likewise of the force on each atom, [n_atoms] eV/Angstrom."""
    return (model.constants.sigma0**2 + _own(batch, "forces")).sqrt()


def _own(batch: Batch, label: str) -> Tensor:
    """The variance of the labels' own noise [n_frames], of "forces" [n_atoms]."""
    var = batch.noise_var(label)
    if var is None:
        return torch.zeros_like(batch.atom_weight if label == "forces" else batch.frame_weight)
    return var


def calibration_targets(
    run: Run, dataset: Dataset, options: LlprOptions
) -> tuple[Target, Target | None]:
    """Energies of all frames, and forces of `calibration_frames` of them (None: the run was
    trained on energies alone).

    Raises:
        RaceError: the run reproduces every label exactly.
    """
    chosen = np.random.RandomState(options.seed).permutation(len(dataset))
    of_forces = np.sort(chosen[: options.calibration_frames])
    parts: list[list[tuple[np.ndarray, ...]]] = [[], []]
    device = run.model.embedding.device
    every = np.arange(len(dataset))
    batches = [every[k : k + CALIBRATION_BATCH] for k in range(0, len(every), CALIBRATION_BATCH)]
    for indices in progress(batches, "energy features of the calibration frames", len(batches)):
        batch = dataset.batch(indices).to(device)
        if batch.energy is None:
            continue
        error = run.model(batch, forces=False).energy.detach().double() - batch.energy[:, None]
        rows = last_layer.frame_features(run.model, batch)
        known = batch.labelled("energy")
        own = _own(batch, "energy")[known]
        of_energies = (error[known], rows[known], batch.weights("energy"), own)
        parts[0].append(tuple(tensor.cpu().numpy() for tensor in of_energies))
    if run.config.train.forces_weight > 0:
        batches = [
            of_forces[k : k + CALIBRATION_BATCH]
            for k in range(0, len(of_forces), CALIBRATION_BATCH)
        ]
        for indices in progress(batches, "force features of the calibration frames", len(batches)):
            batch = dataset.batch(indices).to(device)
            forces = run.model(batch).forces
            assert forces is not None
            if batch.forces is None:
                continue
            known = batch.labelled("forces")
            error = (forces[:, 0].detach() - batch.forces)[known].double()
            features = last_layer.force_features(run.model, batch)[:, 0][known]
            own = _own(batch, "forces")[known]
            of_forces_here = (error, features, batch.weights("forces"), own)
            parts[1].append(tuple(tensor.cpu().numpy() for tensor in of_forces_here))
    targets = [
        Target(*(np.concatenate(arrays) for arrays in zip(*part, strict=True))) if part else None
        for part in parts
    ]
    energies, forces_target = targets
    assert energies is not None
    if not any(target.error.any() for target in targets if target is not None):
        raise RaceError(
            "no errors to calibrate on",
            expected="labelled validation frames that the run does not reproduce exactly",
        )
    return energies, forces_target


def calibrate(
    curvature: Curvature,
    energies: Target,
    forces: Target | None = None,
    alpha: float | None = None,
    zeta: float | None = None,
) -> Calibration:
    """alpha and zeta, those that are not given by the maximum of the likelihood: of forces,
    where there are any.
    """
    zetas = [zeta] if zeta is not None else list(np.sqrt(ZETAS * curvature.s.max()))
    target = forces or energies
    scored = [(*target.fit(curvature.root(z), alpha)[::-1], z) for z in zetas]
    nll, best, chosen = min(scored)
    if len(zetas) > 1 and chosen in (zetas[0], zetas[-1]):
        logger.info(
            f"zeta {chosen:.3g} is at the edge of what was tried: the errors do not show it"
        )
    return Calibration(energies.fit(curvature.root(chosen), alpha)[0], best, chosen, nll)


def sampled(model: RACE, root: np.ndarray, eps: Tensor) -> RACE:
    """The member of `model` with its energy weights moved by root eps_m, m = 1 .. M; eps [M, D]."""
    out = replicated(model, len(eps))
    last_layer.set_weights(
        out,
        (last_layer.weights(out).detach().double().cpu() + eps @ torch.from_numpy(root.T)).to(
            out.embedding.dtype
        ),
    )
    return out
