"""Runs the contests: one worker process for each code, asked in turn, round by round.

python benchmarks/compare.py [--quick]
"""

import sys
import time
from pathlib import Path

import arguments
import contests
import race_models
import results
import systems
from contests import Contender, Contest
from protocol import Worker, WorkerError
from provenance import commit

SLOW = 2.0  # seconds: above it a code takes part in the first SLOW_ROUNDS rounds only
SLOW_ROUNDS = 2
N_FRAMES = 64
TRAINING_STEP = "one training step: energies, forces, loss on both, gradients, Adam"


class Field:
    """The workers of one contest, dtype and thread count; contenders with one command
    share a process.
    """

    def __init__(self, contest: Contest, dtype: str, threads: int):
        self.dtype, self.threads = dtype, threads
        self.workers: dict[tuple[str, ...], Worker] = {}
        self.reasons: dict[tuple[str, ...], str] = {}
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(results.BUILD / "inductor"), "PYTHONPATH": ""}
        for k, command in enumerate(
            dict.fromkeys(contender.command for contender in contest.contenders)
        ):
            log = (
                results.BUILD
                / "logs"
                / f"{contest.name}-{contest.contenders[0].size}-{dtype}-{threads}-{k}.log".replace(
                    " ", "-"
                )
            )
            arguments = [*command, "--dtype", dtype, "--threads", str(threads)]
            try:
                self.workers[command] = Worker(arguments, threads, log, environment)
            except (OSError, WorkerError) as error:
                self.reasons[command] = str(error)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def npz(system: str, contender: Contender) -> Path:
    """The file of a system, with the neighbours that the contender's cutoff gives."""
    r_max = race_models.config(contender.size).r_max
    folder = results.BUILD / "systems" / f"{r_max:g}"
    if " x " in system:  # molecule x frames of a batch
        path = folder / "frames.npz"
        return path if path.exists() else systems.write_frames(path, N_FRAMES, r_max)
    path = folder / f"{system}.npz"
    return path if path.exists() else systems.write(path, system, r_max)


def measure(
    contest: Contest, field: Field, system: str, seconds: float, n_rounds: int
) -> list[dict]:
    """The records of all contenders on one system."""
    loaded: dict[Contender, dict] = {}
    reasons: dict[Contender, str] = {}
    for contender in contest.contenders:
        say(
            f"  {contest.name:12} {system:12} {field.dtype} {field.threads} thread(s): load "
            f"{contender.model} x{contender.members}"
        )
        try:
            if contender.command not in field.workers:
                raise WorkerError(field.reasons[contender.command])
            loaded[contender] = ask(field, contender, system, "load")
            if (call := loaded[contender]["call"]) > contest.limit:
                reasons[contender] = (
                    f"one call takes {call:.0f} s, more than the {contest.limit:g} s allowed"
                )
        except WorkerError as error:
            reasons[contender] = str(error)
    racing = [contender for contender in contest.contenders if contender not in reasons]
    rounds: dict[Contender, list[dict]] = {contender: [] for contender in racing}
    for k in range(n_rounds):
        say(
            f"  {contest.name:12} {system:12} {field.dtype} {field.threads} thread(s): round "
            f"{k + 1}/{n_rounds}"
        )
        for contender in racing if k % 2 == 0 else reversed(racing):
            if contender in reasons or (k >= SLOW_ROUNDS and loaded[contender]["call"] > SLOW):
                continue
            try:
                rounds[contender].append(ask(field, contender, system, "time", seconds=seconds))
            except WorkerError as error:
                reasons[contender] = str(error)
    records = []
    for contender in contest.contenders:
        record = describe(contest, contender, field, system, loaded.get(contender))
        if contender in reasons:
            record |= {"us_per_atom": None, "omitted": reasons[contender]}
        else:
            record |= results.timing(rounds[contender], loaded[contender]["n_atoms"])
            if frames := loaded[contender]["frames"]:
                steps = 1e6 / (record["us_per_atom"] * record["n_atoms"])
                record |= {"steps_per_second": steps, "configurations_per_second": frames * steps}
            if system in contest.memory and field.threads == 1:
                record["bytes_per_atom"] = (
                    ask(field, contender, system, "memory")["bytes"] / record["n_atoms"]
                )
        records.append(record)
        show(record)
    return records


def ask(field: Field, contender: Contender, system: str, do: str, **more) -> dict:
    what = (
        f"training {system.partition(' x ')[2]}" if contender.ask == "training" else contender.ask
    )
    return field.workers[contender.command].ask(do, str(npz(system, contender)), what, **more)


def describe(
    contest: Contest, contender: Contender, field: Field, system: str, loaded: dict | None
) -> dict:
    worker = field.workers.get(contender.command)
    hello = (
        worker.hello
        if worker
        else {"versions": {}, "architecture": "", "parameters": None, "timed": ""}
    )
    versions = hello["versions"] | (
        {"commit": commit()} if contender.model.startswith("RACE") else {}
    )
    n_atoms, n_edges = (loaded["n_atoms"], loaded["n_edges"]) if loaded else (None, None)
    return {
        "contest": contest.name,
        "system": system,
        "n_atoms": n_atoms,
        "edges_per_atom": round(n_edges / n_atoms, 1) if n_atoms else None,
        "model": contender.model,
        "size": contender.size,
        "architecture": hello["architecture"],
        "parameters": hello["parameters"],
        "members": contender.members,
        "outputs": contender.outputs,
        "dtype": field.dtype,
        "threads": field.threads,
        "versions": versions,
        "timed": TRAINING_STEP if contest.name == "training" else hello["timed"],
    }


def show(record: dict) -> None:
    what = f"{record['model']} x{record['members']}, {record['outputs']}"
    if record["us_per_atom"] is None:
        say(f"    {what:72} omitted: {record['omitted']}", end="\n")
        return
    memory = (
        f", {record['bytes_per_atom'] / 1024:.0f} KiB/atom" if "bytes_per_atom" in record else ""
    )
    disturbed = record["us_per_atom"] * record["threads"] / record["cpu_us_per_atom"]
    note = (
        f"  (disturbed: wall clock {disturbed:.2f} x processor time)"
        if record["threads"] == 1 and disturbed > 1.05
        else ""
    )
    say(f"    {what:72} {record['us_per_atom']:9.2f} us/atom{memory}{note}", end="\n")


def say(text: str, end: str = "\r") -> None:
    """A line that the next one overwrites, unless `end` is a newline; nothing transient
    into files.
    """
    if end == "\n" or sys.stdout.isatty():
        print(f"\r\033[K{text}" if sys.stdout.isatty() else text, end=end, flush=True)


def run(journal: results.Journal, plan: tuple[Contest, ...], seconds: float, n_rounds: int) -> None:
    for contest in plan:
        for dtype in contest.dtypes:
            for threads in contest.threads:
                keys = {
                    system: (contest.name, contest.contenders[0].size, system, dtype, threads)
                    for system in contest.systems
                }
                left = [system for system, key in keys.items() if not journal.done(*key)]
                if not left:
                    continue
                start = time.monotonic()
                print(
                    f"{contest.name}, {contest.contenders[0].size}, {dtype}, {threads} thread(s)",
                    flush=True,
                )
                field = Field(contest, dtype, threads)
                try:
                    for system in left:
                        say(f"  {system}", end="\n")
                        journal.add(
                            measure(contest, field, system, seconds, n_rounds), *keys[system]
                        )
                finally:
                    field.close()
                print(f"  {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    quick = arguments.quick(__doc__)
    journal = results.Journal("quick" if quick else "full")
    run(
        journal,
        contests.QUICK if quick else contests.FULL,
        *((0.1, 2) if quick else (0.4, 5)),
    )


if __name__ == "__main__":
    main()
