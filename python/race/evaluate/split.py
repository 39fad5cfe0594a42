"""A split: frames with predictions and references, and the errors of one quantity
in them.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtri, stdtr

from race.evaluate.bootstrap import ClusteredMean, ClusteredRows
from race.predict.prediction import Estimate, Labels, Prediction, marginal_std

# Of the six columns of a stress
PRESSURE = np.array([-1.0, -1.0, -1.0, 0.0, 0.0, 0.0]) / 3


@dataclass(frozen=True)
class Residual:
    """Errors of one quantity in independent rows, each belonging to a frame.

    error [n] or [n, d] = reference - mean; cov [n] variances or [n, d, d]; frame [n];
    size [n] what a reported error is divided by (atoms per frame for energies, else 1);
    kept: which rows of the labels these are; dof: degrees of freedom of each error, in its
    shape, None for normal errors.
    """

    error: np.ndarray
    cov: np.ndarray
    frame: np.ndarray
    size: np.ndarray
    kept: np.ndarray
    dof: np.ndarray | None = None

    @property
    def std(self) -> np.ndarray:
        """Standard deviations, the roots of the diagonal of `cov`."""
        return marginal_std(self.cov)

    @property
    def z(self) -> np.ndarray:
        """Standardised errors, in the shape of error; not finite where nothing is predicted.
        With degrees of freedom, the normal deviates of the same probability under Student's t.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            z = self.error / self.std
        if self.dof is None:
            return z
        return -np.sign(z) * ndtri(stdtr(self.dof, -np.abs(z)))

    @property
    def probabilistic(self) -> bool:
        """Whether every error comes with a positive variance."""
        return bool((self.std > 0).all())

    @property
    def cov_matrices(self) -> np.ndarray:
        """[n, d, d]; d = 1 for energies."""
        return self.cov.reshape(len(self.cov), *(self.cov.shape[1:] or (1, 1)))

    def per_frame(self, rows: np.ndarray) -> ClusteredMean:
        """Means over rows [n_values or n, k] laid out as error, to be bootstrapped by frame."""
        return ClusteredMean(
            rows, np.repeat(self.frame, rows.shape[0] // len(self.frame)), int(self.frame[-1]) + 1
        )

    def frames(self) -> ClusteredRows:
        """The rows of each frame, to be bootstrapped by frame."""
        return ClusteredRows(self.frame, int(self.frame[-1]) + 1)


@dataclass(frozen=True)
class Split:
    """A named set of frames with predictions and references.

    Attributes:
        temperature: [n_frames] in K, NaN for frames without one.
        extensive: the target adds up over atoms, as an energy does.
        n_members: of an ensemble, whose spread estimates a variance by so many draws: errors
            then have Student's distribution. None: the variance is known.
        trivial: scores [n_frames] by name that tell frames apart without a model;
            trivial_atoms: likewise of atoms, [n_atoms].
    """

    name: str
    prediction: Prediction
    labels: Labels
    ood: bool = False
    temperature: np.ndarray | None = None
    extensive: bool = True
    n_members: int | None = None
    trivial: dict[str, np.ndarray] = field(default_factory=dict)
    trivial_atoms: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def size(self) -> np.ndarray:
        """Divisors of the errors of the frames' targets, [n_frames]: atoms, or 1."""
        n_atoms = self.labels.n_atoms.astype(float)
        return n_atoms if self.extensive else np.ones_like(n_atoms)

    @property
    def n_frames(self) -> int:
        """Number of structures."""
        return len(self.labels.n_atoms)

    def residual(self, quantity: str) -> Residual | None:
        """Residuals of "energy", "forces", "stress" or "pressure"; None where there are no
        references. Unlabelled rows are left out.
        """
        source = "stress" if quantity == "pressure" else quantity
        reference, estimate = getattr(self.labels, source), getattr(self.prediction, source)
        if reference is None or estimate is None:
            return None
        if quantity == "pressure":
            reference, estimate = reference @ PRESSURE, pressure(estimate)
        frame = self.labels.frame if quantity == "forces" else np.arange(self.n_frames)
        size = self.size if quantity == "energy" else np.ones(len(frame))
        error = reference - estimate.mean
        rows = np.isfinite(error.reshape(len(error), -1)).all(axis=1)
        if not rows.any():
            return None
        dof = None
        if self.n_members is not None:
            dof = degrees_of_freedom(estimate.total[rows], estimate.epistemic[rows], self.n_members)
        return Residual(error[rows], estimate.total[rows], frame[rows], size[rows], rows, dof)


def pressure(stress: Estimate) -> Estimate:
    """Of the pressure, [n_frames], from that of the six columns."""
    parts = (
        np.einsum("nab,a,b->n", c, *[PRESSURE] * 2) for c in (stress.aleatoric, stress.epistemic)
    )
    return Estimate(stress.mean @ PRESSURE, *parts)


def degrees_of_freedom(total: np.ndarray, epistemic: np.ndarray, n_members: int) -> np.ndarray:
    """Degrees of freedom of every component, [n] or [n, d]. The members' spread alone has
    M - 1; a known noise makes them (M - 1) (total / epistemic)^2 (Satterthwaite 1946).
    """
    with np.errstate(divide="ignore"):
        ratio = marginal_std(total) / marginal_std(epistemic)
    return np.minimum((n_members - 1) * ratio**4, 1e6)


def rank_rows(residual: Residual) -> tuple[np.ndarray, np.ndarray]:
    """Predicted std (of a component, RMS over them) and norm of the error, each [n]."""
    n = len(residual.error)
    score = np.sqrt(np.mean(residual.std.reshape(n, -1) ** 2, axis=1)) / residual.size
    return score, np.linalg.norm(residual.error.reshape(n, -1), axis=1) / residual.size
