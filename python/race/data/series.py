"""Tables that LAMMPS writes as a run goes on: thermo output of a log, `fix print` with a title,
`fix ave/time` of scalars or vectors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from race.errors import RaceError

STEP_NAMES = ("step", "timestep")


@dataclass(frozen=True)
class Series:
    """Columns by time step.

    step: int64 [T], ascending, each once. columns: name -> float64 [T], or [T, rows] from a
    `fix ave/time ... mode vector` (an RDF for instance).
    """

    path: Path
    step: np.ndarray
    columns: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise RaceError(
                f"no column {name}", where=self.path, expected=f"one of {' '.join(self.columns)}"
            )
        return self.columns[name]

    def at(self, step: np.ndarray) -> "Series":
        """The rows of the given steps, all of which it must have."""
        rows = np.searchsorted(self.step, step)
        return Series(self.path, step, {k: v[rows] for k, v in self.columns.items()})


def read_series(path: Path) -> Series:
    """Reads one table, told by its content.

    A log may hold several runs. Those with the columns of the last one are joined. The step
    that ends one run and begins the next counts once, with its later values. Values that
    are not finite are refused.

    Raises:
        RaceError: no such file, no table, a table that ends inside a row, NaN.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise RaceError(error.strerror or "not readable", where=path) from None
    comments = [line for line in lines if line.startswith("#")]
    if any(line.split()[1:2] == ["Row"] for line in comments):
        series = _vectors(path, lines)
    else:
        series = _scalars(path, lines)
    for name, values in series.columns.items():
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        if bad.any():
            raise RaceError(
                f"column {name} is not finite",
                where=f"{path}, step {series.step[bad.argmax()]}",
                remedy="leave these steps out: the run has blown up there",
            )
    return series


def _scalars(path: Path, lines: list[str]) -> Series:
    tables = [table for table in _tables(lines) if table[1]]
    if not tables:
        raise RaceError(
            "no table",
            where=path,
            expected="a LAMMPS log, or a file of fix print (with a title) or fix ave/time",
        )
    names = tables[-1][0]
    rows = {int(row[0]): row for header, body in tables if header == names for row in body}
    step = np.array(sorted(rows), dtype=np.int64)
    values = np.array([rows[int(k)] for k in step])
    return Series(path, step, {name: values[:, k] for k, name in enumerate(names)})


def _tables(lines: list[str]) -> Iterator[tuple[list[str], list[list[float]]]]:
    """(names, rows) of each table: a line that begins with the step's name, then numbers.

    Lines between the numbers that are none (warnings of LAMMPS) are passed over.
    """
    names: list[str] = []
    rows: list[list[float]] = []
    for line in lines:
        words = line.lstrip("# ").split()
        if words and words[0].lower() in STEP_NAMES and not _is_number(words[-1]):
            if names:
                yield names, rows
            names, rows = words, []
        elif names and line.startswith("Loop time"):
            yield names, rows
            names, rows = [], []
        elif names and len(words) == len(names) and all(map(_is_number, words)):
            rows.append([float(word) for word in words])
    if names:
        yield names, rows


def _vectors(path: Path, lines: list[str]) -> Series:
    """`# Row c_1 c_2`, then for each step `step n` and n rows that begin with their number."""
    names = next(line.split()[2:] for line in lines if line.split()[:2] == ["#", "Row"])
    body = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    steps: list[int] = []
    blocks: list[list[list[float]]] = []
    k = 0
    while k < len(body):
        n = int(body[k][1]) if len(body[k]) == 2 and all(map(_is_number, body[k])) else 0
        rows = body[k + 1 : k + 1 + n]
        if n < 1 or len(rows) < n or any(len(row) != len(names) + 1 for row in rows):
            raise RaceError(
                "the table ends inside a block or is not one of `mode vector`",
                where=f"{path}, block {len(steps) + 1}",
                expected=f"STEP ROWS, then rows of {len(names) + 1} numbers",
                got=" ".join(body[k]),
            )
        steps.append(int(body[k][0]))
        blocks.append([[float(word) for word in row[1:]] for row in rows])
        k += n + 1
    sizes = {len(block) for block in blocks}
    if len(sizes) != 1:
        raise RaceError(
            "blocks of different length" if sizes else "no block",
            where=path,
            expected="as many rows at every step",
            got=sorted(sizes),
        )
    order = {step: k for k, step in enumerate(steps)}
    step = np.array(sorted(order), dtype=np.int64)
    values = np.array([blocks[order[int(s)]] for s in step])  # [T, rows, columns]
    return Series(path, step, {name: values[:, :, k] for k, name in enumerate(names)})


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
