"""Many LAMMPS inputs in few processes, under a watchdog, and the counts of what came of them."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lammps.harness import environment

WORKER = Path(__file__).parent / "worker.py"
SECONDS = 60.0  # for one case; the slowest take one
PER_PROCESS = 150  # cases


@dataclass(frozen=True)
class Outcome:
    """What one case did: `error` (LAMMPS's message, without the echo of the input line) or
    `energy`, or the end of its process.
    """

    energy: float | None = None
    error: str | None = None
    crash: str | None = None
    hang: bool = False


@dataclass(frozen=True)
class Case:
    """An input and what it may do. `judge(outcome)` says what is wrong with an outcome that
    is no crash or hang; empty: nothing.
    """

    name: str
    commands: str
    judge: Callable[[Outcome], str]


@dataclass
class Tally:
    """Counts of a block, and one line for each case that went wrong."""

    block: str
    tried: int = 0
    good: int = 0
    crashes: int = 0
    hangs: int = 0
    wrong: int = 0
    trouble: list[str] = field(default_factory=list)

    def count(self, name: str, outcome: Outcome, verdict: str) -> None:
        self.tried += 1
        self.crashes += outcome.crash is not None
        self.hangs += outcome.hang
        bad = "crash: " + outcome.crash if outcome.crash else "hang" if outcome.hang else verdict
        self.wrong += not (outcome.crash or outcome.hang) and bool(verdict)
        self.good += not bad
        if bad:
            self.trouble.append(f"{self.block}, {name}: {bad}")

    def __add__(self, other: "Tally") -> "Tally":
        numbers = {
            key: getattr(self, key) + getattr(other, key)
            for key in ("tried", "good", "crashes", "hangs", "wrong", "trouble")
        }
        return Tally("total", **numbers)

    def __str__(self) -> str:
        return (
            f"{self.block}: {self.tried} tried, {self.good} refused or equal, {self.crashes} "
            f"crashes, {self.hangs} hangs, "
            f"{self.wrong} silently wrong"
        )


def refused(*words: str) -> Callable[[Outcome], str]:
    """LAMMPS must have refused, in words that contain each of these."""

    def judge(outcome: Outcome) -> str:
        if outcome.error is None:
            return f"not refused, energy {outcome.energy}"
        missing = [word for word in words if word.lower() not in outcome.error.lower()]
        return f"expected {missing} in: {outcome.error}" if missing else ""

    return judge


def run_block(block: str, cases: Sequence[Case], folder: Path, seconds: float = SECONDS) -> Tally:
    tally = Tally(block)
    for case, outcome in zip(
        cases, outcomes([case.commands for case in cases], folder, seconds), strict=True
    ):
        tally.count(
            case.name, outcome, "" if outcome.crash or outcome.hang else case.judge(outcome)
        )
    return tally


def outcomes(commands: Sequence[str], folder: Path, seconds: float = SECONDS) -> Iterator[Outcome]:
    """One for each input, in order."""
    done = 0
    while done < len(commands):
        batch = commands[done : done + PER_PROCESS]
        (folder / "cases.json").write_text(json.dumps(batch))
        k = 0
        while k < len(batch):
            for outcome in _process(folder, k, len(batch), seconds):
                k += 1
                yield outcome
        done += len(batch)


def _process(folder: Path, first: int, n_cases: int, seconds: float) -> Iterator[Outcome]:
    """One worker, to its end: of the last case, or at the one that crashed or hung."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER), "cases.json", str(first)],
        cwd=folder,
        env=environment(),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    case = first
    try:
        while case < n_cases:
            try:
                line = lines.get(timeout=seconds)
            except queue.Empty:
                yield Outcome(hang=True)
                return
            if line is None:
                status = process.wait(timeout=seconds)
                yield Outcome(
                    crash=signal.Signals(-status).name
                    if status < 0
                    else f"ended with status {status}"
                )
                return
            if not line.startswith('{"end"'):
                continue
            said = json.loads(line)
            error = said.get("error")
            yield Outcome(
                energy=said.get("energy"),
                error=None if error is None else error.split("\nLast input line")[0].strip(),
            )
            case += 1
    finally:
        if process.poll() is None and case < n_cases:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=seconds)


def _pump(stream, lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)
