"""What is judged: frames with predictions and references, and the errors of one quantity
in them.
"""

from dataclasses import dataclass

import numpy as np

from race.evaluate.bootstrap import ClusteredMean, ClusteredRows
from race.predict.prediction import Labels, Prediction, marginal_std


@dataclass(frozen=True)
class Residual:
    """Errors of one quantity in independent rows, each belonging to a frame.

    error [n] or [n, d] = reference - mean; cov [n] variances or [n, d, d]; frame [n];
    size [n] what a reported error is divided by (atoms per frame for energies, else 1);
    kept: which rows of the labels these are.
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
    """A named set of frames with predictions and references; temperature [n_frames] in K,
    NaN where a frame tells none; extensive: the target adds up over atoms, as an energy does.
    """

    name: str
    prediction: Prediction
    labels: Labels
    ood: bool = False
    temperature: np.ndarray | None = None
    extensive: bool = True

    @property
    def size(self) -> np.ndarray:
        """What errors of the frames' targets are divided by, [n_frames]: atoms, or 1."""
        n_atoms = self.labels.n_atoms.astype(float)
        return n_atoms if self.extensive else np.ones_like(n_atoms)

    @property
    def n_frames(self) -> int:
        return len(self.labels.n_atoms)

    def residual(self, quantity: str) -> Residual | None:
        """Of "energy", "forces" or "stress"; None where there are no references. Unlabelled
        rows are left out.
        """
        reference, estimate = getattr(self.labels, quantity), getattr(self.prediction, quantity)
        if reference is None or estimate is None:
            return None
        frame = self.labels.frame if quantity == "forces" else np.arange(self.n_frames)
        size = self.size if quantity == "energy" else np.ones(len(frame))
        error = reference - estimate.mean
        rows = np.isfinite(error.reshape(len(error), -1)).all(axis=1)
        return (
            Residual(error[rows], estimate.total[rows], frame[rows], size[rows], rows)
            if rows.any()
            else None
        )


def rank_rows(residual: Residual) -> tuple[np.ndarray, np.ndarray]:
    """Predicted std (of a component, RMS over them) and norm of the error, each [n]."""
    n = len(residual.error)
    score = np.sqrt(np.mean(residual.std.reshape(n, -1) ** 2, axis=1)) / residual.size
    return score, np.linalg.norm(residual.error.reshape(n, -1), axis=1) / residual.size
