"""Synthetic predictions of known calibration."""

from types import SimpleNamespace

import numpy as np
import pytest

from race.predict.prediction import Estimate, Labels, Prediction


def random_covariances(rng: np.random.Generator, n: int, scale: float = 0.1) -> np.ndarray:
    """[n, 3, 3] positive definite, sigmas spread over a factor of about ten, in random
    directions.
    """
    root = rng.standard_normal((n, 3, 3)) * 0.4 + np.eye(3)
    return (root @ np.swapaxes(root, 1, 2) + 0.05 * np.eye(3)) * (
        scale * np.exp(0.5 * rng.standard_normal(n))
    )[:, None, None] ** 2


@pytest.fixture
def synthetic():
    """A maker of predictions and labels: references are drawn from the prediction, whose
    covariances are then divided by planted^2.
    """

    def make(
        n_frames: int = 100,
        n_atoms: int = 40,
        planted: float = 1.0,
        seed: int = 0,
        epistemic: float = 0.3,
    ) -> SimpleNamespace:
        rng = np.random.default_rng(seed)
        n = n_frames * n_atoms
        cov = random_covariances(rng, n)
        energy_var = n_atoms * 0.01**2 * np.exp(rng.standard_normal(n_frames))
        mean_f, mean_e = rng.standard_normal((n, 3)), rng.standard_normal(n_frames)
        noise = np.einsum("nab,nb->na", np.linalg.cholesky(cov), rng.standard_normal((n, 3)))
        frame = np.repeat(np.arange(n_frames), n_atoms)
        labels = Labels(
            energy=mean_e + np.sqrt(energy_var) * rng.standard_normal(n_frames),
            forces=mean_f + noise,
            stress=None,
            frame=frame,
            n_atoms=np.full(n_frames, n_atoms),
            symbols=np.where(np.arange(n) % 3 == 0, "B", "O"),
        )

        def estimate(mean: np.ndarray, total: np.ndarray) -> Estimate:
            return Estimate(
                mean, (1 - epistemic) * total / planted**2, epistemic * total / planted**2
            )

        return SimpleNamespace(
            prediction=Prediction(estimate(mean_e, energy_var), estimate(mean_f, cov)),
            labels=labels,
        )

    return make
