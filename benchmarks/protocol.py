"""Timing across processes: workers that repeat a call on request, and the parent that asks
them in turn.

Each code runs in a process of its own (own environment, own thread count) and waits on
its standard input while others run. A request and its answer are one line of JSON each;
answers have a pipe of their own, as libraries print to standard output:

    (start)                                                   -> {"versions": {...},
                                                              "timed": "what a call does"}
    {"do": "load", "system": "x.npz", "outputs": "forces"}    -> {"n_atoms": ..,
                                                              "n_edges": .., "frames": ..,
                                                              "call": seconds}
    {"do": "time", ..., "seconds": 0.4}                       -> {"wall": [seconds of each
                                                              call], "cpu": seconds of all
                                                              calls}
    {"do": "memory", ...}                                     -> {"bytes": peak resident
                                                              memory of a call, above that
                                                              before it}

`load` calls once (which may compile), then times a second call. No import but the
standard library: every environment has it.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ANSWERS = "RACE_BENCHMARK_ANSWERS"  # file descriptor


@dataclass
class Prepared:
    """What a worker repeats: one evaluation of a system, or one training step on `frames`
    frames (0: no training).
    """

    call: Callable[[], object]
    n_atoms: int
    n_edges: int
    frames: int = 0


def serve(prepare: Callable[[str, str], Prepared], hello: dict) -> None:
    """Answers requests until standard input closes. `prepare(npz path, outputs)` is asked
    once for each pair.
    """
    answers = os.fdopen(int(os.environ.get(ANSWERS, "1")), "w", buffering=1)
    print(json.dumps(hello), file=answers)
    ready: dict[tuple[str, str], Prepared] = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = request["system"], request["outputs"]
        try:
            if request["do"] == "load":
                ready[key] = prepare(*key)
                answer = _load(ready[key])
            elif request["do"] == "time":
                answer = _time(ready[key].call, request["seconds"])
            else:
                answer = {"bytes": peak_memory(ready[key].call)}
        except Exception as error:
            traceback.print_exc()
            first = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first}"[:200]}
        print(json.dumps(answer), file=answers)


def _load(prepared: Prepared) -> dict:
    prepared.call()
    start = time.perf_counter()
    prepared.call()
    seconds = time.perf_counter() - start
    return {
        "n_atoms": prepared.n_atoms,
        "n_edges": prepared.n_edges,
        "frames": prepared.frames,
        "call": seconds,
    }


def _time(call: Callable[[], object], seconds: float) -> dict:
    gc.collect()
    wall, cpu, begin = [], time.process_time(), time.perf_counter()
    while not wall or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        wall.append(time.perf_counter() - start)
    return {"wall": wall, "cpu": time.process_time() - cpu}


def peak_memory(call: Callable[[], object]) -> int:
    """Linux's high-water mark of resident memory during a call, less what was resident
    before, in bytes.
    """
    gc.collect()
    # Blocks that malloc kept from earlier calls count for this one
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    # The high-water mark starts again from what is resident now
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return 1024 * int(line.split()[1])


class WorkerError(Exception):
    """A worker ended, or answered with an error."""


class Worker:
    """One worker process, as its parent sees it.

    Args:
        command: the process; what it prints goes to `log`.
        threads: OpenMP threads.
        environment: added to the parent's.
    """

    def __init__(
        self, command: list[str], threads: int, log: Path, environment: dict[str, str] | None = None
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        settings = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            **(environment or {}),
        }
        reading, writing = os.pipe()
        self.answers = os.fdopen(reading)
        try:
            with log.open("w") as output:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    text=True,
                    bufsize=1,
                    env=settings | {ANSWERS: str(writing)},
                    pass_fds=[writing],
                )
        finally:
            os.close(writing)
        self.hello = self._read()

    def ask(self, do: str, system: str, outputs: str, **more) -> dict:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(
                json.dumps({"do": do, "system": system, "outputs": outputs, **more}) + "\n"
            )
        except BrokenPipeError:
            raise WorkerError(
                f"the worker ended (status {self.process.wait()}); see {self.log}"
            ) from None
        answer = self._read()
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _read(self) -> dict:
        line = self.answers.readline()
        if not line:
            raise WorkerError(f"the worker ended (status {self.process.wait()}); see {self.log}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.answers.close()
