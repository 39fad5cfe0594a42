"""Statistics of a training set: E0, neighbour counts, scales, and the ranges that a
guard checks at run time.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ase
import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from race.data.dataset import Dataset
from race.data.graph import ORIGIN, neighbors
from race.data.io import read_frames
from race.data.weights import label_weights
from race.errors import RaceError


def elements_of(frames: Sequence[ase.Atoms]) -> list[str]:
    """Chemical symbols that occur, by atomic number."""
    present = np.unique(np.concatenate([atoms.numbers for atoms in frames]))
    return [chemical_symbols[z] for z in present]


def atomic_energies(
    frames: Sequence[ase.Atoms],
    elements: Sequence[str],
    source: Mapping[str, float] | str | Path = "least_squares",
    *,
    pooling: Literal["sum", "mean"] = "sum",
    units: str = "auto",
    energy_key: str = "energy",
    isolated: Mapping[str, float] | None = None,
) -> list[float]:
    """E0 per element, in the unit of the target (eV).

    Args:
        frames: training frames with info["energy"]; used by the fit only.
        elements: chemical symbols in species order.
        source: energies by symbol, a file of isolated atoms, "isolated" or "least_squares".
            The last is the fit of the energies to the compositions, per atom. If these do
            not determine it (all frames alike), it is the one closest to `isolated`, or
            that of minimum norm.
        pooling: "mean" fits a target that is the mean over atoms instead of the sum.
        units, energy_key: of the file, as in `read_frames`.
        isolated: energies of isolated atoms by element, where they are known.

    Raises:
        RaceError: an element without E0, a file frame with more than one atom, frames
            without energy.
    """
    if isinstance(source, Mapping):
        return _pick(source, elements, "data.atomic_energies")
    if source == "least_squares":
        return _fit(frames, elements, pooling, isolated or {})
    if source == "isolated":
        return _pick(isolated or {}, elements, "data.atomic_energies: isolated")
    found: dict[str, float] = {}
    for atoms in read_frames(source, energy_key=energy_key, units=units, require=("energy",)):
        if len(atoms) != 1:
            raise RaceError(
                "not an isolated atom",
                where=atoms.info[ORIGIN],
                expected="1 atom",
                got=f"{len(atoms)} atoms",
            )
        found[atoms.get_chemical_symbols()[0]] = atoms.info["energy"]
    return _pick(found, elements, source)


def is_isolated(atoms: ase.Atoms, r_max: float) -> bool:
    """Whether a frame is one atom without an image of itself within r_max."""
    if len(atoms) != 1:
        return False
    cell, where = np.asarray(atoms.cell.array), atoms.info.get(ORIGIN)
    return not len(neighbors(atoms.positions, cell, atoms.pbc, r_max, where)[0])


def isolated_energies(frames: Sequence[ase.Atoms]) -> dict[str, float]:
    """Energies by element of isolated atoms; of several of an element the lowest, which is the
    ground state's.
    """
    found: dict[str, float] = {}
    for atoms in frames:
        if "energy" in atoms.info:
            symbol, energy = str(atoms.symbols[0]), float(atoms.info["energy"])
            found[symbol] = min(energy, found.get(symbol, energy))
    return found


def _pick(energies: Mapping[str, float], elements: Sequence[str], where: object) -> list[float]:
    missing = [symbol for symbol in elements if symbol not in energies]
    if missing:
        raise RaceError(
            "elements without E0",
            where=where,
            expected=" ".join(elements),
            got=" ".join(energies) or "none",
        )
    return [float(energies[symbol]) for symbol in elements]


def _fit(
    frames: Sequence[ase.Atoms],
    elements: Sequence[str],
    pooling: str,
    start: Mapping[str, float],
) -> list[float]:
    frames = [atoms for atoms in frames if "energy" in atoms.info] or frames
    counts, energy = composition(frames, elements), _energies(frames)
    n_atoms = counts.sum(1)
    # Rows per atom, so that a large cell does not outweigh a small one; lstsq returns the
    # change of minimum norm.
    share, first = counts / n_atoms[:, None], np.array([start.get(x, 0.0) for x in elements])
    target = (energy if pooling == "mean" else energy / n_atoms) - share @ first
    root = np.sqrt(label_weights(frames, "energy"))
    change = np.linalg.lstsq(root[:, None] * share, root * target, rcond=1e-8)[0]
    return [float(value) for value in first + change]


def composition(frames: Sequence[ase.Atoms], elements: Sequence[str]) -> np.ndarray:
    """float64 [n_frames, n_elements]: how many atoms of each element."""
    numbers = np.array([atomic_numbers[symbol] for symbol in elements])
    return np.array(
        [(atoms.numbers[:, None] == numbers).sum(0) for atoms in frames], dtype=np.float64
    )


def _energies(frames: Sequence[ase.Atoms]) -> np.ndarray:
    without = [atoms for atoms in frames if "energy" not in atoms.info]
    if without:
        raise RaceError(
            "no energy", where=without[0].info.get(ORIGIN), remedy="label it or set data.energy_key"
        )
    return np.array([atoms.info["energy"] for atoms in frames])


def average_neighbors(dataset: Dataset) -> float:
    """Mean number of neighbours within r_max, over all atoms of the dataset; builds (and so
    caches) its graphs.
    """
    n_edges = int(dataset.n_edges(range(len(dataset))).sum())
    return n_edges / max(1, sum(len(atoms) for atoms in dataset.frames))


def binding_energy(
    frames: Sequence[ase.Atoms],
    elements: Sequence[str],
    e0: Sequence[float],
    *,
    pooling: Literal["sum", "mean"] = "sum",
) -> float:
    """Mean of what E0 leaves of the targets, per atom (pooling "sum") or per frame ("mean"), eV; 0
    without energies.
    """
    frames = [atoms for atoms in frames if "energy" in atoms.info]
    if not frames:
        return 0.0
    rest = _rest(frames, elements, e0, pooling)
    return float(np.average(rest, weights=label_weights(frames, "energy")))


def force_scale(frames: Sequence[ase.Atoms]) -> float:
    """Weighted RMS of the force components, eV/Angstrom.

    Raises:
        RaceError: no frame has forces, or all are zero.
    """
    labelled = [atoms for atoms in frames if "forces" in atoms.arrays]
    forces = np.concatenate([np.zeros((0, 3)), *(atoms.arrays["forces"] for atoms in labelled)])
    known = np.isfinite(forces).all(axis=1)
    weights = label_weights(labelled, "forces")
    rms = 0.0
    if known.any():
        rms = float(np.sqrt(np.average((forces[known] ** 2).mean(axis=1), weights=weights)))
    if rms == 0.0:
        raise RaceError(
            "no force scale",
            expected="forces that are not all zero",
            got=f"{len(labelled)} frames with forces",
        )
    return rms


def energy_scale(
    frames: Sequence[ase.Atoms],
    elements: Sequence[str],
    e0: Sequence[float],
    *,
    pooling: Literal["sum", "mean"] = "sum",
) -> float:
    """RMS of what E0 leaves of the targets, per atom (pooling "sum") or per frame ("mean");
    1 if it leaves nothing.

    The scale of a model trained without forces.
    """
    frames = [atoms for atoms in frames if "energy" in atoms.info] or frames
    residual = _rest(frames, elements, e0, pooling)
    return float(np.sqrt(np.average(residual**2, weights=label_weights(frames, "energy")))) or 1.0


def _rest(
    frames: Sequence[ase.Atoms], elements: Sequence[str], e0: Sequence[float], pooling: str
) -> np.ndarray:
    counts, energy = composition(frames, elements), _energies(frames)
    n_atoms = counts.sum(1)
    rest = energy - counts @ np.asarray(e0) / (n_atoms if pooling == "mean" else 1.0)
    return np.asarray(rest if pooling == "mean" else rest / n_atoms)


def summary(frames: Sequence[ase.Atoms], cutoff: float = 4.0) -> dict[str, Any]:
    """A JSON-ready summary of a training set.

    Keys: n_frames, n_atoms (sum), n_atoms_per_frame [min, max], elements; labels (frames
    that have each); energy_per_atom [min, max] eV; volume_per_atom [min, max] Angstrom^3
    (3D-periodic frames); per_element: {symbol: n_atoms, force_rms, force_max (norm),
    eV/Angstrom}; cutoff: Angstrom; min_distance: {"B-O": Angstrom}, for pairs seen within
    it, symbols by atomic number; n_neighbors: {symbol: [fewest, most]}, neighbours of an
    atom within it.
    """
    elements = elements_of(frames)
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    labelled = [atoms for atoms in frames if "forces" in atoms.arrays]
    norm = np.linalg.norm(
        np.concatenate([np.zeros((0, 3)), *(atoms.arrays["forces"] for atoms in labelled)]), axis=1
    )
    norm_numbers = np.concatenate([np.zeros(0, dtype=int), *(atoms.numbers for atoms in labelled)])
    per_element: dict[str, dict[str, float]] = {}
    for symbol in elements:
        z = atomic_numbers[symbol]
        per_element[symbol] = {"n_atoms": int((numbers == z).sum())}
        if (mine := norm[(norm_numbers == z) & np.isfinite(norm)]).size:
            per_element[symbol] |= {
                "force_rms": float(np.sqrt(np.mean(mine**2) / 3)),
                "force_max": float(mine.max()),
            }
    return {
        "n_frames": len(frames),
        "n_atoms": len(numbers),
        "n_atoms_per_frame": _range([len(atoms) for atoms in frames]),
        "elements": elements,
        "labels": {
            "energy": sum("energy" in atoms.info for atoms in frames),
            "forces": len(labelled),
            "stress": sum("stress" in atoms.info for atoms in frames),
        },
        "energy_per_atom": _range(
            [atoms.info["energy"] / len(atoms) for atoms in frames if "energy" in atoms.info]
        ),
        "volume_per_atom": _range(
            [atoms.get_volume() / len(atoms) for atoms in frames if atoms.pbc.all()]
        ),
        "per_element": per_element,
        "cutoff": cutoff,
        **_neighborhoods(frames, cutoff),
    }


def _range(values: Sequence[float]) -> list[float] | None:
    return [min(values), max(values)] if values else None


def _neighborhoods(frames: Sequence[ase.Atoms], cutoff: float) -> dict[str, Any]:
    fewest, most = (
        np.full(len(chemical_symbols), np.iinfo(np.int64).max),
        np.full(len(chemical_symbols), -1),
    )
    shortest = np.full((len(chemical_symbols), len(chemical_symbols)), np.inf)
    for atoms in frames:
        sender, receiver, vector = neighbors(
            atoms.positions,
            np.asarray(atoms.cell.array),
            atoms.pbc,
            cutoff,
            atoms.info.get(ORIGIN),
        )
        pair = np.sort(np.stack((atoms.numbers[sender], atoms.numbers[receiver])), axis=0)
        np.minimum.at(shortest, (pair[0], pair[1]), np.linalg.norm(vector, axis=1))
        count = np.bincount(receiver, minlength=len(atoms))
        np.minimum.at(fewest, atoms.numbers, count)
        np.maximum.at(most, atoms.numbers, count)
    min_distance = {
        f"{chemical_symbols[a]}-{chemical_symbols[b]}": float(shortest[a, b])
        for a, b in np.argwhere(np.isfinite(shortest))
    }
    n_neighbors = {
        chemical_symbols[z]: [int(fewest[z]), int(most[z])] for z in np.flatnonzero(most >= 0)
    }
    return {"min_distance": min_distance, "n_neighbors": n_neighbors}
