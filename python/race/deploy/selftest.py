"""Configurations that an artifact carries and replays on load, with what the exported model
says of them.

The reference is the deployed form itself (its weights as stored) in float64, eager, over
stock torch operations. The comparison therefore tests the compiler, the compiled kernels,
the dtype and the device of the machine that loads the artifact. The reference itself is
compared with the trained model, to the rounding of its weights.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import ase
import numpy as np
import torch
from ase.data import atomic_numbers, covalent_radii
from torch import Tensor

from race.config import ModelConstants
from race.data.graph import Batch, build_graph
from race.deploy.folded import FoldedRACE
from race.errors import RaceError
from race.model.race import RACE

# Largest difference, relative to the scale of each quantity. Loading in float32 rounds
# weights and features to 6e-8; after a few layers 1e-6 to 1e-5 remain.
TOLERANCE = {"float64": 1e-8, "float32": 1e-4}


def make_selftest(
    deployed: FoldedRACE, trained: RACE, min_distance: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """selftest.json, over structures in which every element has neighbours.

    Args:
        deployed: what is exported; not changed.
        trained: the model it was made from.
        min_distance: shortest distances seen in training, Angstrom, by "A-B" in order of
            atomic number.

    Raises:
        RaceError: NaN or infinite predictions, or a deployed form that is not the trained model.
    """
    r_max, elements = trained.config.r_max, trained.constants.elements
    allowed = TOLERANCE["float32" if deployed.g_rows.dtype == torch.float32 else "float64"]
    reference = copy.deepcopy(deployed).set_fused(False)
    for tensor in chain(reference.parameters(), reference.buffers()):
        tensor.data = tensor.data.to(torch.float64) if tensor.is_floating_point() else tensor.data
    reference.prepare()
    rng = np.random.default_rng(0)
    symbols = [elements[k % len(elements)] for k in range(max(6, len(elements)))]
    crystal = random_structure(symbols, min_distance or {}, rng, periodic=True)
    cluster = random_structure(
        symbols[: len(elements) + 3], min_distance or {}, rng, periodic=False
    )
    # An atom without edges
    cluster += ase.Atoms(elements[:1], cluster.positions.max(0, keepdims=True) + 2 * r_max)
    twin = RACE(trained.config, trained.constants, torch.float64)
    twin.load_state_dict(trained.state_dict())
    cases = []
    for name, atoms in (("crystal", crystal), ("cluster", cluster)):
        graph = build_graph(atoms, elements, r_max, torch.float64)
        expected = predict(reference, graph)
        if not torch.isfinite(
            torch.cat(
                [expected[key].flatten() for key in ("node_energy", "forces", "cov_aleatoric")]
            )
        ).all():
            raise RaceError(
                "the model's predictions are not finite",
                remedy="look at the training log: the weights have diverged",
            )
        scale = scales(expected, graph, trained.constants, r_max)
        trained_forces = twin.eval().set_fused(False)(graph).forces.detach()
        error = float((trained_forces - expected["forces"]).abs().max()) / scale["forces"]
        if not error <= allowed:
            raise RaceError(
                "the folded model is not the trained one",
                where=f"forces, case {name}",
                expected=f"<= {allowed:g}",
                got=f"{error:.3g}",
            )
        cases.append(
            _case(
                name,
                graph,
                {
                    key: {"value": value.flatten().tolist(), "scale": scale[key]}
                    for key, value in expected.items()
                },
            )
        )
    return {"tolerance": TOLERANCE, "cases": cases}


def predict(model: FoldedRACE, graph: Batch) -> dict[str, Tensor]:
    """librace's predict() for all members, by the same segments, in Python: the
    quantities of race::Prediction.
    """
    n, M, T, L = graph.n_atoms, model.n_members, model.n_trunks, model.n_layers
    sender, row_ptr, species, vector = (
        graph.edge_index[0],
        graph.row_ptr,
        graph.species,
        graph.edge_vector,
    )
    radial, sh, radial_grad, sh_grad = model.edges(vector)
    radial, sh = radial.unsqueeze(1).expand(-1, T, -1), sh.unsqueeze(1).expand(-1, T, -1)
    g, h = model.embed(species), vector.new_zeros((n, 0))
    features, readouts, out = [], [], torch.zeros(())
    for t in range(L):
        features.append(g)
        h, g, extra, z = model.layer(t, h, g, radial, sh, sender, row_ptr, species)
        readouts.append(z)
        out = out + extra
    of_members = []
    for seed in torch.eye(M // T, dtype=torch.float64).repeat_interleave(
        T, 1
    ):  # one member of each trunk at a time
        bar_energy = model.readout_vjp(species, seed)
        bar_h, bar_g, bar_radial, bar_sh = (
            torch.zeros_like(h),
            torch.zeros_like(g),
            torch.zeros(()),
            torch.zeros(()),
        )
        for t in reversed(range(L)):
            bar_h, bar_g, of_radial, of_sh = model.layer_vjp(
                t,
                features[t],
                radial,
                sh,
                sender,
                row_ptr,
                species,
                readouts[t],
                bar_energy,
                bar_h,
                bar_g,
            )
            bar_radial, bar_sh = bar_radial + of_radial, bar_sh + of_sh
        of_members.append(model.edges_vjp(vector, radial_grad, sh_grad, bar_radial, bar_sh))
    edge_grad = torch.cat(of_members, dim=1)  # [E, M, 3]
    forces = (
        vector.new_zeros((n, M, 3))
        .index_add(0, graph.edge_index[1], edge_grad)
        .index_add(0, sender, edge_grad, alpha=-1)
    )
    energy_var, aleatoric, epistemic = model.uncertainty(out, species)
    return {
        "node_energy": model.readout(out, species),
        "forces": forces,
        "virial": -torch.einsum("ea,emb->mab", vector, edge_grad),
        "node_energy_var": energy_var,
        "cov_aleatoric": aleatoric.mean(1),
        "cov_epistemic": epistemic.mean(1),
        "virial_cov": model.virial_cov(out),
    }


def scales(
    expected: Mapping[str, Tensor], graph: Batch, constants: ModelConstants, r_max: float
) -> dict[str, float]:
    """By what the error of each quantity is measured."""
    isolated = torch.tensor(constants.base_energies, dtype=torch.float64)[graph.species]
    result = {key: _largest(value) for key, value in expected.items()}
    result["node_energy"] = _largest(expected["node_energy"] - isolated.unsqueeze(1))
    result["virial"] = max(result["virial"], result["forces"] * r_max)
    return result


def table_error(model: RACE, min_distance: Mapping[str, float] | None = None) -> float:
    """By how much the table of radial weights changes forces, relative to the largest force,
    in float64 and a random crystal.

    The table is what was trained, so this is no error of the artifact: it says that knots
    are dense enough for the MLP between them.
    """
    elements = model.constants.elements
    if model.config.radial_knots == 0:
        return 0.0
    atoms = random_structure(
        [elements[k % len(elements)] for k in range(12)],
        min_distance or {},
        np.random.default_rng(1),
        periodic=True,
    )
    graph = build_graph(atoms, elements, model.config.r_max, torch.float64)
    forces = []
    for knots in (model.config.radial_knots, 0):
        config = model.config.model_copy(update={"radial_knots": knots})
        twin = RACE(config, model.constants, torch.float64)
        twin.load_state_dict(model.state_dict())
        forces.append(twin.eval()(graph).forces.detach())
    return float((forces[0] - forces[1]).abs().max()) / _largest(forces[1])


def random_structure(
    symbols: Sequence[str],
    min_distance: Mapping[str, float],
    rng: np.random.Generator,
    periodic: bool,
) -> ase.Atoms:
    """Atoms at random places of a triclinic cell, no two closer than in training (else 0.9
    of the covalent radii's sum).
    """

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
                distances = (
                    trial.get_distances(-1, list(range(len(atoms))), mic=periodic)
                    if len(atoms)
                    else np.zeros(0)
                )
                if all(
                    d > shortest(symbol, other)
                    for d, other in zip(distances, atoms.symbols, strict=True)
                ):
                    atoms = trial
                    break
        if len(atoms) == len(symbols):
            return atoms
        edge *= 1.1  # too crowded for these radii


def _case(name: str, graph: Batch, expected: dict[str, dict[str, Any]]) -> dict[str, Any]:
    n = graph.n_atoms
    # Every second edge starts from a ghost, a copy of its sender, so that the halo
    # exchange is replayed.
    sender = graph.edge_index[0].clone()
    sender[1::2] += n
    return {
        "name": name,
        "species": graph.species.repeat(2).tolist(),
        "edge_vector": graph.edge_vector.tolist(),
        "sender": sender.tolist(),
        "row_ptr": graph.row_ptr.tolist(),
        "owner": list(range(n)),
        "expected": expected,
    }


def _largest(values: Tensor) -> float:
    """Scale of a quantity; not quite zero, so that a quantity that is zero must come out as
    zero to rounding.
    """
    return max(float(values.abs().max()), 1e-9)
