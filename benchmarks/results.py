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
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provenance import ROOT, now, processor

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
        stamp = {"machine": processor(), "date": now()}
        self.groups[name] = [{**record, **stamp} for record in records]
        with self.path.open("a") as file:
            file.write(json.dumps({"key": name, "records": self.groups[name]}) + "\n")

    def finish(self, path: Path) -> None:
        """Writes all records as one list, and forgets the journal: the next run starts anew."""
        write(path, [record for group in self.groups.values() for record in group])
        self.path.unlink()


def write(
    path: Path, records: Sequence[Mapping[str, Any]], about: Mapping[str, Any] | None = None
) -> None:
    """A JSON list, one record to a line; with `about`, {"about": ..., "records": the list}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(record) for record in records)
    text = f"[\n{rows}\n]"
    if about is not None:
        text = f'{{"about": {json.dumps(about)},\n"records": {text}}}'
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(path)


def said(about: Mapping[str, Any]) -> str:
    """The stamp of a run as a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    note = f" {about['note']}" if about.get("note") else ""
    return f"Measured on {about['machine']}, {about['date']}; {versions}.{note}"


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
