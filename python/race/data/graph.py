"""One periodic structure -> one graph, and many graphs -> one batch (conventions:
race.conventions).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import ase
import numpy as np
import torch
import vesin
from torch import Tensor

from race.conventions import SIX_TO_VOIGT
from race.data.guard import check_found, plan_search
from race.data.label_noise import LABELS, NOISE, frame_noise
from race.data.weights import force_weights, frame_weight
from race.errors import RaceError

# atoms.info key under which race.data.io keeps "file, frame k", so that later refusals
# can name the frame.
ORIGIN = "race_origin"
# Cast by Batch.to(dtype). Energies stay float64: a total energy of -8e4 eV has a float32
# spacing of 8 meV.
_FLOATING = ("edge_vector", "forces", "stress")


@dataclass
class Batch:
    """One or more frames joined into one graph; every tensor on one device.

    Attributes:
        species: int64 [n_atoms], index into the model's elements.
        edge_index: int64 [2, n_edges], row 0 sender, row 1 receiver; sorted by receiver.
        edge_vector: [n_edges, 3] r_sender - r_receiver + shift @ cell, Angstrom; formed
            in float64, then cast.
        row_ptr: int64 [n_atoms + 1], the edges of receiver i are row_ptr[i]:row_ptr[i + 1].
        frame: int64 [n_atoms], the frame of each atom.
        n_atoms_per_frame: int64 [n_frames].
        volume: float64 [n_frames], Angstrom^3, of the cell; NaN where it has none (cell_volume).
        energy: float64 [n_frames], eV, or None; NaN where a frame has none but another
            frame of the batch has.
        forces: [n_atoms, 3], eV/Angstrom, or None; NaN rows likewise.
        stress: [n_frames, 6] in SIX_ORDER, ASE's sign, eV/Angstrom^3, or None; NaN rows likewise.
        index: int64 [n_frames], the index of each frame in its dataset.
        frame_weight: float64 [n_frames], how much energy and stress count.
        atom_weight: float64 [n_atoms], how much a force counts, its frame's weight included.
        noise: float64 [n_frames, 3], standard deviations of the labels' own noise
            (race.data.label_noise), or None: no frame of the batch has any.
    """

    species: Tensor
    edge_index: Tensor
    edge_vector: Tensor
    row_ptr: Tensor
    frame: Tensor
    n_atoms_per_frame: Tensor
    volume: Tensor
    energy: Tensor | None
    forces: Tensor | None
    stress: Tensor | None
    index: Tensor
    frame_weight: Tensor
    atom_weight: Tensor
    noise: Tensor | None = None

    @property
    def n_frames(self) -> int:
        """Number of structures."""
        return self.n_atoms_per_frame.shape[0]

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all structures."""
        return self.species.shape[0]

    @property
    def n_edges(self) -> int:
        """Number of edges of all structures."""
        return self.edge_index.shape[1]

    @cached_property
    def frame_ptr(self) -> Tensor:
        """int64 [n_frames + 1]: the atoms of frame k are frame_ptr[k]:frame_ptr[k + 1]."""
        return torch.nn.functional.pad(self.n_atoms_per_frame.cumsum(0), (1, 0))

    def labelled(self, label: str) -> Tensor:
        """bool [n_frames], of "forces" [n_atoms]: which have this label."""
        values: Tensor | None = getattr(self, label)
        if values is None:
            n = self.n_atoms if label == "forces" else self.n_frames
            return torch.zeros(n, dtype=torch.bool, device=self.species.device)
        finite = torch.isfinite(values)
        return finite if finite.dim() == 1 else finite.all(1)

    def labelled_rows(self, label: str) -> Tensor | None:
        """int64 [n_labelled], the frames or atoms that `labelled` names; None: all of them.

        Found once for these labels, and where they are: `to` finds the rows before it moves
        a batch, so that no device is waited for.
        """
        values: Tensor | None = getattr(self, label)
        if values is None:
            return torch.zeros(0, dtype=torch.long, device=self.species.device)
        known = self._known_rows().get(label)
        if known is None or known[0] is not values or known[1] != values._version:
            labelled = self.labelled(label)
            rows = None if labelled.all() else labelled.nonzero().squeeze(1)
            self._known_rows()[label] = known = (values, values._version, rows)
        return known[2]

    def _known_rows(self) -> dict[str, tuple[Tensor, int, Tensor | None]]:
        """By label: its tensor and version, and what `labelled_rows` found."""
        known: dict[str, tuple[Tensor, int, Tensor | None]] = self.__dict__.setdefault("_rows", {})
        return known

    def weights(self, label: str) -> Tensor:
        """[n_labelled] how much each of these labels counts, float64."""
        every = self.atom_weight if label == "forces" else self.frame_weight
        return chosen(every, self.labelled_rows(label))

    def noise_var(self, label: str) -> Tensor | None:
        """float64 [n_frames], of "forces" [n_atoms]: variance of the labels' own noise; None: 0."""
        if self.noise is None:
            return None
        var = self.noise[:, LABELS.index(label)] ** 2
        return var[self.frame] if label == "forces" else var

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Batch":
        """Moves every tensor to `device`; casts edge_vector, forces and stress to `dtype`."""
        found = {label: self.labelled_rows(label) for label in LABELS}
        moved = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is not None:
                moved[field.name] = tensor.to(
                    device=device, dtype=dtype if field.name in _FLOATING else None
                )
        batch = replace(self, **moved)
        for label, rows in found.items():
            if (values := moved.get(label)) is not None:
                there = None if rows is None else rows.to(device=device)
                batch._known_rows()[label] = (values, values._version, there)
        return batch


def chosen(values: Tensor, rows: Tensor | None) -> Tensor:
    """The rows that `Batch.labelled_rows` names."""
    return values if rows is None else values.index_select(0, rows)


def neighbors(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    r_max: float,
    where: object = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`neighbor_images` without the shifts."""
    sender, receiver, _, vector = neighbor_images(positions, cell, pbc, r_max, where)
    return sender, receiver, vector


def neighbor_images(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    r_max: float,
    where: object = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All directed pairs closer than `r_max`, periodic images (an atom's own included), in a
    reproducible order.

    Args:
        positions: float64 [n_atoms, 3], Angstrom; need not lie inside the cell.
        cell: float64 [3, 3], rows are lattice vectors; rows of non-periodic directions
            are not used.
        pbc: bool [3].
        r_max: cutoff, Angstrom; pairs at exactly r_max are dropped.
        where: file and frame, for messages.

    Raises:
        RaceError: a structure that no search should see (race.data.guard).

    Returns:
        sender, receiver int64 [n_edges]; shift [n_edges, 3], of the sender in lattice
        vectors; vector float64 [n_edges, 3] = r_sender - r_receiver + shift @ cell. Sorted
        by receiver, then sender, then shift.
    """
    positions, cell = np.asarray(positions, np.float64), np.asarray(cell, np.float64)
    plan = plan_search(positions, cell, pbc, r_max, where)
    search = vesin.NeighborList(cutoff=plan.radius, full_list=True, n_threads=1)
    receiver, sender, shift = search.compute(
        points=plan.positions, box=plan.box, periodic=plan.periodic, quantities="ijS"
    )
    sender, receiver = sender.astype(np.int64), receiver.astype(np.int64)
    vector = positions[sender] - positions[receiver] + shift @ cell
    if plan.radius > r_max:
        near = np.linalg.norm(vector, axis=1) < r_max
        sender, receiver, shift, vector = (
            array[near] for array in (sender, receiver, shift, vector)
        )
    check_found(len(sender), len(positions), r_max, where)
    # Two atoms of one frame may be joined by several images, so the shift takes part in the order.
    order = np.lexsort((*shift.T, sender, receiver))
    return sender[order], receiver[order], shift[order], vector[order]


def build_graph(
    atoms: ase.Atoms,
    elements: Sequence[str],
    r_max: float,
    dtype: torch.dtype,
    edges: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> Batch:
    """The graph of one frame, with the labels it carries.

    Labels are those that `read_frames` normalised: info["energy"], arrays["forces"],
    info["stress"] (SIX_ORDER). A frame straight from ASE may instead hold them in its
    calculator, where stress is in ASE's Voigt order.

    Args:
        atoms: structure, Angstrom.
        elements: chemical symbols in species order.
        r_max: cutoff, Angstrom.
        dtype: of edge_vector, forces and stress.
        edges: sender, receiver, vector of `neighbors`, where they are known.

    Raises:
        RaceError: an element is not in `elements`.
    """
    positions = atoms.get_positions()
    cell = np.asarray(atoms.cell.array, dtype=np.float64)
    n_atoms = len(atoms)
    if edges is None:
        edges = neighbors(positions, cell, atoms.pbc, r_max, atoms.info.get(ORIGIN))
    sender, receiver, vector = edges
    row_ptr = np.zeros(n_atoms + 1, dtype=np.int64)
    np.cumsum(np.bincount(receiver, minlength=n_atoms), out=row_ptr[1:])
    energy, forces, stress = _labels(atoms)
    is_read = ORIGIN in atoms.info  # whose weights have been looked at
    is_noisy = is_read and NOISE in atoms.info
    if not atoms.pbc.all():
        stress = None  # codes differ in what they write for directions that do not repeat
    return Batch(
        species=torch.from_numpy(species_index(atoms, elements)),
        edge_index=torch.from_numpy(np.stack((sender, receiver))),
        edge_vector=torch.from_numpy(vector).to(dtype),
        row_ptr=torch.from_numpy(row_ptr),
        frame=torch.zeros(n_atoms, dtype=torch.int64),
        n_atoms_per_frame=torch.tensor([n_atoms]),
        volume=torch.tensor([cell_volume(atoms)], dtype=torch.float64),
        energy=None if energy is None else torch.tensor([float(energy)], dtype=torch.float64),
        forces=None if forces is None else torch.as_tensor(np.asarray(forces), dtype=dtype),
        stress=None
        if stress is None
        else torch.as_tensor(np.asarray(stress), dtype=dtype).reshape(1, 6),
        index=torch.zeros(1, dtype=torch.int64),
        frame_weight=torch.tensor([frame_weight(atoms) if is_read else 1.0], dtype=torch.float64),
        atom_weight=torch.from_numpy(force_weights(atoms) if is_read else np.ones(n_atoms)),
        noise=torch.from_numpy(frame_noise(atoms)[None]) if is_noisy else None,
    )


def cell_volume(atoms: ase.Atoms) -> float:
    """The volume by which the virial is divided to give the stress, Angstrom^3. As in ASE it
    is that of the three cell vectors, including the vacuum of a slab or a wire. It is NaN
    without periodic directions, or if vectors are missing.
    """
    return float(atoms.get_volume()) if atoms.pbc.any() and atoms.cell.rank == 3 else float("nan")


def species_index(atoms: ase.Atoms, elements: Sequence[str]) -> np.ndarray:
    """int64 [n_atoms]: each atom's place in `elements`."""
    table = np.full(ase.data.atomic_numbers["Og"] + 1, -1, dtype=np.int64)
    for k, symbol in enumerate(elements):
        table[ase.data.atomic_numbers[symbol]] = k
    species = table[atoms.numbers]
    if species.size and species.min() < 0:
        unknown = sorted(
            {symbol for symbol, k in zip(atoms.symbols, species, strict=True) if k < 0}
        )
        raise RaceError(
            f"element {', '.join(unknown)} is unknown to the model",
            where=atoms.info.get(ORIGIN),
            expected=" ".join(elements),
            got=str(atoms.symbols),
            # A frame of a file, which may be the training set; or what a calculator is asked
            remedy="leave these frames out, or train with it in model.elements"
            if ORIGIN in atoms.info
            else "take a model that was trained on it",
        )
    return species


def _labels(atoms: ase.Atoms) -> tuple[float | None, np.ndarray | None, np.ndarray | None]:
    """Energy, forces and stress (SIX_ORDER) of a frame, None where it has none."""

    def computed(name: str) -> Any:
        # allow_calculation=False: only what is stored, and only if it belongs to these positions.
        return (
            None
            if atoms.calc is None
            else atoms.calc.get_property(name, atoms, allow_calculation=False)
        )

    energy, forces, stress = (
        atoms.info.get("energy"),
        atoms.arrays.get("forces"),
        atoms.info.get("stress"),
    )
    if ORIGIN in atoms.info:
        return energy, forces, stress
    energy = computed("energy") if energy is None else energy
    forces = computed("forces") if forces is None else forces
    if stress is None and (voigt := computed("stress")) is not None:
        stress = np.asarray(voigt)[list(SIX_TO_VOIGT)]
    return energy, forces, stress


def collate(graphs: Sequence[Batch]) -> Batch:
    """Joins graphs into one: atoms renumbered, labels that only some graphs carry padded
    with NaN.
    """
    n_atoms = torch.tensor([graph.n_atoms for graph in graphs])
    n_edges = torch.tensor([graph.n_edges for graph in graphs])
    n_frames = torch.tensor([graph.n_frames for graph in graphs])

    def offset(counts: Tensor, repeats: Tensor) -> Tensor:
        return torch.repeat_interleave(counts.cumsum(0) - counts, repeats)

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(graph, name) for graph in graphs])

    def label(name: str, rows: Tensor, width: tuple[int, ...]) -> Tensor | None:
        values = [getattr(graph, name) for graph in graphs]
        dtype = next((value.dtype for value in values if value is not None), None)
        if dtype is None:
            return None
        missing = [torch.full((int(n), *width), torch.nan, dtype=dtype) for n in rows]
        return torch.cat(
            [hole if value is None else value for value, hole in zip(values, missing, strict=True)]
        )

    noise = label("noise", n_frames, (3,))
    # Stored indices may be int32 (Dataset); a batch is int64.
    edge_index = torch.cat([graph.edge_index for graph in graphs], dim=1).long() + offset(
        n_atoms, n_edges
    )
    row_ptr = torch.cat([graph.row_ptr[:-1] for graph in graphs]) + offset(n_edges, n_atoms)
    return Batch(
        species=joined("species"),
        edge_index=edge_index,
        edge_vector=joined("edge_vector"),
        row_ptr=torch.cat((row_ptr, n_edges.sum().reshape(1))),
        frame=joined("frame") + offset(n_frames, n_atoms),
        n_atoms_per_frame=joined("n_atoms_per_frame"),
        volume=joined("volume"),
        energy=label("energy", n_frames, ()),
        forces=label("forces", n_atoms, (3,)),
        stress=label("stress", n_frames, (6,)),
        index=joined("index"),
        frame_weight=joined("frame_weight"),
        atom_weight=joined("atom_weight"),
        noise=None if noise is None else noise.nan_to_num(0.0),
    )
