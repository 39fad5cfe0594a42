"""Configurations that an artifact carries and replays on load, with what the exported model says of them.

The reference is the eager model in float64 over stock torch operations: compiler, compiled kernels, dtype and device of the
machine that loads the artifact are all on the other side of the comparison.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ase
import numpy as np
import torch
from ase.data import atomic_numbers, covalent_radii
from torch import Tensor

from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.data.graph import Batch, build_graph
from race.errors import RaceError
from race.model.race import RACE

# Largest difference, relative to the scale of each quantity. Loading in float32 rounds weights and features to 6e-8; after a
# few layers 1e-6 to 1e-5 remain.
TOLERANCE = {"float64": 1e-8, "float32": 1e-4}


def make_selftest(reference: RACE, min_distance: Mapping[str, float] | None = None) -> dict[str, Any]:
    """selftest.json for a float64 model, over structures in which every element has neighbours.

    Args:
        reference: the model as exported (folded, weights rounded), in float64.
        min_distance: shortest distances seen in training, Angstrom, by "A-B" in order of atomic number.

    Raises:
        RaceError: NaN or infinite predictions.
    """
    elements = reference.config.elements
    rng = np.random.default_rng(0)
    symbols = [elements[k % len(elements)] for k in range(max(6, len(elements)))]
    crystal = random_structure(symbols, min_distance or {}, rng, periodic=True)
    cluster = random_structure(symbols[: len(elements) + 3], min_distance or {}, rng, periodic=False)
    cluster += ase.Atoms(elements[:1], cluster.positions.max(0, keepdims=True) + 2 * reference.config.r_max)  # an atom without edges
    cases = [_case(reference, name, atoms) for name, atoms in (("crystal", crystal), ("cluster", cluster))]
    return {"tolerance": TOLERANCE, "cases": cases}


def table_error(model: RACE, min_distance: Mapping[str, float] | None = None) -> float:
    """By how much the table of radial weights changes forces, relative to the largest force, in float64 and a random crystal.

    The table is what was trained, so this is no error of the artifact: it says that knots are dense enough for the MLP between them.
    """
    elements = model.config.elements
    if model.config.radial_knots == 0:
        return 0.0
    atoms = random_structure([elements[k % len(elements)] for k in range(12)], min_distance or {}, np.random.default_rng(1), periodic=True)
    graph = build_graph(atoms, elements, model.config.r_max, torch.float64)
    forces = []
    for knots in (model.config.radial_knots, 0):
        twin = RACE(model.config.model_copy(update={"radial_knots": knots}), torch.float64)
        twin.load_state_dict(model.state_dict())
        forces.append(twin.eval()(graph)["forces"].detach())
    return float((forces[0] - forces[1]).abs().max()) / _largest(forces[1])


def random_structure(symbols: Sequence[str], min_distance: Mapping[str, float], rng: np.random.Generator, periodic: bool) -> ase.Atoms:
    """Atoms at random places of a triclinic cell, no two closer than in training (else 0.9 of the covalent radii's sum)."""

    def shortest(a: str, b: str) -> float:
        first, second = sorted((a, b), key=atomic_numbers.__getitem__)
        radii = covalent_radii[atomic_numbers[a]] + covalent_radii[atomic_numbers[b]]
        return min_distance.get(f"{first}-{second}", 0.9 * radii)

    longest = max(shortest(a, b) for a in symbols for b in symbols)
    edge = 1.3 * longest * len(symbols) ** (1 / 3)
    while True:
        cell = edge * np.array([[1.0, 0.0, 0.0], [0.15, 1.0, 0.0], [-0.1, 0.2, 1.0]])
        atoms = ase.Atoms(cell=cell, pbc=periodic)
        for symbol in symbols:
            for _ in range(200):
                trial = atoms + ase.Atoms([symbol], [rng.random(3) @ cell])
                distances = trial.get_distances(-1, list(range(len(atoms))), mic=periodic) if len(atoms) else np.zeros(0)
                if all(d > shortest(symbol, other) for d, other in zip(distances, atoms.symbols, strict=True)):
                    atoms = trial
                    break
        if len(atoms) == len(symbols):
            return atoms
        edge *= 1.1  # too crowded for these radii


def _case(reference: RACE, name: str, atoms: ase.Atoms) -> dict[str, Any]:
    graph = build_graph(atoms, reference.config.elements, reference.config.r_max, torch.float64)
    n = graph.n_atoms
    # Every second edge starts from a ghost, a copy of its sender, so that the halo exchange is replayed.
    sender = graph.edge_index[0].clone()
    sender[1::2] += n
    return {
        "name": name,
        "species": graph.species.repeat(2).tolist(),
        "edge_vector": graph.edge_vector.tolist(),
        "sender": sender.tolist(),
        "row_ptr": graph.row_ptr.tolist(),
        "owner": list(range(n)),
        "expected": {
            key: {"value": value.flatten().tolist(), "scale": scale} for key, (value, scale) in _expected(reference, graph).items()
        },
    }


def _expected(reference: RACE, graph: Batch) -> dict[str, tuple[Tensor, float]]:
    """Of each quantity of race::Prediction (members = true): its value and the scale that its error is measured by."""
    n, M = graph.n_atoms, reference.n_members
    # With the volume set to 1, stress is -virial for the cluster too.
    result = reference(Batch(**{**vars(graph), "volume": torch.ones(1, dtype=torch.float64)}))
    six = -result["stress"][0].detach()  # [M, 6]
    virial = six.new_zeros(M, 3, 3)
    virial[:, SIX_ROWS, SIX_COLUMNS] = six
    virial[:, SIX_COLUMNS, SIX_ROWS] = six

    with torch.no_grad():
        raw = result["raw"]
        out = torch.cat([raw[..., :1], raw[..., 1:] * reference.n_layers], dim=-1)  # uncertainty() takes sums over layers
        energy_var, aleatoric, epistemic = reference.uncertainty(out, graph.species)
    node_energy, forces = result["node_energy"].detach(), result["forces"].detach()
    isolated = torch.tensor(reference.config.atomic_energies or [0.0] * len(reference.config.elements), dtype=torch.float64)
    interaction = node_energy - isolated[graph.species].unsqueeze(1)
    force_scale = _largest(forces)
    if not torch.isfinite(torch.cat([node_energy.flatten(), forces.flatten(), aleatoric.flatten()])).all():
        raise RaceError("the model's predictions are not finite", remedy="look at the training log: the weights have diverged")
    return {
        "node_energy": (node_energy, _largest(interaction)),
        "forces": (forces.reshape(n, M, 3), force_scale),
        "virial": (virial, max(_largest(virial), force_scale * reference.config.r_max)),
        "node_energy_var": (energy_var, _largest(energy_var)),
        "cov_aleatoric": (aleatoric.mean(1), _largest(aleatoric)),
        "cov_epistemic": (epistemic.mean(1), _largest(epistemic)),
    }


def _largest(values: Tensor) -> float:
    """Scale of a quantity; not quite zero, so that a quantity that is zero must come out as zero to rounding."""
    return max(float(values.abs().max()), 1e-9)
