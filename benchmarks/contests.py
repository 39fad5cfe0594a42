"""What is compared with what. The codes of one contest alternate in one process tree, on the
same systems, dtype and threads.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENTS = Path(os.environ.get("BENCH_ENVIRONMENTS", HERE.parent / ".bench-venv"))
MAX_ELL = {"small": 2, "l2": 3}  # of MACE's edges: one above the features
ENERGY = "energy, forces"
MEAN = "energy, mean forces"
LED = "energy, forces of one member; every member's forces, 3x3 total covariance every 100 steps"
COVARIANCE = "energy, forces, 3x3 aleatoric covariance"
STEP = "training step"
ENSEMBLE = "energy, every member's forces, 3x3 total covariance"


@dataclass(frozen=True)
class Contender:
    """One code in one configuration.

    model, members, outputs: as in the record; ask: what its worker is asked for; command:
    its worker, less --dtype and --threads.
    """

    model: str
    size: str
    outputs: str
    ask: str
    command: tuple[str, ...]
    members: int = 1


@dataclass(frozen=True)
class Contest:
    name: str
    contenders: tuple[Contender, ...]
    systems: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32",)
    threads: tuple[int, ...] = (1,)
    # Systems of which the peak memory is measured as well, on one thread
    memory: tuple[str, ...] = field(default=())
    limit: float = (
        10.0  # seconds: a code whose single call takes longer is left out, and its record says so
    )


def race(size: str, outputs: str, ask: str, members: int = 1, head: str = "point") -> Contender:
    command = (
        sys.executable,
        str(HERE / "race_worker.py"),
        "--model",
        size,
        "--members",
        str(members),
        "--head",
        head,
    )
    return Contender("RACE", size, outputs, ask, command, members)


def unfolded(size: str, outputs: str, ask: str, head: str) -> Contender:
    command = (
        sys.executable,
        str(HERE / "race_worker.py"),
        "--model",
        size,
        "--head",
        head,
        "--implementation",
        "reference",
    )
    return Contender("RACE, unfolded e3nn", size, outputs, ask, command)


def peer(model: str, size: str, outputs: str, ask: str, *options: str) -> Contender:
    name = model.split()[0].lower()
    script = str(HERE / "peers" / f"{name}_worker.py")
    return Contender(
        model,
        size,
        outputs,
        ask,
        (str(ENVIRONMENTS / name / "bin" / "python"), script, "--model", size, *options),
    )


def inference(size: str, head: str) -> tuple[Contender, ...]:
    return (
        race(size, ENERGY, "forces"),
        race(size, MEAN, "forces", head=head),
        race(size, COVARIANCE, "covariance", head=head),
        race(size, MEAN, "forces", members=8, head=head),
        race(size, ENSEMBLE, "covariance", members=8, head=head),
        peer("NequIP AOTInductor", size, ENERGY, "forces", "--mode", "aotinductor"),
        peer("NequIP TorchScript", size, ENERGY, "forces", "--mode", "torchscript"),
        peer("MACE compiled", size, ENERGY, "forces", "--max-ell", str(MAX_ELL[size])),
    )


TRAINING = (
    race("small", STEP, "training"),
    race("small", STEP, "training", members=8),
    peer("NequIP compiled", "small", STEP, "training", "--mode", "training"),
    peer("MACE compiled", "small", STEP, "training", "--max-ell", str(MAX_ELL["small"])),
)


SYSTEMS = ("Si-512", "3BPA", "Si-4096", "water")  # compilers take the first for typical
THREADS = (1, 2)
BATCHES = ("3BPA x 5", "3BPA x 16")
PAPER = "race-3bpa"
PAPER_BATCH = ("3BPA x 2",)  # the paper's
PAPER_INFERENCE = (
    race(PAPER, COVARIANCE, "covariance", head="cholesky"),
    unfolded(PAPER, COVARIANCE, "covariance", "cholesky"),
)
PAPER_TRAINING = (race(PAPER, STEP, "training"), unfolded(PAPER, STEP, "training", "point"))
SAME_ELL = (
    race("small", ENERGY, "forces"),
    peer("MACE compiled, max_ell 1", "small", ENERGY, "forces", "--max-ell", "1"),
)

# What matters most comes first: a run that is stopped leaves the rest for the next.
FULL = (
    Contest(
        "inference",
        inference("small", "cholesky"),
        SYSTEMS,
        ("float32",),
        THREADS,
        memory=("Si-4096",),
    ),
    Contest("training", TRAINING, BATCHES, memory=BATCHES),
    Contest("inference", PAPER_INFERENCE, ("3BPA",), memory=("3BPA",)),
    Contest("latency", (race("small", ENERGY, "forces"),), ("Si-64",), ("float32",)),
    Contest("training", PAPER_TRAINING, PAPER_BATCH, memory=PAPER_BATCH, limit=60.0),
    Contest(
        "inference",
        inference("small", "cholesky"),
        SYSTEMS,
        ("float64",),
        THREADS,
        memory=("Si-4096",),
    ),
    Contest("same l", SAME_ELL, ("Si-512",)),
    Contest("inference", inference("l2", "equivariant"), ("Si-512",)),
)
QUICK = (
    Contest("inference", inference("small", "cholesky"), ("Si-512", "3BPA"), memory=("Si-512",)),
    Contest("latency", (race("small", ENERGY, "forces"),), ("Si-64",)),
    Contest("inference", PAPER_INFERENCE, ("3BPA",), memory=("3BPA",)),
    Contest("training", TRAINING, BATCHES[:1], memory=BATCHES[:1]),
)
