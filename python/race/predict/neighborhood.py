"""The neighbours of one structure, kept while its atoms stay near their places."""

from typing import Any

import ase
import numpy as np
import torch
from torch import Tensor

from race._race import Topology
from race.data.graph import neighbor_images

ONE_PLACE = 1e-3  # Angstrom; between atoms closer than this there is no direction


def row_pointers(receiver: np.ndarray, n_atoms: int) -> np.ndarray:
    """int64 [n_atoms + 1], the edges of receiver i are row_ptr[i] .. row_ptr[i + 1] - 1."""
    row_ptr = np.zeros(n_atoms + 1, dtype=np.int64)
    np.cumsum(np.bincount(receiver, minlength=n_atoms), out=row_ptr[1:])
    return row_ptr


class Neighborhood:
    """All pairs within r_max + skin, on the model's device, and the vectors between them at
    later positions: a device sorts and checks the pairs once, and a step uploads positions alone.

    Pairs of r_max and further have radial weights of exactly zero. No pair within r_max is
    missing, and no two atoms are at one place, while `holds` is true.

    Args:
        model: race._race.Model, whose device keeps the pairs.
        atoms: the structure, with finite positions.
        species: int64 [n_atoms], as the model numbers elements.
        r_max: cutoff of the model, Angstrom.
        skin: Angstrom, above 0.
    """

    def __init__(
        self,
        model: Any,
        atoms: ase.Atoms,
        species: np.ndarray,
        r_max: float,
        skin: float,
    ):
        self._atoms = atoms.copy()
        cell = np.asarray(atoms.cell.array, dtype=np.float64)
        sender, receiver, shift, vector = neighbor_images(
            atoms.positions, cell, atoms.pbc, r_max + skin
        )
        shortest = np.linalg.norm(vector, axis=1).min(initial=np.inf)
        # Two atoms that move towards each other must come neither into the cutoff unseen nor to
        # one place
        self._reach = 0.5 * min(skin, shortest - ONE_PLACE)
        arrays = (species, sender, row_pointers(receiver, len(atoms)))
        self.topology = Topology(model, *map(torch.from_numpy, arrays))
        self._device = torch.device(model.device)
        self._sender, self._receiver, self._offset = (
            torch.from_numpy(array).to(self._device)
            for array in (sender, receiver, np.asarray(shift, dtype=np.float64) @ cell)
        )

    def holds(self, atoms: ase.Atoms) -> bool:
        """Whether these are the neighbours of `atoms`, too."""
        mine = self._atoms
        if not (
            np.array_equal(atoms.numbers, mine.numbers)
            and np.array_equal(atoms.pbc, mine.pbc)
            and np.array_equal(atoms.cell.array, mine.cell.array)
        ):
            return False
        moved = np.linalg.norm(atoms.positions - mine.positions, axis=1).max(initial=0.0)
        return bool(moved < self._reach)  # NaN is not

    def vectors(self, atoms: ase.Atoms) -> Tensor:
        """float64 [n_edges, 3], Angstrom, on the model's device."""
        positions = torch.from_numpy(np.ascontiguousarray(atoms.positions)).to(self._device)
        sender = positions.index_select(0, self._sender)
        return sender.sub_(positions.index_select(0, self._receiver)).add_(self._offset)
