"""MACE, compiled by torch.compile as its own calculator does it, behind benchmarks/protocol.py.

A call is the compiled forward pass with forces, from positions and a ready neighbour
list; or one training step: forward, loss on energy and forces, backward, Adam.
"""

import argparse
import itertools
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

# Constants of e3nn 0.4.4, which torch >= 2.6 no longer unpickles unasked
torch.serialization.add_safe_globals([slice])
from e3nn import o3  # noqa: E402
from mace import modules  # noqa: E402
from mace.tools.compile import prepare as prepare_for_compile  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
from protocol import Prepared, serve  # noqa: E402

NUMBERS = [1, 6, 7, 8, 14]
SIZES = {"small": "64x0e+64x1o", "l2": "64x0e+64x1o+64x2e"}  # hidden irreps
N_LAYERS = 2


def build(size: str, max_ell: int) -> torch.nn.Module:
    interactions = modules.interaction_classes
    torch.manual_seed(0)
    return modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=6,
        max_ell=max_ell,
        interaction_cls=interactions["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=interactions["RealAgnosticInteractionBlock"],
        num_interactions=N_LAYERS,
        num_elements=len(NUMBERS),
        hidden_irreps=o3.Irreps(SIZES[size]),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(NUMBERS)),
        avg_num_neighbors=28.0,
        atomic_numbers=NUMBERS,
        correlation=3,
        radial_MLP=[64, 64],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def batch(graphs: list[dict[str, np.ndarray]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """One or more graphs of systems.graph, as MACE's data loader would give them."""
    offsets = np.cumsum([0, *(len(graph["numbers"]) for graph in graphs)])

    def real(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(dtype)

    species = np.concatenate([graph["species"] for graph in graphs])
    index = [
        np.stack([graph["sender"], graph["receiver"]]) + start
        for graph, start in zip(graphs, offsets, strict=False)
    ]
    return {
        "positions": real([graph["positions"] for graph in graphs]),
        "node_attrs": torch.nn.functional.one_hot(torch.from_numpy(species), len(NUMBERS)).to(
            dtype
        ),
        "edge_index": torch.from_numpy(np.concatenate(index, axis=1)),
        # MACE's vectors point from sender to receiver
        "shifts": real([-graph["shift"] @ graph["cell"] for graph in graphs]),
        "unit_shifts": real([-graph["shift"] for graph in graphs]),
        "cell": real([graph["cell"] for graph in graphs]),
        "batch": torch.from_numpy(np.repeat(np.arange(len(graphs)), np.diff(offsets))),
        "ptr": torch.from_numpy(offsets),
        "energy": torch.tensor([float(graph["energy"]) for graph in graphs], dtype=dtype),
        "forces": real([graph["forces"] for graph in graphs]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="small", choices=tuple(SIZES))
    parser.add_argument("--max-ell", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    torch.set_default_dtype(dtype)
    model = prepare_for_compile(build)(args.model, args.max_ell)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)

    def prepare(path: str, outputs: str) -> Prepared:
        data = np.load(path)
        if outputs.startswith("training"):
            return training(data, int(outputs.split()[1]))
        model.requires_grad_(False)
        graph = batch([dict(data)], dtype)

        def call():
            # A leaf per call and training=True, as the calculator has them when it compiles.
            positions = graph["positions"].clone().requires_grad_(True)
            return compiled({**graph, "positions": positions}, training=True)["forces"]

        return Prepared(call, len(data["numbers"]), len(data["sender"]))

    def training(data, n: int) -> Prepared:
        model.requires_grad_(True)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
        n_frames = sum(key.startswith("numbers_") for key in data.files)
        frames = [
            {key.rpartition("_")[0]: data[key] for key in data.files if key.endswith(f"_{k}")}
            for k in range(n_frames)
        ]
        batches = [batch(frames[k : k + n], dtype) for k in range(0, n_frames - n + 1, n)]
        turn = itertools.cycle(batches)

        def step():
            graph = next(turn)
            out = compiled(
                {**graph, "positions": graph["positions"].clone().requires_grad_(True)},
                training=True,
            )
            per_atom = (out["energy"] - graph["energy"]) / (graph["ptr"][1:] - graph["ptr"][:-1])
            loss = (
                per_atom.square().mean() + 10.0 * (out["forces"] - graph["forces"]).square().mean()
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        n_edges = sum(b["edge_index"].shape[1] for b in batches) // len(batches)
        return Prepared(step, len(batches[0]["positions"]), n_edges, frames=n)

    about = {
        "versions": {
            "mace-torch": version("mace-torch"),
            "torch": torch.__version__,
            "e3nn": version("e3nn"),
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "architecture": f"{N_LAYERS} layers, {SIZES[args.model]}, max_ell {args.max_ell}, "
        "correlation 3, r_max 5, radial MLP 64 64",
        "timed": "torch.compile'd forward pass and forces, from positions and a neighbour list",
    }
    serve(prepare, about)


if __name__ == "__main__":
    main()
