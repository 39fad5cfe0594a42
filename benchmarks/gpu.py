"""What RACE does on a GPU: six stages in order of worth, each with a budget of seconds.

    benchmarks/gpu.sh --out FOLDER               builds, then runs this file
    python benchmarks/gpu.py --out FOLDER [--only STAGE ...] [--dry-run]

Each stage is a process of its own. One that fails, hangs or runs out of its budget is
reported, and the next one starts. FOLDER/STAGE.json is written anew after every record.

In a dry run the CPU takes the GPU's place, and everything is tiny. CUDA's kernels run
in the emulation of tests/cpp if that is built (make cuda-check), anew if its sources
are newer; else librace's own for the CPU do. A dry run shows that every stage runs from
its first line to its last, and writes what it should. It cannot show: times; memory;
what nvcc makes of a kernel; launches of torch's own kernels; streams and waits;
compute-sanitizer and ncu, which it leaves out; two processes on one GPU; that the
budgets suffice.
"""

import argparse
import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import emulation
import in_lammps
import kernels
import race._race
import race_models
import race_worker
import results
import systems
import torch
from provenance import commit, now, processor
from timer import seconds_per_call

import race
from race.config import ModelConfig
from race.deploy.export import export_model
from race.errors import RaceError
from race.model.conv import conv_fused
from race.model.race import RACE

ROOT = Path(__file__).parents[1]
# eV, eV/Angstrom and their squares, relative to the largest value if that is above 1
TOLERANCE = {"float64": 1e-9, "float32": 5e-4}
SMALL_TESTS = (
    "tests/gpu/test_conv.py::test_the_same_bits_every_time",
    "tests/gpu/test_model.py::test_calculator[cholesky-float32]",
)
SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
COUNTERS = (
    *("ncu", "--clock-control", "none", "--csv", "--page", "details"),
    *("--kernel-name", "regex:gather_kernel|edge_kernel|row_kernel"),
    *("--section", "SpeedOfLight", "--section", "Occupancy"),
    *("--section", "MemoryWorkloadAnalysis", "--section", "LaunchStats"),
)
METRICS = (
    *("Duration", "Compute (SM) Throughput", "Memory Throughput", "DRAM Throughput"),
    *("L2 Hit Rate", "Registers Per Thread", "Theoretical Occupancy", "Achieved Occupancy"),
)


class Stage:
    """Where a stage runs, and its records on screen and in its file."""

    def __init__(self, name: str, out: Path, dry: bool):
        self.dry, self.path, self.records = dry, out / f"{name}.json", []
        self.device = "cpu" if dry else "cuda"
        if not dry and not torch.cuda.is_available():
            raise RaceError(
                "no GPU, or no torch for CUDA",
                where="gpu.py",
                expected="torch.cuda.is_available()",
                got=False,
                remedy="give --dry-run for a walk on the CPU",
            )
        self.emulated = dry and emulation.LIBRARY.exists()
        if self.emulated:
            torch.ops.load_library(emulation.LIBRARY)
        self.about = {
            "stage": name,
            "outcome": "under way",
            "device": "cpu" if dry else torch.cuda.get_device_name(),
            "emulated": self.emulated,
            "machine": processor(),
            "date": now(),
            "versions": {"race": race.__version__, "torch": torch.__version__, "commit": commit()},
        }
        results.write(self.path, [], self.about)

    def add(self, **record: object) -> None:
        self.records.append(record)
        print("  ".join(f"{key}={value}" for key, value in record.items()), flush=True)
        results.write(self.path, self.records, self.about)

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Inside, operators on the stage's device run CUDA's kernels, emulated or not."""
        if self.emulated:
            torch.ops.race_on_cpu.emulate(True)
        try:
            yield
        finally:
            if self.emulated:
                torch.ops.race_on_cpu.emulate(False)

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        """Status and output of a command, which is shown as it is received."""
        if shutil.which(command[0]) is None:
            return 127, f"{command[0]} is not installed"
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        return process.wait(), "".join(lines)

    def test(self, *arguments: str, tool: tuple[str, ...] = ()) -> None:
        """A record of tests of tests/gpu; tool: what they run under, not in a dry run."""
        under = () if self.dry else tool
        pytest = (sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider")
        status, output = self.run(*under, *pytest, *arguments, RACE_GPU_DEVICE=self.device)
        ends = [line for line in output.splitlines() if re.search(r" in [\d.]+s", line)]
        counts = re.findall(r"(\d+) (passed|failed|errors?|skipped)", ends[-1] if ends else "")
        found = {what: int(number) for number, what in counts}
        self.add(
            tests=" ".join(arguments),
            tool=tool[-1] if tool else None,
            right=status == 0 and found.get("passed", 0) > 0,
            **found,
            **({} if status == 0 else {"status": status, "end": output[-300:]}),
        )


def tests(stage: Stage) -> None:
    """tests/gpu, then the small ones under the sanitizer."""
    if not stage.dry:
        stage.test("tests/gpu/test_conv.py", "tests/gpu/test_model.py")
    for tool in ("memcheck", "racecheck"):
        stage.test(*SMALL_TESTS, tool=(*SANITIZER, tool))
        if stage.dry:
            return


def size(stage: Stage) -> str:
    return "tiny" if stage.dry else "small"


def graph(stage: Stage, name: str, copies: int = 1) -> Namespace:
    """Copies of a periodic box side by side, so that atoms have as many edges at any number."""
    options = race_models.SIZES[size(stage)]
    box = systems.graph(systems.structure(name), options["r_max"])
    n_atoms = len(box["numbers"])
    shift = torch.from_numpy(box["shift"] @ box["cell"])
    offset = n_atoms * torch.arange(copies)[:, None]
    numbers = {
        "species": torch.from_numpy(box["species"]).repeat(copies),
        "positions": torch.from_numpy(box["positions"]).repeat(copies, 1).to(stage.device),
        "shift": shift.to(stage.device).repeat(copies, 1),
    }
    for end in ("sender", "receiver"):
        numbers[end] = (torch.from_numpy(box[end])[None] + offset).ravel()
    degree = torch.bincount(numbers["receiver"], minlength=n_atoms * copies)
    row_ptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    return Namespace(**numbers, row_ptr=row_ptr, n_atoms=n_atoms * copies)


def correctness(stage: Stage) -> None:
    """Energies, forces and covariances of the device against those of the CPU in float64."""
    g = graph(stage, "Si-64" if stage.dry else "Si-512")
    cases = [(1, 1, 1), (2, 4, 3)] if stage.dry else product((1, 8), (1, 4), (1, 3))
    vector = (g.positions[g.sender] - g.positions[g.receiver] + g.shift).cpu()
    for members, n_species, correlation in cases:
        config = ModelConfig(
            **race_models.SIZES[size(stage)]
            | {"elements": systems.ELEMENTS[:n_species], "correlation": correlation}
            | {"n_members": members, "head": "cholesky"}
        )
        torch.manual_seed(0)
        species = torch.randint(0, n_species, (g.n_atoms,))
        arguments = (species, vector, g.sender, g.row_ptr)
        asked = {"members": True, "uncertainty": True}
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.race.pt"
            export_model(RACE.untrained(config), path)
            expected = race._race.load(path, "cpu", "float64").predict(*arguments, **asked)
            for dtype, allowed in TOLERANCE.items():
                with stage.kernels():
                    model = race._race.load(path, stage.device, dtype)
                    found = model.predict(*arguments, **asked)
                worst, quantity = max(
                    (relative(found[name].cpu().double(), values.double()), name)
                    for name, values in expected.items()
                )
                record = {"members": members, "species": n_species, "correlation": correlation}
                record |= {"dtype": dtype, "worst": worst, "quantity": quantity}
                stage.add(**record, allowed=allowed, right=worst <= allowed)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, divided by the largest value if that is above 1; nan is inf."""
    difference = (found - expected).abs().max() / expected.abs().max().clamp_min(1.0)
    return float(difference.nan_to_num(nan=float("inf")))


def step(stage: Stage) -> None:
    """A step from positions to forces on the device, neighbours being kept, as launches and as a
    CUDA graph: time, launches, reads and memory, for one member, and for eight with all forces
    and covariances.
    """
    sizes = {"Si-64": [1]} if stage.dry else {"Si-64": [1], "Si-1000": [1, 10, 100, 1000]}
    for members, head in ((1, "point"), (2 if stage.dry else 8, "cholesky")):
        with tempfile.TemporaryDirectory() as folder:
            path = race_models.artifact(Path(folder), size(stage), members, head)
            model = race._race.load(str(path), stage.device)
        for name, copies in sizes.items():
            for n in copies:
                for recorded in (False, True) if n <= 10 else (False,):  # up to 1e6 edges
                    os.environ["RACE_CUDA_GRAPH"] = str(int(recorded))
                    try:
                        found = one_step(stage, model, graph(stage, name, n), uncertain=members > 1)
                    except torch.OutOfMemoryError as error:
                        found = {"omitted": str(error).splitlines()[0], "system": name, "copies": n}
                    stage.add(members=members, recorded=recorded, **found)


def one_step(stage: Stage, model, g: Namespace, uncertain: bool) -> dict:
    topology = race._race.Topology(model, g.species, g.sender, g.row_ptr)
    sender, receiver = (t.to(stage.device) for t in (g.sender, g.receiver))
    displacement = 1e-4 * torch.randn_like(g.positions)  # Angstrom
    asked = {"members": uncertain, "uncertainty": uncertain, "on_device": True}

    def call():
        g.positions += displacement
        vector = g.positions.index_select(0, sender) - g.positions.index_select(0, receiver)
        return model.predict(topology, vector.add_(g.shift), **asked)

    on_gpu = not stage.dry
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with stage.kernels():
        seconds = seconds_per_call(call, 0.0 if stage.dry else 0.3, stage.device)
        counts = on_host(stage, call)
    record = {"n_atoms": g.n_atoms, "edges_per_atom": len(sender) / g.n_atoms}
    record |= {"ms_per_step": 1e3 * seconds, "us_per_atom": 1e6 * seconds / g.n_atoms, **counts}
    if on_gpu:
        used = torch.cuda.max_memory_allocated() - before
        record["bytes_per_atom"] = round(used / g.n_atoms)
    return record


def on_host(stage: Stage, call: Callable[[], object]) -> dict[str, int]:
    """Kernels that a call launches, and how often it waits for the device. In a dry run those of
    RACE's own kernels, where they are emulated.
    """
    if stage.dry:
        if not stage.emulated:
            return {}
        run = torch.ops.race_on_cpu
        launches, reads = run.launches(), run.reads()
        call()
        return {"launches": run.launches() - launches, "waits": run.reads() - reads}
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    names = Counter(event.name for event in profile.events())
    launches = sum(n for name, n in names.items() if name.startswith("cudaLaunchKernel"))
    waits, graphs = names["cudaStreamSynchronize"], names["cudaGraphLaunch"]
    return {"launches": launches, "graphs": graphs, "waits": waits}


def lammps(stage: Stage) -> None:
    """tests/gpu/test_lammps.py (an empty rank and the drift of NVE are there), and speed."""
    stage.test("tests/gpu/test_lammps.py", *(("-k", "empty") if stage.dry else ()))
    runs = ((64, 1), (64, 2)) if stage.dry else ((1000, 1), (100_000, 1), (1000, 2), (100_000, 2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = race_models.artifact(folder, size(stage))
        for n_atoms, ranks in runs:
            atoms = systems.structure(f"Si-{n_atoms}")
            steps = 10 if stage.dry else 100 if n_atoms < 10_000 else 20
            timing = in_lammps.simulate(
                folder, atoms, artifact, steps, ranks=ranks, device=stage.device
            )
            parts = {part: timing[part] / timing["Loop"] for part in ("Pair", "Neigh", "Comm")}
            us = 1e6 * timing["Loop"] / steps / len(atoms)
            stage.add(n_atoms=len(atoms), ranks=ranks, us_per_atom=us, **parts)


def training(stage: Stage) -> None:
    """Steps of the trainer on 3BPA, and those of one core beside them."""
    args = Namespace(model=size(stage), members=1, head="point", dtype="float32")
    batch = 2 if stage.dry else 16
    devices = ["cpu"] if stage.dry else ["cuda", "cpu"]
    torch.set_num_threads(1)
    for device in devices:
        prepared = race_worker.training(args, batch, device)
        seconds = seconds_per_call(prepared.call, 0.0 if stage.dry else 3.0, device)
        per_second = {"steps_per_second": 1 / seconds, "frames_per_second": batch / seconds}
        stage.add(trained_on=device, batch=batch, n_atoms=prepared.n_atoms, **per_second)


def convolution(stage: Stage) -> None:
    """The hardware's counters of the convolution's kernels: forward, backward, second order."""
    command = f"import gpu; gpu.convolve({stage.device!r}, {8 if stage.dry else 4096})"
    python = (sys.executable, "-c", command)
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *sys.path[1:]])}
    status, output = stage.run(*(() if stage.dry else COUNTERS), *python, **here)
    for record in counters(output):
        stage.add(**record)
    stage.add(right=status == 0, status=status, end=output[-300:])


def convolve(device: str, n_atoms: int) -> None:
    """Each order of the convolution of the small model, once."""
    name = next(iter(kernels.CONV))
    operands, rest = kernels.conv_operands(*kernels.CONV[name], torch.float32, n_atoms)
    operands = [t.detach().to(device).requires_grad_() for t in operands]
    rest = tuple(t.to(device) if isinstance(t, torch.Tensor) else t for t in rest)
    for call in kernels.conv_steps(conv_fused, operands, rest):
        call()
    print(f"convolved {name} of {n_atoms} atoms on {device}")


def counters(output: str) -> list[dict[str, str]]:
    """The METRICS of every launch in ncu's output."""
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(line for line in output.splitlines() if line.startswith('"')):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"][:80]})
        if row["Metric Name"] in METRICS:
            launch[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(launches.values())


STAGES: dict[str, tuple[int, Callable[[Stage], None]]] = {
    "tests": (110, tests),
    "correctness": (40, correctness),
    "step": (70, step),
    "lammps": (80, lammps),
    "training": (30, training),
    "convolution": (50, convolution),
}


def run_stage(name: str, out: Path, dry: bool) -> int:
    """0 if the stage reached its end and nothing in it was wrong."""
    stage = Stage(name, out, dry)
    STAGES[name][1](stage)
    return 0 if stage.records and all(r.get("right", True) for r in stage.records) else 1


def in_time(work: Callable[[], int], seconds: float) -> str:
    """Calls in a process, which is killed with its children when the time is over: how it ended.
    It is forked: this process must not have used a device, nor threads.
    """

    def alone() -> None:
        os.setsid()
        sys.exit(work())

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    process.join(seconds)
    status = process.exitcode
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    if status is None:
        return f"out of time after {seconds:.0f} s"
    return "done" if status == 0 else f"failed with status {status}"


def run_all(out: Path, names: list[str], seconds: float, dry: bool) -> dict[str, str]:
    """How each stage ended."""
    end = time.monotonic() + seconds
    outcomes = {}
    for name in names:
        path = out / f"{name}.json"
        path.unlink(missing_ok=True)
        print(f"\n== {name}", flush=True)
        begin = time.monotonic()
        budget = max(0.0, min(seconds if dry else STAGES[name][0], end - begin))
        outcomes[name] = in_time(lambda name=name: run_stage(name, out, dry), budget)
        found = json.loads(path.read_text()) if path.exists() else {"about": {}, "records": []}
        took = round(time.monotonic() - begin, 1)
        about = found["about"] | {"stage": name, "outcome": outcomes[name], "seconds": took}
        results.write(path, found["records"], about)
        print(f"== {name}: {outcomes[name]}, {took} s, {path}", flush=True)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--seconds", type=float, default=400.0, help="of all stages together")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.dry_run and emulation.LIBRARY.exists():
        try:
            emulation.update()  # here: a stage's budget is not for compilers
        except RaceError as error:
            sys.exit(f"gpu.py: {error}")
    outcomes = run_all(args.out, args.only, args.seconds, args.dry_run)
    print("\n".join(f"{name:12} {outcome}" for name, outcome in outcomes.items()))
    sys.exit(any(outcome != "done" for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
