"""RACE behind benchmarks/protocol.py: the deployed artifact, training steps of the trainer,
and the unfolded e3nn form of the model.

outputs     what a call gives forces      energies of atoms and forces (of the mean over
members), virial covariance  the same and the 3x3 force covariance of every atom,
aleatoric + epistemic; with several members also each member's forces training N  one step
of race.train's Trainer on N frames: forward, loss, backward, clipping, optimiser, weight
average

A call starts from positions and a ready neighbour list. `--implementation reference` runs
race.model.reference, eager e3nn with autograd, in the place of the artifact.
"""

import argparse
import itertools
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import ase
import numpy as np
import race._race
import race_models
import torch
from protocol import Prepared, serve
from systems import ELEMENTS, molecules

import race
from race.config import RunConfig
from race.data import Dataset
from race.model.reference import Reference
from race.train.trainer import Trainer

TIMED = {
    "race": "librace's predict on the deployed artifact, from positions and a neighbour list",
    "reference": "eager e3nn forward pass and autograd forces, from positions and a neighbour list",
}


class Graph:
    """Tensors of an npz file of systems.write; edge vectors are formed in every call."""

    def __init__(self, path: str, dtype: torch.dtype = torch.float64):
        data = np.load(path)
        self.n_atoms, self.n_edges = len(data["numbers"]), len(data["sender"])
        self.species, self.sender, self.receiver = (
            torch.from_numpy(data[name]) for name in ("species", "sender", "receiver")
        )
        self.positions = torch.from_numpy(data["positions"]).to(dtype)
        self.shift = torch.from_numpy(data["shift"] @ data["cell"]).to(dtype)
        self.row_ptr = torch.zeros(self.n_atoms + 1, dtype=torch.int64)
        self.row_ptr[1:] = torch.bincount(self.receiver, minlength=self.n_atoms).cumsum(0)

    def edge_vector(self, positions: torch.Tensor) -> torch.Tensor:
        return (
            positions.index_select(0, self.sender)
            - positions.index_select(0, self.receiver)
            + self.shift
        )


def deployed(model: race._race.Model, path: str, outputs: str) -> Prepared:
    graph = Graph(path)
    several = json.loads(model.metadata)["n_members"] > 1

    def forces():
        return model.predict(
            graph.species, graph.edge_vector(graph.positions), graph.sender, graph.row_ptr
        )

    def covariance():
        vector = graph.edge_vector(graph.positions)
        out = model.predict(
            graph.species, vector, graph.sender, graph.row_ptr, members=True, uncertainty=True
        )
        total = out["cov_aleatoric"]
        return (
            total + race._race.member_covariance(out["forces"]) + out["cov_epistemic"]
            if several
            else total
        )

    return Prepared(
        {"forces": forces, "covariance": covariance}[outputs], graph.n_atoms, graph.n_edges
    )


def reference(model: Reference, path: str, dtype: torch.dtype) -> Prepared:
    graph = Graph(path, dtype)
    edge_index = torch.stack([graph.sender, graph.receiver])
    model.requires_grad_(False)

    def call():
        positions = graph.positions.clone().requires_grad_(True)
        energy, _ = model(graph.species, graph.edge_vector(positions), edge_index)
        return torch.autograd.grad(energy.sum(), positions)

    return Prepared(call, graph.n_atoms, graph.n_edges)


def batches(n: int, r_max: float, dtype: torch.dtype, n_batches: int = 4) -> tuple[Dataset, list]:
    dataset = Dataset(molecules(n * n_batches), ELEMENTS, r_max, dtype)
    return dataset, [dataset.batch(range(k * n, (k + 1) * n)) for k in range(n_batches)]


def training(args: argparse.Namespace, n: int, device: str = "cpu") -> Prepared:
    """Mean squared errors of energy and forces, as the peers are trained."""
    model = race_models.build(args.model, args.members, args.head, args.dtype)
    dataset, frames = batches(n, model.config.r_max, getattr(torch, args.dtype))
    options = {"loss": "mse", "batch_size": n, "dtype": args.dtype, "device": device}
    config = RunConfig(
        data={"train": ["unused"]}, train=options, model=model.config, constants=model.constants
    )
    # The folder is for checkpoints, of which these steps write none.
    trainer = Trainer(
        config, model, dataset, dataset, Path(tempfile.gettempdir()) / "race-benchmark-no-run"
    )
    turn = itertools.cycle([batch.to(device) for batch in frames])
    return Prepared(
        lambda: trainer.step(next(turn)),
        frames[0].n_atoms,
        sum(b.n_edges for b in frames) // len(frames),
        frames=n,
    )


def reference_training(args: argparse.Namespace, n: int) -> Prepared:
    model = Reference(race_models.config(args.model, 1, args.head))
    _, frames = batches(n, model.config.r_max, getattr(torch, args.dtype))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    turn = itertools.cycle(frames)

    def step():
        batch = next(turn)
        vector = batch.edge_vector.clone().requires_grad_(True)
        node_energy, _ = model(batch.species, vector, batch.edge_index)
        (edge_grad,) = torch.autograd.grad(node_energy.sum(), vector, create_graph=True)
        zero = torch.zeros(batch.n_atoms, 3, dtype=vector.dtype)
        forces = zero.index_add(0, batch.edge_index[1], edge_grad).index_add(
            0, batch.edge_index[0], -edge_grad
        )
        energy = torch.zeros(batch.n_frames, dtype=vector.dtype).index_add(
            0, batch.frame, node_energy
        )
        loss = ((energy - batch.energy) / batch.n_atoms_per_frame).square().mean() + 10.0 * (
            forces - batch.forces
        ).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return Prepared(
        step, frames[0].n_atoms, sum(b.n_edges for b in frames) // len(frames), frames=n
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="small")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--head", default="point")
    parser.add_argument("--implementation", default="race", choices=tuple(TIMED))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    is_race = args.implementation == "race"
    torch.set_default_dtype(torch.float32 if is_race else dtype)
    loaded: list = []

    def prepare(path: str, outputs: str) -> Prepared:
        if outputs.startswith("training"):
            return (training if is_race else reference_training)(args, int(outputs.split()[1]))
        if not loaded:
            loaded.append(load(args))
        return deployed(loaded[0], path, outputs) if is_race else reference(loaded[0], path, dtype)

    parameters = sum(
        p.numel() for p in race_models.build(args.model, args.members, args.head).parameters()
    )
    about = {
        "versions": {
            "race": race.__version__,
            "torch": torch.__version__,
            "e3nn": version("e3nn"),
            "ase": ase.__version__,
        },
        "parameters": parameters,
        "architecture": race_models.describe(args.model) + f", head {args.head}",
        "timed": TIMED[args.implementation],
    }
    serve(prepare, about)


def load(args: argparse.Namespace):
    if args.implementation == "reference":
        return Reference(race_models.config(args.model, 1, args.head))
    with tempfile.TemporaryDirectory() as folder:
        return race._race.load(
            str(race_models.artifact(Path(folder), args.model, args.members, args.head, args.dtype))
        )


if __name__ == "__main__":
    main()
