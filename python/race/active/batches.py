"""Batches that are chosen frame by frame, each in the light of those before: what a picker
does for `race.active.strategies`.

A picker says which open frame of the pool is best, and is told which was taken.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from race.active.distances import Space
from race.active.pool import Candidate
from race.posterior import last_layer
from race.predict.predictor import ModelPredictor, Progress

# zeta^2 of the features' posterior, in units of the largest eigenvalue of their second moments
ZETA_SQUARED = 1e-8


class Picker(Protocol):
    """`best` of the frames that are not closed [n] (bool), the first of equals, with its score
    (None: there is none yet); `add` what was chosen.
    """

    def best(self, closed: np.ndarray) -> tuple[int, float | None]:
        """The structure to take next among those that are not `closed`, and its score."""

    def add(self, index: int) -> None:
        """Counts a structure as taken."""


class Farthest:
    """The frame farthest from all that are chosen or known (Gonzalez 1985); at random where
    nothing is. The pool comes first in the space, then what is known.
    """

    def __init__(self, space: Space, n_pool: int, seed: int):
        self.space, self.n_pool, self.seed = space, n_pool, seed
        self.nearest = np.full(len(space.group), np.inf)
        for k in range(n_pool, len(space.group)):
            self.add(k)

    def best(self, closed: np.ndarray) -> tuple[int, float | None]:
        """The structure to take next among those that are not `closed`, and its score."""
        nearest = self.nearest[: self.n_pool]
        if np.isinf(self.nearest).all():
            order = np.random.RandomState(self.seed).permutation(np.flatnonzero(~closed))
            return int(order[0]), None
        index = int(np.argmax(np.where(closed, -1.0, nearest)))
        return index, float(nearest[index]) if np.isfinite(nearest[index]) else None

    def add(self, index: int) -> None:
        """Counts a structure as taken."""
        self.nearest = np.minimum(self.nearest, self.space.from_point(index))


class JointInformation:
    """Information that a frame's labels add to those that are chosen: the gain of
    1/2 ln det(I + sum G), G [n, M, M] of `race.predict.moments.joint_information`. Greedy
    choice comes within 1 - 1/e of the best batch (Kirsch et al. 2019, arXiv:1906.08158).
    """

    def __init__(self, information: np.ndarray):
        self.information = information
        self.before = np.eye(information.shape[1])

    def gains(self) -> np.ndarray:
        """[n] nats"""
        after = np.linalg.slogdet(self.before + self.information)[1]
        return 0.5 * (after - np.linalg.slogdet(self.before)[1])

    def best(self, closed: np.ndarray) -> tuple[int, float | None]:
        """The structure to take next among those that are not `closed`, and its score."""
        gain = self.gains()
        index = int(np.argmax(np.where(closed, -np.inf, gain)))
        return index, float(gain[index])

    def add(self, index: int) -> None:
        """Counts a structure as taken."""
        self.before = self.before + self.information[index]


class MaxDet:
    """Greedy MaxDet: the batch of the largest ln det(I + X_S C X_S^T) (Holzmuller et al. 2023,
    arXiv:2203.09410). Each step takes the frame of the largest posterior variance x^T C x of
    the last layers,

        C = (X_known^T X_known + X_S^T X_S + zeta^2 I)^-1.

    A frame that was taken lowers the variance of those like it: C <- C - C x x^T C / (1 +
    x^T C x), so that only the variances and one column are kept for each.

    Args:
        pool: [n, D] features of energies in units of their noise.
        known: [k, D] of structures that have labels.
    """

    def __init__(self, pool: np.ndarray, known: np.ndarray):
        everything = np.concatenate([pool, known])
        square, axes = np.linalg.eigh(known.T @ known)
        largest = np.linalg.norm(everything, 2) ** 2
        scale = np.sqrt(np.maximum(square, 0.0) + ZETA_SQUARED * max(largest, 1e-300))
        self.white = pool @ axes / scale  # its scalar products are x^T C y of what is known
        self.variance = (self.white**2).sum(1)
        self.columns: list[np.ndarray] = []

    def best(self, closed: np.ndarray) -> tuple[int, float | None]:
        """The structure to take next among those that are not `closed`, and its score."""
        index = int(np.argmax(np.where(closed, -np.inf, self.variance)))
        return index, float(self.variance[index])

    def add(self, index: int) -> None:
        """Counts a structure as taken."""
        covariance = self.white @ self.white[index]
        for column in self.columns:
            covariance -= column * column[index]
        column = covariance / np.sqrt(1 + self.variance[index])
        self.columns.append(column)
        self.variance = np.maximum(self.variance - column**2, 0.0)


class LargestCluster:
    """LCMD, largest cluster maximum distance (Holzmuller et al. 2023, arXiv:2203.09410).

    Every frame belongs to the cluster of the nearest chosen or known frame, its centre.
    The cluster with the largest sum of squared distances gives its farthest frame. Dense
    regions of the pool count, as they do not for the farthest frame. Where nothing is
    known, the longest feature vector comes first.

    Args: as for `MaxDet`.
    """

    def __init__(self, pool: np.ndarray, known: np.ndarray):
        self.pool = pool
        self.square = (pool**2).sum(1)
        self.distance = np.full(len(pool), np.inf)  # squared, to the centre
        self.centre = np.full(len(pool), -1)
        self.n_centres = 0
        for point in known:
            self._centre_at(point)

    def best(self, closed: np.ndarray) -> tuple[int, float | None]:
        """The structure to take next among those that are not `closed`, and its score."""
        if self.n_centres == 0:
            index = int(np.argmax(np.where(closed, -np.inf, self.square)))
            return index, float(np.sqrt(self.square[index]))
        size = np.bincount(self.centre, np.where(closed, 0.0, self.distance), self.n_centres)
        held = np.bincount(self.centre[~closed], minlength=self.n_centres) > 0
        inside = ~closed & (self.centre == np.argmax(np.where(held, size, -1.0)))
        index = int(np.argmax(np.where(inside, self.distance, -1.0)))
        return index, float(np.sqrt(self.distance[index]))

    def add(self, index: int) -> None:
        """Counts a structure as taken."""
        self._centre_at(self.pool[index])

    def _centre_at(self, point: np.ndarray) -> None:
        distance = ((self.pool - point) ** 2).sum(1)
        nearer = distance < self.distance
        self.distance = np.where(nearer, distance, self.distance)
        self.centre[nearer] = self.n_centres
        self.n_centres += 1


def energy_features(
    predictor: ModelPredictor, candidates: Sequence[Candidate], progress: Progress = lambda n: None
) -> np.ndarray:
    """Derivatives of every frame's energy with respect to the last layers' weights
    (race.posterior.last_layer), over sigma0_energy and the root of the number of atoms
    [n, M D]. Their kernel is the mean over members.
    """
    model, parts = predictor.model, []
    dataset = predictor.dataset([candidate.bare for candidate in candidates])
    for batch in dataset.batches(predictor.batch_size):
        batch = batch.to(model.embedding.device)
        noise = model.constants.sigma0_energy * batch.n_atoms_per_frame.double().sqrt()
        rows = last_layer.frame_features(model, batch) / noise.view(-1, 1, 1)
        parts.append((rows.flatten(1) / model.n_members**0.5).cpu())
        progress(batch.n_frames)
    return torch.cat(parts).numpy()
