"""A data set on disk. A frame is read when it is looked at; its edges, which are ten
times as large, when a batch needs them. Nothing of it stays in memory.

    frames.bin, edges.bin   one record a frame, one after the other
    index.npy               where each record is, its numbers of atoms and edges, and its energy

A record is a line of JSON that describes its arrays (the length of the line is in the
index), and these arrays one after the other, little-endian. Edges are those of one
cutoff, sorted by receiver, with vectors in the dtype of training. All reads go through
the kernel's cache of files, which gives memory back when others need it.
"""

import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import ase
import numpy as np
import torch

from race.data.graph import build_graph
from race.errors import RaceError
from race.files import make_folder, writing

FILES = ("frames.bin", "edges.bin")
INDEX = np.dtype(
    [(f"{part}_{what}", "<i8") for part in ("frame", "edge") for what in ("at", "head", "size")]
    + [("n_atoms", "<i8"), ("n_edges", "<i8"), ("energy", "<f8")]
)
RECENT = 64  # frames whose structure is kept: attributes are asked for one by one

Arrays = dict[str, np.ndarray]


def pack(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[bytes, int]:
    """A record, and the length of its head."""
    little = {name: a.astype(a.dtype.newbyteorder("<"), copy=False) for name, a in arrays.items()}
    layout = [[name, a.dtype.str, list(a.shape)] for name, a in little.items()]
    head = json.dumps({**about, "arrays": layout}, default=_plain).encode()
    return head + b"".join(a.tobytes() for a in little.values()), len(head)


def unpack(record: bytearray, head: int) -> tuple[dict[str, Any], Arrays]:
    """Returns the arguments of `pack`. The arrays are the record's memory."""
    about = json.loads(record[:head])
    arrays, at = {}, head
    for name, dtype, shape in about.pop("arrays"):
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(record, dtype=dtype, count=count, offset=at)
        arrays[name] = flat.reshape(shape)
        at += flat.nbytes
    return about, arrays


def _plain(value: Any) -> Any:
    """For what JSON does not know in the info of a frame."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


class ShardWriter:
    """Writes the records of frames from `read_frames` into an existing folder, in order.

    Args:
        folder: where.
        r_max: cutoff of the edges, Angstrom.
        dtype: of their vectors.
    """

    def __init__(self, folder: Path, r_max: float, dtype: torch.dtype):
        self.folder, self.r_max, self.dtype = folder, r_max, dtype
        self.index: list[tuple[float, ...]] = []
        with writing(folder):
            self.files = [open(folder / name, "wb") for name in FILES]

    def append(self, atoms: ase.Atoms) -> None:
        """Raises RaceError: a structure that no search should see; a full disk."""
        elements = sorted(set(atoms.get_chemical_symbols()))
        graph = build_graph(atoms, elements, self.r_max, self.dtype)
        info = dict(atoms.info)
        stress = {"stress": np.asarray(info.pop("stress"))} if "stress" in info else {}
        others = {key: a for key, a in atoms.arrays.items() if key not in ("numbers", "positions")}
        frame = {
            "numbers": atoms.numbers,
            "positions": atoms.positions,
            "cell": np.asarray(atoms.cell.array),
            "pbc": atoms.pbc,
            **{f"array {key}": a for key, a in others.items()},
            **stress,
        }
        sender, row_ptr = graph.edge_index[0].int(), graph.row_ptr.int()
        edges = {"sender": sender, "row_ptr": row_ptr, "vector": graph.edge_vector}
        row: list[float] = []
        for file, (record, head) in zip(
            self.files,
            (pack({"info": info}, frame), pack({}, {k: t.numpy() for k, t in edges.items()})),
            strict=True,
        ):
            row += [file.tell(), head, len(record)]
            with writing(self.folder):
                file.write(record)
        energy = float(info.get("energy", np.nan))
        self.index.append((*row, len(atoms), graph.n_edges, energy))

    def close(self) -> None:
        """Raises RaceError: a full disk."""
        with writing(self.folder):
            for file in self.files:
                file.close()
            np.save(self.folder / "index.npy", np.array(self.index, dtype=INDEX))


def stored(
    frames: Iterable[ase.Atoms], folder: Path, r_max: float, dtype: torch.dtype
) -> list[ase.Atoms]:
    """Frames, read once, as those of shards that `folder` is made for.

    Raises:
        RaceError: as ShardWriter.
    """
    make_folder(folder)
    writer = ShardWriter(folder, r_max, dtype)
    for atoms in frames:
        writer.append(atoms)
    writer.close()
    return Shards(folder, r_max, dtype).frames


class Shards:
    """The frames of a folder that a ShardWriter has closed: `frames` are used as those of
    `read_frames` are, and must not be changed.

    Args:
        folder: where.
        r_max, dtype: of the edges that it holds.

    Raises:
        RaceError: files are missing, or shorter than the index says.
    """

    def __init__(self, folder: Path, r_max: float, dtype: torch.dtype):
        self.folder, self.r_max, self.dtype = folder, r_max, dtype
        remedy = "build the shards again with `race data`"
        try:
            self.index = np.load(folder / "index.npy")
            self.files = [os.open(folder / name, os.O_RDONLY) for name in FILES]
            sizes = [os.fstat(file).st_size for file in self.files]
        except (OSError, ValueError) as error:
            raise RaceError(f"cannot be read ({error})", where=folder, remedy=remedy) from None
        for name, part, size in zip(FILES, ("frame", "edge"), sizes, strict=True):
            expected = int(self.index[f"{part}_size"].sum())
            if size != expected:
                raise RaceError(
                    "has another length than it was written with",
                    where=folder / name,
                    expected=f"{expected} bytes",
                    got=size,
                    remedy=remedy,
                )
        # Each stands in for the ase.Atoms that it reads
        self.frames = cast(list[ase.Atoms], [StoredFrame(self, k) for k in range(len(self.index))])
        self.atoms = lru_cache(RECENT)(self._atoms)

    def __del__(self) -> None:
        for file in getattr(self, "files", ()):
            os.close(file)

    def record(self, k: int, part: str) -> tuple[dict[str, Any], Arrays]:
        """Reads a part of frame k: "frame" or "edge"."""
        row = self.index[k]
        at, head, size = (int(row[f"{part}_{what}"]) for what in ("at", "head", "size"))
        file, record = self.files[part == "edge"], bytearray(size)
        if os.preadv(file, [record], at) != size:
            raise RaceError("cannot be read to its end", where=f"{self.folder}, frame {k}")
        return unpack(record, head)

    def _atoms(self, k: int) -> ase.Atoms:
        about, arrays = self.record(k, "frame")
        names = ("numbers", "positions", "cell", "pbc")
        atoms = ase.Atoms(**{name: arrays[name] for name in names})
        for key, array in arrays.items():
            if key.startswith("array "):
                atoms.arrays[key.removeprefix("array ")] = array
        atoms.info = about["info"]
        if "stress" in arrays:
            atoms.info["stress"] = arrays["stress"]
        if "energy" in atoms.info:  # of one level, where there are several
            atoms.info["energy"] = float(self.index["energy"][k])
        return atoms


class StoredFrame:
    """A frame of `Shards`, read where an attribute of it is asked for."""

    __slots__ = ("_k", "_shards")

    def __init__(self, shards: Shards, k: int):
        self._shards, self._k = shards, k

    def __len__(self) -> int:
        return int(self._shards.index["n_atoms"][self._k])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # its own, before there is one, or asked for by copy and pickle
            raise AttributeError(name)
        return getattr(self._shards.atoms(self._k), name)

    @property
    def n_edges(self) -> int:
        """Number of edges of the structure."""
        return int(self._shards.index["n_edges"][self._k])

    def edges(
        self, r_max: float, dtype: torch.dtype
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """As `race.data.graph.neighbors`; None: those on disk are of another cutoff or dtype."""
        if (r_max, dtype) != (self._shards.r_max, self._shards.dtype):
            return None
        _, arrays = self._shards.record(self._k, "edge")
        degree = np.diff(arrays["row_ptr"])
        receiver = np.repeat(np.arange(len(degree), dtype=np.int64), degree)
        return arrays["sender"].astype(np.int64), receiver, arrays["vector"]
