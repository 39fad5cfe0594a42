"""Records of a run: appended to a journal as they are measured, so that a run that was
stopped goes on; at the end one list in JSON.

One record:
    contest, system, n_atoms, edges_per_atom
    model, size, architecture, parameters, members, outputs, dtype, threads, ranks (LAMMPS only)
    us_per_atom         median over all calls, wall clock; of a training step too. None if omitted
    us_per_atom_rounds  median of each round; rounds of one contest and system alternate,
    so ratios are taken round by round
    cpu_us_per_atom     processor time of all threads: more than `threads` apart from the
                        wall clock means a disturbed run
    calls, timed        how many, and what one is
    bytes_per_atom      peak resident memory of a call above that before it, where it was measured
    configurations_per_second, steps_per_second         training only
    omitted             the reason why there is no figure
    versions, machine, date
"""

import json
import os
import platform
import statistics
import subprocess
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
FINAL = Path(__file__).parent / "results" / "cpu.json"
REQUIRED = (
    "contest",
    "system",
    "model",
    "members",
    "outputs",
    "dtype",
    "threads",
    "us_per_atom",
    "versions",
    "machine",
    "date",
)


class Journal:
    """build/bench/journal-NAME.jsonl: a line per group of records that are measured together."""

    def __init__(self, name: str):
        self.path = BUILD / f"journal-{name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.groups: dict[str, list[dict]] = {}
        for line in lines:
            try:
                group = json.loads(line)
            except ValueError:  # killed while writing: measured again
                continue
            self.groups[group["key"]] = group["records"]

    def done(self, *key: object) -> bool:
        return " / ".join(map(str, key)) in self.groups

    def add(self, records: list[dict], *key: object) -> None:
        """Records measured side by side; stamped with machine and date."""
        name = " / ".join(map(str, key))
        stamp = {
            "machine": machine(),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        }
        self.groups[name] = [{**record, **stamp} for record in records]
        with self.path.open("a") as file:
            file.write(json.dumps({"key": name, "records": self.groups[name]}) + "\n")

    def finish(self, path: Path) -> None:
        """Writes all records as one list, and forgets the journal: the next run starts anew."""
        records = [record for group in self.groups.values() for record in group]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n")
        self.path.unlink()


def machine() -> str:
    """Processor and number of cores."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def commit() -> str:
    """Of the working tree, with a + if it differs."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def timing(rounds: list[dict], n_atoms: int) -> dict:
    """Answers of a worker to `time`, one for each round -> the timing fields of a record."""
    unit = 1e6 / n_atoms
    calls = [seconds for one in rounds for seconds in one["wall"]]
    return {
        "us_per_atom": statistics.median(calls) * unit,
        "us_per_atom_rounds": [round(statistics.median(one["wall"]) * unit, 4) for one in rounds],
        "cpu_us_per_atom": sum(one["cpu"] for one in rounds) / len(calls) * unit,
        "calls": len(calls),
    }


def find(records: list[dict], **fields: object) -> dict | None:
    """The one record with these fields that has a figure, or None."""
    found = [
        r
        for r in records
        if all(r.get(name) == value for name, value in fields.items())
        and r["us_per_atom"] is not None
    ]
    if len(found) > 1:
        raise ValueError(f"{len(found)} records with {fields}")
    return found[0] if found else None


def ratio(slow: dict | None, fast: dict | None) -> float | None:
    """Median over paired rounds of time(slow) / time(fast)."""
    if slow is None or fast is None:
        return None
    pairs = zip(slow["us_per_atom_rounds"], fast["us_per_atom_rounds"], strict=False)
    return statistics.median(a / b for a, b in pairs)
