"""What interrupts a command of `race`: a signal at a random moment, a disk that is full, a folder
that cannot be written. The command ends without a traceback and leaves no half of a file; given
again, it ends with the result of a command that was left alone.
"""

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import yaml
from safetensors.numpy import load_file

import race
from tests.active.problem import write_problem
from tests.lammps.harness import environment
from tests.train.conftest import MODEL, labelled

from .runner import Outcome, Tally

SERVER = Path(__file__).parent / "forked.py"
SECONDS = 120.0
SIGNALS = {"killed": signal.SIGKILL, "terminated": signal.SIGTERM, "interrupted": signal.SIGINT}
KINDS = ("killed", "full disk", "killed", "terminated", "killed", "full disk", "interrupted")
NO_FOLDER = "/sys/kernel"  # where not even root makes files


@dataclass(frozen=True)
class Command:
    """argv, without the output that follows it. `result(output)` reads what interruptions must
    not change; tries: interruptions of it. fills: whether it can be tried on a full disk; a limit
    on files would be one on MPI's shared memory, too.
    """

    name: str
    argv: str
    output: str
    result: Callable[[Path], object]
    tries: int
    fills: bool = True


def weights(run: Path) -> dict[str, bytes]:
    found = load_file(run / "model.safetensors")
    return {name: found[name].tobytes() for name in sorted(found)}


def energy(artifact: Path) -> float:
    atoms = ase.io.read(artifact.parent / "copper.extxyz")
    atoms.calc = race.Calculator(artifact)
    return float(atoms.get_potential_energy())


def records(comparison: Path) -> list[dict[str, object]]:
    found = json.loads((comparison / "report.json").read_text())["records"]
    kept = ("strategy", "seed", "round", "n_labels", "split", "rmse_e", "rmse_f")
    return [{key: row[key] for key in kept} for row in found]


COMMANDS = (
    Command("train", "train train.yaml --out", "trained", weights, 24),
    Command(
        "fit",
        "fit run --posterior swag --epochs 6 --start 1 --every 0.4 --rank 5 --members 2 --out",
        "fitted",
        weights,
        21,
    ),
    Command("export", "export run -o", "new.race.pt", energy, 14),
    Command("predict", "predict model.race.pt copper.extxyz -o", "new.extxyz", Path.read_bytes, 14),
    Command(
        "select",
        "select run copper.extxyz --strategy maxdet --budget 4 -o",
        "chosen.extxyz",
        Path.read_bytes,
        14,
    ),
    Command("active", "active config.yaml --out", "compared", records, 11, fills=False),
)


class Server:
    """Commands in forks of one process, one at a time."""

    def __init__(self, folder: Path):
        paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            cwd=folder,
            env=environment() | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(
        self,
        argv: str,
        number: signal.Signals | None = None,
        after: float = 0.0,
        limit: int | None = None,
    ) -> tuple[int | None, str]:
        """Status (None: it hung) and output of a command, to which a signal is sent."""
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"argv": argv.split(), "limit": limit}
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        ended = select.select([self.process.stdout], [], [], after if number else SECONDS)[0]
        if number and not ended:
            os.kill(pid, number)
            ended = select.select([self.process.stdout], [], [], SECONDS)[0]
        if not ended:
            os.kill(pid, signal.SIGKILL)
        said = json.loads(self.process.stdout.readline())
        return said["status"] if ended else None, said["output"]

    def again(self, argv: str) -> tuple[int | None, str]:
        """What a user does: the same command, with --resume if that is the remedy given."""
        status, said = self.run(argv)
        return (
            self.run(f"{argv} --resume") if status == 2 and "--resume" in said else (status, said)
        )

    def close(self) -> None:
        self.process.communicate(timeout=SECONDS)


def prepare(folder: Path, server: Server) -> None:
    """Data, configs, a finished run and its artifact."""
    write_problem(folder)
    ase.io.write(folder / "copper.extxyz", [labelled(seed) for seed in range(12)])
    config = {
        "data": {"train": ["copper.extxyz"], "validation_fraction": 0.25},
        "model": MODEL,
        "train": {
            "epochs": 4,
            "batch_size": 3,
            "dtype": "float64",
            "n_threads": 1,
            "checkpoint_minutes": 0,
        },
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    for argv in ("train train.yaml --out run", "export run -o model.race.pt"):
        status, said = server.run(argv)
        assert status == 0, said


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def largest(path: Path) -> int:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return max(file.stat().st_size for file in files)


def interrupt(
    server: Server, folder: Path, command: Command, kinds: Sequence[str], chance: random.Random
) -> Iterator[tuple[str, Outcome, str]]:
    """Name, outcome and verdict of each interruption of one command."""
    argv, output = f"{command.argv} {command.output}", folder / command.output
    start = time.monotonic()
    status, said = server.run(argv)
    seconds = time.monotonic() - start
    assert status == 0, said
    expected, size = command.result(output), largest(output)
    for kind in kinds:
        remove(output)
        if kind in SIGNALS:
            after = chance.uniform(0.0, seconds)
            status, said = server.run(argv, SIGNALS[kind], after)
            name = f"{command.name}, {kind} after {after:.2f} s of {seconds:.2f} s"
        else:
            limit = chance.randrange(size)
            status, said = server.run(argv, limit=limit)
            name = f"{command.name}, {kind} at {limit} of {size} bytes"
        wrong = end_of(kind, status, said)
        if not wrong and output.is_file():  # whole, or not there
            wrong = differs(command, output, expected, said)
        if not wrong and status != 0:
            status, said = server.again(argv)
            wrong = "" if status in (0, 2) else f"status {status} of the next: {said[-600:]}"
        wrong = wrong or differs(command, output, expected, said)
        yield name, Outcome(hang=status is None), wrong
    remove(output)


def differs(command: Command, output: Path, expected: object, said: str) -> str:
    """What is wrong with a result; empty: nothing."""
    try:
        same = command.result(output) == expected
    except Exception as error:
        return f"no result ({error}) after: {said[-600:]}"
    return "" if same else "another result than undisturbed"


def end_of(kind: str, status: int | None, said: str) -> str:
    """What is wrong with the way in which a command ended; empty: nothing."""
    if "Traceback" in said:
        return f"a traceback: {said[-900:]}"
    allowed = {
        "killed": (0, -9),
        "terminated": (0, -15, 143),
        "interrupted": (0, 130),
        "full disk": (0, 2),
    }[kind]
    return "" if status in allowed else f"status {status}, not one of {allowed}: {said[-600:]}"


def unwritable(server: Server, command: Command) -> tuple[Outcome, str]:
    status, said = server.run(f"{command.argv} {NO_FOLDER}/{command.output}")
    line = [text for text in said.splitlines() if text.startswith("race ")]
    refused = status == 2 and "Traceback" not in said and NO_FOLDER in "".join(line)
    return Outcome(hang=status is None), "" if refused else f"status {status}: {said[-600:]}"


def run(folder: Path, seed: int = 0, commands: Sequence[Command] = COMMANDS) -> Tally:
    """folder: an empty one."""
    tally, chance = Tally("interruptions"), random.Random(seed)
    server = Server(folder)
    try:
        prepare(folder, server)
        for command in commands:
            possible = [kind for kind in KINDS if command.fills or kind in SIGNALS]
            kinds = [possible[k % len(possible)] for k in range(command.tries)]
            for name, outcome, wrong in interrupt(server, folder, command, kinds, chance):
                tally.count(name, outcome, wrong)
            tally.count(f"{command.name}, into {NO_FOLDER}", *unwritable(server, command))
    finally:
        server.close()
    return tally
