"""Models of every kind, as LAMMPS and Python have them, for the physics block."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import race
from race.deploy.export import alone, export_model

from ..conftest import small_model

CUTOFF = 3.2  # Angstrom, of all models
SIZE = dict(
    n_layers=2,
    n_members=2,
    irreps_hidden="6x0e+2x0o+4x1o+2x1e+3x2e",
    n_features=4,
    readout_hidden=8,
)
DISTANCES = {"B-B": 2.0, "B-N": 1.2, "B-O": 1.2, "N-N": 2.0, "N-O": 1.4, "O-O": 1.6}


@dataclass(frozen=True)
class Kind:
    """A kind of model: changes of SIZE, and words of pair_style race with the same for Python.
    float32 resolves no finite differences; the `cholesky` covariance does not turn.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    words: str = ""
    python: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    turns: bool = True

    @property
    def tolerance(self) -> float:
        """Of what is the same but for rounding, relative to the largest value, or to 1."""
        return 1e-9 if self.exact else 5e-4


KINDS = {
    "three layers": Kind(dict(n_layers=3, n_members=3)),
    "one layer": Kind(dict(n_layers=1, head="energy", n_members=4)),
    "products and gate": Kind(dict(correlation=3, gate=True)),
    "cholesky": Kind(dict(head="cholesky"), turns=False),
    "evidential": Kind(dict(head="evidential", n_members=1, correlation=2)),
    "eip": Kind(dict(head="eip", n_members=1), turns=False),
    "led by a member": Kind(dict(n_members=3), "lead 2", dict(lead=2)),
    "float32": Kind(dict(n_members=3), "dtype float32", dict(dtype="float32"), exact=False),
}


@dataclass(frozen=True)
class Subject:
    """A model of one kind."""

    name: str
    kind: Kind
    artifact: Path

    @property
    def pair(self) -> str:
        """Arguments of pair_style race."""
        return f"{self.artifact} {self.kind.words}"

    def calculator(self) -> race.Calculator:
        return race.Calculator(self.artifact, **self.kind.python)


def subjects(folder: Path, names: Sequence[str] = tuple(KINDS)) -> list[Subject]:
    made = []
    for name in names:
        path = folder / f"{name.replace(' ', '_')}.race.pt"
        model = small_model(**{**SIZE, **KINDS[name].changes})
        leaders = alone(model) if "lead" in KINDS[name].words else None
        summary = {"training": {"cutoff": CUTOFF, "min_distance": DISTANCES}}
        export_model(model, path, summary=summary, leaders=leaders)
        made.append(Subject(name, KINDS[name], path))
    return made
