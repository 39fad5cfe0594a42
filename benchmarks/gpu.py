"""Timings on a GPU: the convolution, models of two sizes up to the largest structure that
fits, LAMMPS.

    benchmarks/gpu.sh                            builds, tests, then runs this file
    python benchmarks/gpu.py --device cpu --quick        a rehearsal anywhere

Records as in results.py, with `device`; kernels have us_per_edge and aten_us_per_edge, the
same in stock torch operations. bytes_per_atom is the peak of the device's memory above
that before; `largest` marks the most atoms that fitted. A failure is a record with
`omitted`, the reason, and does not stop the others.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import in_lammps
import kernels
import race._race
import race_models
import results
import systems
import torch
from provenance import stamp
from race_worker import Graph
from timer import seconds_per_call

from race.model.conv import conv_aten, conv_fused

OUTPUTS = {"energy, forces": False, "energy, forces, 3x3 covariance": True}
FIELDS = {"us_per_edge": conv_fused, "aten_us_per_edge": conv_aten}
SIZES = {"l1": "gpu-l1", "l3": "gpu-l3"}  # names in race_models


class Recorder:
    """Records on screen as they come and in the file after each: a run that is stopped
    loses nothing.
    """

    def __init__(self, path: Path, device: str):
        self.path, self.records = path, []
        name = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
        self.common = {"device": name, "cuda": str(torch.version.cuda), **stamp()}

    def add(self, **record) -> None:
        self.records.append(record | self.common)
        print("  ".join(f"{key}={value}" for key, value in record.items()), flush=True)
        results.write(self.path, self.records)


def reason(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error)


def time_kernels(args, recorder: Recorder) -> None:
    for n_atoms in (64,) if args.quick else (64, 4096):
        for name, case in kernels.CONV.items():
            for dtype in ("float32", "float64"):
                operands, rest = kernels.conv_operands(*case, getattr(torch, dtype), n_atoms)
                operands = [t.detach().to(args.device).requires_grad_() for t in operands]
                rest = tuple(t.to(args.device) if isinstance(t, torch.Tensor) else t for t in rest)
                for order, outputs in enumerate(kernels.ORDERS):
                    record = {
                        "contest": "kernel",
                        "system": f"{n_atoms} x {kernels.N_NEIGHBORS} edges",
                        "model": name,
                        "outputs": outputs,
                        "dtype": dtype,
                    }
                    for field, conv in (
                        ("us_per_edge", conv_fused),
                        ("aten_us_per_edge", conv_aten),
                    ):
                        try:
                            step = kernels.conv_steps(conv, operands, rest)[order]
                            seconds = seconds_per_call(step, args.seconds, args.device)
                            record[field] = 1e6 * seconds / len(rest[0])
                        except Exception as error:  # intermediates of stock torch need not fit
                            record[f"{field}_omitted"] = reason(error)
                    recorder.add(**record)


def predict_record(model, n_atoms: int, uncertain: bool, args) -> dict:
    """Timing and peak memory of a step of librace on silicon of about n_atoms: from positions
    on the device, others at each call, and neighbours that are kept, to results there.
    """
    with tempfile.TemporaryDirectory() as folder:
        graph = Graph(str(systems.write(Path(folder) / "si.npz", f"Si-{n_atoms}")))
    n, cuda = graph.n_atoms, args.device.startswith("cuda")
    topology = race._race.Topology(model, graph.species, graph.sender, graph.row_ptr)
    for name in ("sender", "receiver", "positions", "shift"):
        setattr(graph, name, getattr(graph, name).to(args.device))
    step = 1e-4 * torch.randn_like(graph.positions)  # Angstrom

    def call():
        graph.positions += step
        vector = graph.edge_vector(graph.positions)
        return model.predict(
            topology, vector, members=uncertain, uncertainty=uncertain, on_device=True
        )

    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = seconds_per_call(call, args.seconds, args.device)
    record = {"n_atoms": n, "edges_per_atom": graph.n_edges / n, "us_per_atom": 1e6 * seconds / n}
    if cuda:
        record["bytes_per_atom"] = round((torch.cuda.max_memory_allocated() - before) / n)
    return record


def time_models(args, recorder: Recorder) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            for members in args.members:
                common = {"contest": "model", "system": "Si", "model": name, "members": members}
                common |= {"dtype": "float32"}
                try:
                    path = race_models.artifact(Path(folder), size, members, "equivariant")
                    model = race._race.load(str(path), args.device)
                except Exception as error:
                    recorder.add(**common, omitted=reason(error))
                    continue
                for outputs, uncertain in OUTPUTS.items():
                    for record in growing(model, uncertain, args):
                        recorder.add(**common, outputs=outputs, **record)
                del model


def growing(model, uncertain: bool, args) -> Iterator[dict]:
    """A record for each size asked for, then one for the largest that fits, found from the
    memory per atom.
    """
    per_atom = 0
    for n_atoms in args.atoms:
        try:
            record = predict_record(model, n_atoms, uncertain, args)
        except Exception as error:
            yield {"n_atoms": n_atoms, "omitted": reason(error)}
            if not out_of_memory(error):
                return
            continue
        per_atom = record.get("bytes_per_atom", 0)
        yield record
    if not per_atom or args.quick:
        return
    free, _ = torch.cuda.mem_get_info()
    n_atoms = min(int(0.95 * free / per_atom), args.max_atoms)
    while n_atoms > args.atoms[0]:
        try:
            found = predict_record(model, n_atoms, uncertain, args)
            yield found | {"largest": n_atoms < args.max_atoms}
            return
        except Exception as error:
            if not out_of_memory(error):
                yield {"n_atoms": n_atoms, "omitted": reason(error)}
                return
        n_atoms = int(0.9 * n_atoms)


def time_lammps(args, recorder: Recorder) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, size in SIZES.items():
            for members in args.members:
                artifact = race_models.artifact(folder, size, members, "equivariant")
                for n_atoms in args.atoms:
                    atoms = systems.structure(f"Si-{n_atoms}")
                    for outputs, uncertain in OUTPUTS.items():
                        record = {
                            "contest": "lammps",
                            "system": "Si",
                            "n_atoms": len(atoms),
                            "model": model,
                            "members": members,
                            "outputs": outputs + ", every 20 steps" * uncertain,
                            "dtype": "float32",
                        }
                        every = 20 if uncertain else 0
                        try:
                            timing = in_lammps.simulate(
                                folder, atoms, artifact, args.steps, every, device=args.device
                            )
                            seconds = timing["Loop"] / args.steps
                            recorder.add(**record, us_per_atom=1e6 * seconds / len(atoms))
                        except Exception as error:
                            recorder.add(**record, omitted=reason(error))


CONTESTS = {"kernels": time_kernels, "model": time_models, "lammps": time_lammps}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", default=list(CONTESTS), choices=CONTESTS)
    parser.add_argument("--atoms", nargs="+", type=int, default=[1000, 10000, 100000])
    parser.add_argument("--members", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--max-atoms", type=int, default=4_000_000)
    parser.add_argument("--seconds", type=float, default=0.5, help="at least, for each figure")
    parser.add_argument("--steps", type=int, default=20, help="of LAMMPS, timed")
    parser.add_argument("--quick", action="store_true", help="smallest sizes only: a rehearsal")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    args = parser.parse_args()
    if args.quick:
        args.atoms, args.members, args.seconds, args.steps = [64], [1, 2], 0.01, 10
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            "gpu.py: torch.cuda.is_available() is False; expected a GPU and a CUDA build of torch, "
            "or --device cpu"
        )
    recorder = Recorder(args.out, args.device)
    for contest in args.only:
        print(f"== {contest}", flush=True)
        try:
            CONTESTS[contest](args, recorder)
        except Exception as error:  # a missing package, mostly
            recorder.add(contest=contest, omitted=reason(error))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
