"""How far apart structures are: sorted pair distances, or the features a model reads its
energies from.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import ase
import numpy as np
import torch

from race.active.pool import Candidate
from race.model.layer import Layer
from race.predict.predictor import ModelPredictor, Progress


class Space:
    """Points [n, d] in groups; the distance of two points is the RMS difference of their
    coordinates, infinite between groups.
    """

    def __init__(self, groups: Sequence[object], vectors: Sequence[np.ndarray]):
        numbers: dict[object, int] = {}
        self.group = np.array(
            [numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64
        )
        self.row = np.zeros(len(vectors), dtype=np.int64)
        self.points = []
        for k in range(len(numbers)):
            members = np.flatnonzero(self.group == k)
            self.row[members] = np.arange(len(members))
            self.points.append(np.stack([vectors[int(m)] for m in members]))

    def from_point(self, k: int) -> np.ndarray:
        """[n] distances of all points from point k."""
        out = np.full(len(self.group), np.inf)
        points = self.points[self.group[k]]
        difference = points - points[self.row[k]]
        out[self.group == self.group[k]] = np.sqrt(
            np.einsum("nd,nd->n", difference, difference) / max(points.shape[1], 1)
        )
        return out


def pair_distance_space(frames: Sequence[ase.Atoms], progress: Progress = lambda n: None) -> Space:
    """Coordinates: the sorted distances (Angstrom) of the pairs of each two elements;
    groups: compositions.

    Invariant to motions and to permutations of like atoms. The nearest image counts under
    periodic boundaries.
    """
    groups, vectors = [], []
    for atoms in frames:
        groups.append(tuple(sorted(Counter(atoms.get_chemical_symbols()).items())))
        vectors.append(sorted_pair_distances(atoms))
        progress(1)
    return Space(groups, vectors)


def sorted_pair_distances(atoms: ase.Atoms) -> np.ndarray:
    """[n (n - 1) / 2] Angstrom: pairs of elements by atomic number, distances of each pair
    of elements ascending.
    """
    distance = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    i, j = np.triu_indices(len(atoms), k=1)
    low, high = (
        np.minimum(atoms.numbers[i], atoms.numbers[j]),
        np.maximum(atoms.numbers[i], atoms.numbers[j]),
    )
    parts = [
        np.sort(distance[i, j][(low == a) & (high == b)])
        for a, b in combinations_with_replacement(np.unique(atoms.numbers), 2)
    ]
    return np.concatenate([np.zeros(0), *parts])


def feature_space(
    predictor: ModelPredictor, candidates: Sequence[Candidate], progress: Progress = lambda n: None
) -> Space:
    """Coordinates: for each element the mean over its atoms of the invariant features of
    every layer, of all members; one group.

    An element that a frame lacks is at zero.
    """
    model, vectors = predictor.model, []
    dataset = predictor.dataset([candidate.bare for candidate in candidates])
    seen: list[torch.Tensor] = []

    def keep(layer: torch.nn.Module, arguments: Any, result: tuple[torch.Tensor, ...]) -> None:
        # [n, (l, m), member * channel], scalars first (race.model.irreps): as many
        # columns as the readout has rows for them.
        width = layer.readout.w1.shape[0] * layer.readout.w1.shape[1]  # type: ignore[union-attr, index]
        seen.append(result[0].detach()[:, :width])

    hooks = [
        layer.register_forward_hook(keep) for layer in model.layers if isinstance(layer, Layer)
    ]
    try:
        for batch in dataset.batches(predictor.batch_size):
            seen.clear()
            with torch.no_grad():
                model(batch.to(next(model.parameters()).device), forces=False)
            features = torch.cat(seen, dim=1).double()
            n_elements = len(dataset.elements)
            cell = batch.frame.to(features.device) * n_elements + batch.species.to(features.device)
            sums = features.new_zeros(batch.n_frames * n_elements, features.shape[1]).index_add(
                0, cell, features
            )
            counts = torch.bincount(cell, minlength=batch.n_frames * n_elements).clamp(min=1)
            vectors += list((sums / counts[:, None]).view(batch.n_frames, -1).cpu().numpy())
            progress(batch.n_frames)
    finally:
        for hook in hooks:
            hook.remove()
    return Space([0] * len(vectors), vectors)
