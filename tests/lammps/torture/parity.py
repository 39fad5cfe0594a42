"""The same numbers on any grid of processors: energy, forces, virial, per-atom virials and
covariances, against one rank and Python.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase

from .. import systems
from ..compare import as_dict, difference, from_python
from ..conftest import ELEMENTS
from ..harness import Finished, Lammps, read_snapshot, thermo
from .runner import Outcome, Tally

SECONDS = 60.0  # for one structure; the slowest take three
# Tolerance against one rank and against Python in float64
DTYPES = {
    "float64": (1e-10, 1e-9),
    "float32": (5e-4, 5e-4),
}


@dataclass(frozen=True)
class Grid:
    """How the box is cut. `setup` stands before the box is made, `balance` before the run."""

    name: str
    ranks: int
    grid: str = "* * *"
    setup: str = ""
    balance: str = ""


TILED = "comm_style tiled"
REFUSED = (
    "comm_style tiled cannot exceed periodic box length"  # LAMMPS, of boxes smaller than the cutoff
)
NARROW = ("tiny", "needle")
GRIDS = (
    Grid("2x1x1", 2, "2 1 1"),
    Grid("1x2x1", 2, "1 2 1"),
    Grid("1x1x2", 2, "1 1 2"),
    Grid("3x1x1", 3, "3 1 1"),
    Grid("2x2x1", 4, "2 2 1"),
    Grid("1x2x2, newton off", 4, "1 2 2", "newton off"),
    Grid("1x1x5", 5, "1 1 5"),
    Grid("2x2x2, newton off", 8, "2 2 2", "newton off"),
    Grid("8x1x1", 8, "8 1 1"),  # ranks thinner than the cutoff, most of them empty in the slab
    Grid("shifted 4x1x1", 4, "4 1 1", balance="balance 1.0 shift x 10 1.01"),
    Grid("tiled RCB of 3", 3, setup=TILED, balance="balance 1.0 rcb"),
    Grid("tiled RCB of 4, newton off", 4, setup=f"{TILED}\nnewton off", balance="balance 1.0 rcb"),
)
SYSTEMS = {
    make.__name__: make
    for make in (
        systems.b2o3,
        systems.boron_nitride,
        systems.crystal,
        systems.tiny,
        systems.needle,
        systems.slab,
        systems.surface,
        systems.pore,
        systems.molecule,
        systems.atom,
    )
}


# Body orders within a layer: products of 1 to 3 factors, with a gate where there are several
CORRELATIONS = (1, 2, 3)
MODELS = (*((dtype, 1) for dtype in DTYPES), *(("float64", nu) for nu in CORRELATIONS[1:]))


@dataclass(frozen=True)
class Case:
    system: str
    dtype: str
    correlation: int = 1

    @property
    def name(self) -> str:
        return f"{self.system}_{self.dtype}_{self.correlation}"


@dataclass
class Bench:
    """Reads the references once: one rank, and Python. artifacts: by correlation."""

    run: Lammps
    artifacts: dict[int, Path]

    def __post_init__(self) -> None:
        self.atoms: dict[str, ase.Atoms] = {name: make() for name, make in SYSTEMS.items()}
        self.python = {
            (name, correlation): from_python(atoms, artifact, "float64")
            for correlation, artifact in self.artifacts.items()
            for name, atoms in self.atoms.items()
        }
        self.one_rank: dict[str, dict] = {}
        for dtype, correlation in MODELS:
            if correlation not in self.artifacts:
                continue
            pair = f"{self.artifacts[correlation]} dtype {dtype}"
            found = self.run.single_points(self.atoms, pair, ELEMENTS)
            self.one_rank |= {
                Case(name, dtype, correlation).name: as_dict(snapshot)
                for name, snapshot in found.items()
            }

    def start(self, grid: Grid, cases: Sequence[Case]) -> Finished:
        blocks = [
            self.run.block(
                case.name,
                self.atoms[case.system],
                ELEMENTS,
                grid=grid.grid,
                setup=grid.setup,
                before_run=grid.balance,
                pair=f"pair_style race {self.artifacts[case.correlation]} dtype {case.dtype}\n"
                f"pair_coeff * * {' '.join(ELEMENTS)}",
            )
            for case in cases
        ]
        return self.run.run("\nclear\n".join(blocks), grid.ranks, timeout=SECONDS * len(cases))

    def verdict(self, case: Case, found: dict) -> str:
        ranks, python = DTYPES[case.dtype]
        wrong = difference(found, self.one_rank[case.name], ranks)
        if wrong:
            return f"against one rank, {wrong}"
        wrong = difference(found, self.python[case.system, case.correlation], python)
        return f"against Python, {wrong}" if wrong else ""

    def results(self, grid: Grid, cases: Sequence[Case]) -> Iterator[tuple[Case, Outcome, str]]:
        """All cases in one process; when one ends it, the next process goes on after that one."""
        first = 0
        while first < len(cases):
            finished = self.start(grid, cases[first:])
            rows = thermo(finished.output)
            for case, row in zip(cases[first:], rows, strict=False):
                yield (
                    case,
                    Outcome(energy=row["PotEng"]),
                    self.verdict(
                        case, as_dict(read_snapshot(row, self.run.folder / f"{case.name}.dump"))
                    ),
                )
            first += len(rows)
            if first < len(cases):
                yield cases[first], *self.ended(grid, cases[first], finished)
                first += 1

    def ended(self, grid: Grid, case: Case, finished: Finished) -> tuple[Outcome, str]:
        """Of a process that did not come to the end of this case: right only where LAMMPS
        itself must refuse.
        """
        if (
            grid.setup.startswith(TILED)
            and case.system in NARROW
            and any(REFUSED in line for line in finished.errors())
        ):
            return Outcome(error=REFUSED), ""
        return Outcome(
            hang=finished.hung,
            crash=None if finished.hung else f"status {finished.status}: {finished.output[-400:]}",
        ), ""


ALL = tuple(Case(system, dtype, nu) for dtype, nu in MODELS for system in SYSTEMS)


def run(bench: Bench, grids: Sequence[Grid] = GRIDS, cases: Sequence[Case] = ALL) -> Tally:
    tally = Tally("parity")
    for grid in grids:
        for case, outcome, verdict in bench.results(grid, cases):
            tally.count(f"{grid.name}, {case.name}", outcome, verdict)
    return tally
