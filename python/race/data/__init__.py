"""Structures on disk -> checked frames -> graphs -> batches."""

from race.data.dataset import Dataset
from race.data.graph import Batch, build_graph, collate
from race.data.io import read_frames
from race.data.splits import split_indices, validation_split
from race.data.statistics import (
    atomic_energies,
    average_neighbors,
    elements_of,
    energy_scale,
    force_scale,
    summary,
)

__all__ = [
    "Batch",
    "Dataset",
    "atomic_energies",
    "average_neighbors",
    "build_graph",
    "collate",
    "elements_of",
    "energy_scale",
    "force_scale",
    "read_frames",
    "split_indices",
    "summary",
    "validation_split",
]
