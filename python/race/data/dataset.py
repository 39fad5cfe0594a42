"""Frames with graphs that are built once and kept, served in batches whose order is a
function of (seed, epoch).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ase
import numpy as np
import torch
from ase.data import atomic_numbers

from race.data.batching import balanced_batches, consecutive_batches
from race.data.graph import Batch, build_graph, collate
from race.data.shards import StoredFrame
from race.data.weights import label_weights


class Dataset:
    """Frames of one element list and cutoff.

    Args:
        frames: from `race.data.read_frames`.
        elements: chemical symbols in species order.
        r_max: cutoff, Angstrom.
        dtype: of edge vectors, forces and stresses.
    """

    def __init__(
        self, frames: Sequence[ase.Atoms], elements: Sequence[str], r_max: float, dtype: torch.dtype
    ):
        self.frames = list(frames)
        self.elements = list(elements)
        self.r_max = r_max
        self.dtype = dtype
        self._graphs: list[Batch | None] = [None] * len(self.frames)

    def __len__(self) -> int:
        return len(self.frames)

    def graph(self, index: int) -> Batch:
        """The graph of frame `index`, built on first use and kept, but for frames that lie on
        disk with their edges. Its edge_index is int32, to halve what is kept.
        """
        graph = self._graphs[index]
        if graph is None:
            frame: Any = self.frames[index]
            stored = isinstance(frame, StoredFrame)
            edges = frame.edges(self.r_max, self.dtype) if stored else None
            graph = build_graph(frame, self.elements, self.r_max, self.dtype, edges)
            graph = replace(graph, edge_index=graph.edge_index.int(), index=torch.tensor([index]))
            if not stored:
                self._graphs[index] = graph
        return graph

    def batch(self, indices: Iterable[int]) -> Batch:
        """The frames `indices` joined, in that order."""
        return collate([self.graph(int(index)) for index in indices])

    def order(self, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
        """int64 [n_frames]: the order of the frames in an epoch, the same on every machine."""
        if not shuffle:
            return np.arange(len(self))
        # RandomState's stream is frozen by numpy's compatibility policy; Generator's is not.
        return np.random.RandomState([seed, epoch]).permutation(len(self))

    def n_batches(self, batch_size: int) -> int:
        """Batches of an epoch."""
        return -(-len(self) // batch_size)

    def n_edges(self, indices: Iterable[int]) -> np.ndarray:
        """int64: edges of each of the frames `indices`, which is what a frame costs. Builds
        their graphs, where they are not on disk.
        """

        def count(index: int) -> int:
            frame = self.frames[index]
            if isinstance(frame, StoredFrame):
                return frame.n_edges
            return self.graph(index).n_edges

        return np.array([count(int(index)) for index in indices], dtype=np.int64)

    def total_weight(self, label: str) -> float:
        """Sum over all labels "energy", "forces" (one an atom) or "stress": their number, where
        nothing else is given.
        """
        return float(label_weights(self.frames, label).sum())

    def mean_weight(self, label: str) -> float:
        """The mean weight of all such labels; 1 without any."""
        weights = label_weights(self.frames, label)
        return float(weights.mean()) if weights.size else 1.0

    def plan(
        self,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        balanced: bool = False,
    ) -> list[np.ndarray]:
        """The frames of every batch of an epoch, a function of the arguments alone: training
        resumes at any batch of it.

        `balanced` evens out the number of edges per batch (race.data.batching); else the
        last batch may be smaller.
        """
        order = self.order(seed, epoch, shuffle)
        if balanced:
            return balanced_batches(order, self.n_edges(range(len(self))), batch_size)
        return consecutive_batches(order, batch_size)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All frames in their own order."""
        for indices in self.plan(batch_size, shuffle=False):
            yield self.batch(indices)

    def sampled(self, batch_size: int, n_atoms: int, n_rare: int) -> Iterator[Batch]:
        """Frames in random order, always the same: the first of at least n_atoms atoms, and
        whichever hold elements of fewer than n_rare atoms among those before.
        """
        for indices in consecutive_batches(self._sample(n_atoms, n_rare), batch_size):
            yield self.batch(indices)

    def _sample(self, n_atoms: int, n_rare: int) -> np.ndarray:
        """int64: the frames of `sampled`."""
        lacking = {atomic_numbers[symbol]: n_rare for symbol in self.elements}
        found, chosen = 0, []
        for index in self.order(seed=0, epoch=0):
            if found >= n_atoms and all(n <= 0 for n in lacking.values()):
                break
            atoms = self.frames[index]
            numbers, counts = np.unique(atoms.numbers, return_counts=True)
            if found < n_atoms or any(lacking[number] > 0 for number in numbers):
                chosen.append(index)
                found += len(atoms)
                for number, count in zip(numbers, counts, strict=True):
                    lacking[number] -= count
        return np.array(chosen, dtype=np.int64)
