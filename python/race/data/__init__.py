"""Structures on disk -> checked frames -> graphs -> batches."""

from race.data.dataset import Dataset
from race.data.graph import Batch, build_graph, collate
from race.data.io import read_frames

__all__ = ["Batch", "Dataset", "build_graph", "collate", "read_frames"]
