"""NequIP behind benchmarks/protocol.py: AOTInductor and TorchScript as it deploys them, and
training steps as it compiles them.

A call is the deployed model's forward pass (energies of atoms, forces, virial) from
positions and a ready neighbour list; or one training step: forward, loss on energy and
forces, backward, Adam. NequIP 0.19 no longer offers TorchScript in `nequip-compile` from
torch 2.10 on; its own function for that still works, and is called here.
"""

import argparse
import itertools
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from e3nn.util.jit import script
from nequip.data import AtomicDataDict as Key
from nequip.model import NequIPGNNModel
from nequip.scripts._compile_utils import PAIR_NEQUIP_TARGET
from nequip.utils.aot import aot_export_model
from nequip.utils.compile import prepare_model_for_compile
from nequip.utils.global_state import set_global_state

sys.path.insert(0, str(Path(__file__).parents[1]))
from protocol import Prepared, serve  # noqa: E402

TYPES = ["H", "C", "N", "O", "Si"]
SIZES = {"small": (64, 1, 2), "l2": (64, 2, 2)}  # channels, l_max, layers


def build(size: str, dtype: str, mode: str) -> torch.nn.Module:
    channels, l_max, n_layers = SIZES[size]
    return NequIPGNNModel(
        seed=0,
        model_dtype=dtype,
        compile_mode=mode,
        type_names=TYPES,
        r_max=5.0,
        num_layers=n_layers,
        l_max=l_max,
        parity=False,
        num_features=channels,
        radial_mlp_depth=2,
        radial_mlp_width=64,
        num_bessels=8,
        polynomial_cutoff_p=6,
        avg_num_neighbors=28.0,
        per_type_energy_scales=dict.fromkeys(TYPES, 1.0),
        per_type_energy_shifts=dict.fromkeys(TYPES, 0.0),
    )


def frame(graph: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A graph of systems.graph in NequIP's names; it takes positions in float64 whatever the
    model's dtype.
    """
    # A molecule: no edge crosses this box
    cell = graph["cell"] if np.any(graph["cell"]) else 100.0 * np.eye(3)
    return {
        Key.POSITIONS_KEY: torch.from_numpy(graph["positions"]),
        Key.EDGE_INDEX_KEY: torch.from_numpy(np.stack([graph["receiver"], graph["sender"]])),
        Key.ATOM_TYPE_KEY: torch.from_numpy(graph["species"]),
        Key.CELL_KEY: torch.from_numpy(cell).view(1, 3, 3),
        Key.EDGE_CELL_SHIFT_KEY: torch.from_numpy(graph["shift"]),
    }


def batch(graphs: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Several frames with their labels, as NequIP's data loader would join them."""
    frames = [frame(graph) for graph in graphs]
    counts = torch.tensor([len(graph["numbers"]) for graph in graphs])
    joined = {
        key: torch.cat([f[key] for f in frames]) for key in frames[0] if key != Key.EDGE_INDEX_KEY
    }
    starts = counts.cumsum(0) - counts
    joined[Key.EDGE_INDEX_KEY] = torch.cat(
        [f[Key.EDGE_INDEX_KEY] + start for f, start in zip(frames, starts, strict=True)], dim=1
    )
    joined[Key.BATCH_KEY] = torch.repeat_interleave(torch.arange(len(graphs)), counts)
    joined[Key.NUM_NODES_KEY] = counts
    joined[Key.TOTAL_ENERGY_KEY] = torch.tensor(
        [[float(graph["energy"])] for graph in graphs], dtype=torch.float64
    )
    joined[Key.FORCE_KEY] = torch.from_numpy(np.concatenate([graph["forces"] for graph in graphs]))
    return joined


def aotinductor(size: str, dtype: str, threads: int, example: dict[str, torch.Tensor], cache: Path):
    """The compiled model, from the cache if it is there; compiled for `threads`, as Inductor
    fixes its loops to a thread count.
    """
    path = (
        cache / f"nequip-{version('nequip')}-torch-{torch.__version__}"
        f"-{size}-{dtype}-{threads}.nequip.pt2"
    )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("partial-" + path.name)
        dims = {
            name: torch.export.Dim(f"num_{name}s", min=2, max=torch.inf)
            for name in ("node", "edge")
        }
        aot_export_model(
            model=build(size, dtype, "eager"),
            device="cpu",
            input_fields=PAIR_NEQUIP_TARGET["input"],
            output_fields=PAIR_NEQUIP_TARGET["output"],
            data=example,
            batch_map={"graph": torch.export.Dim.STATIC, **dims},
            output_path=str(partial),
        )
        partial.rename(path)
    return torch._inductor.aoti_load_package(str(path))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="small", choices=tuple(SIZES))
    parser.add_argument("--mode", required=True, choices=("aotinductor", "torchscript", "training"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_global_state()
    models: dict[str, torch.nn.Module] = {}

    def deployed(example: dict[str, torch.Tensor]) -> torch.nn.Module:
        if args.mode not in models:
            if args.mode == "aotinductor":
                models[args.mode] = aotinductor(
                    args.model, args.dtype, args.threads, example, args.cache
                )
            else:
                model = prepare_model_for_compile(build(args.model, args.dtype, "eager"), "cpu")
                models[args.mode] = torch.jit.freeze(script(model))
        return models[args.mode]

    def prepare(path: str, outputs: str) -> Prepared:
        data = np.load(path)
        if outputs.startswith("training"):
            return training(data, int(outputs.split()[1]))
        graph = frame(dict(data))
        model = deployed(graph)
        inputs = [graph[key] for key in PAIR_NEQUIP_TARGET["input"]]

        def call():
            if args.mode == "torchscript":
                return model(graph)[Key.FORCE_KEY]
            with torch.inference_mode():
                return model(inputs)

        if args.mode == "torchscript":
            for _ in range(4):  # profiled, then compiled again
                call()
        return Prepared(call, len(data["numbers"]), len(data["sender"]))

    def training(data, n: int) -> Prepared:
        if "training" not in models:
            models["training"] = build(args.model, args.dtype, "compile")
        model = models["training"]
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
        n_frames = sum(key.startswith("numbers_") for key in data.files)
        frames = [
            {key.rpartition("_")[0]: data[key] for key in data.files if key.endswith(f"_{k}")}
            for k in range(n_frames)
        ]
        batches = [batch(frames[k : k + n]) for k in range(0, n_frames - n + 1, n)]
        turn = itertools.cycle(batches)

        def step():
            labelled = next(turn)
            out = model(
                {
                    key: value
                    for key, value in labelled.items()
                    if key not in (Key.TOTAL_ENERGY_KEY, Key.FORCE_KEY)
                }
            )
            per_atom = (out[Key.TOTAL_ENERGY_KEY] - labelled[Key.TOTAL_ENERGY_KEY]) / labelled[
                Key.NUM_NODES_KEY
            ].unsqueeze(1)
            loss = (
                per_atom.square().mean()
                + 10.0 * (out[Key.FORCE_KEY] - labelled[Key.FORCE_KEY]).square().mean()
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        n_edges = sum(b[Key.EDGE_INDEX_KEY].shape[1] for b in batches) // len(batches)
        return Prepared(step, len(batches[0][Key.POSITIONS_KEY]), n_edges, frames=n)

    channels, l_max, n_layers = SIZES[args.model]
    irreps = "+".join(f"{channels}x{l}{'eo'[l % 2]}" for l in range(l_max + 1))  # noqa: E741
    about = {
        "versions": {
            "nequip": version("nequip"),
            "torch": torch.__version__,
            "e3nn": version("e3nn"),
        },
        "parameters": sum(p.numel() for p in build(args.model, args.dtype, "eager").parameters()),
        "architecture": f"{n_layers} layers, {irreps}, l_max {l_max}, r_max 5, radial MLP 64 64",
        "timed": "forward pass of the deployed model with forces and virial, from positions and a "
        "neighbour list",
    }
    serve(prepare, about)


if __name__ == "__main__":
    main()
