"""The averages of `race reweight`: which columns of a log they are of, their record and table."""

import math
import re
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from race.data.series import Series
from race.errors import RaceError
from race.evaluate.reweight import LEAST_SHARE, LEAST_STEPS, Average

# Columns of thermo that the potential makes. Differences of energies give each member's own
# energies. The log has only the driving potential's pressures.
ENERGIES = ("PotEng", "TotEng", "E_pair")
PRESSURES = ("Press", "Pxx", "Pyy", "Pzz", "Pxy", "Pxz", "Pyz", "Enthalpy")


def member_columns(log: Series, pattern: str) -> list[str]:
    """The columns c_ID[k] that the pattern `c_ID` or `c_ID[first:last]` names, by k."""
    match = re.fullmatch(r"(\w+)(?:\[(\d+):(\d+)\])?", pattern)
    if not match:
        raise RaceError("not columns", where="--members", expected="c_ID or c_ID[2:9]", got=pattern)
    found = {}
    for name in log.columns:
        column = re.fullmatch(re.escape(match[1]) + r"\[(\d+)\]", name)
        if column:
            found[int(column[1])] = name
    wanted = range(int(match[2]), int(match[3]) + 1) if match[2] else sorted(found)
    missing = [k for k in wanted if k not in found]
    if missing or len(wanted) < 2:
        raise RaceError(
            "no energies of two or more members" if not missing else f"no column {missing[0]}",
            where=log.path,
            expected=f"columns {match[1]}[k], one for each member",
            got=" ".join(log.columns),
            remedy=f"thermo_style custom step temp ... {match[1]}[*], with compute "
            f"{match[1].removeprefix('c_')} all race energy/members",
        )
    return [found[k] for k in wanted]


def show(found: dict[str, Average], n_steps: int, level: float) -> None:
    """Prints a row for each average."""
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(
        title=f"{n_steps} steps; the interval holds the true average with {level:.0%}",
        box=box.SIMPLE,
    )
    heads = ("", "average", f"+- {level:.0%}", "sampling", "members", "by sampling", "steps", "by")
    for k, head in enumerate(heads):
        table.add_column(head, justify="right" if k else "left", no_wrap=True)
    for name, average in found.items():
        if average.mean.ndim == 0:
            values = (
                average.mean,
                average.half_width(level),
                average.sampling_std,
                average.epistemic_std,
                average.noise_std,
            )
            cells = [f"{float(value):.5g}" for value in values]
        else:
            cells = [f"{average.mean.size} rows", *[""] * 4]
        table.add_row(name, *cells, f"{average.effective.min():.0f}", average.method)
    console.print(table)
    for note in notes(found):
        console.print(note, highlight=False)


def notes(found: dict[str, Average]) -> list[str]:
    """Remarks that the numbers need."""
    lines = []
    if any(average.method == "cumulant" for average in found.values()):
        lines.append(
            "cumulant: the members differ by more than kT, so that few steps would carry the "
            f"weight (below {LEAST_SHARE:.0%} or {LEAST_STEPS:.0f} steps); first order in the "
            "difference instead"
        )
    if blind := [name for name in found if name in PRESSURES]:
        lines.append(
            f"warning: {', '.join(blind)}: every member's average has the pressures of the "
            "potential that drove the run, as the log has no others; the interval is too narrow"
        )
    weak = [n for n, a in found.items() if a.method == "direct" and a.effective.min() < LEAST_STEPS]
    if weak:
        lines.append(
            f"warning: fewer than {LEAST_STEPS:.0f} steps carry the weight of a member in "
            f"{', '.join(weak)}; use --method cumulant or a longer run"
        )
    return lines


def record(average: Average, level: float) -> dict[str, Any]:
    """The entries of an average in the JSON file."""
    names = ("mean", "sampling_std", "epistemic_std", "noise_std", "members", "effective")
    found = {name: getattr(average, name).tolist() for name in names}
    return found | {"half_width": average.half_width(level).tolist(), "method": average.method}


def after(series: Series, first: int) -> Series:
    """The steps from `first` on."""
    return series.at(series.step[series.step >= first])


def driving_energy(members: np.ndarray, lead: str) -> np.ndarray:
    """[T], of members [T, M]: the energy whose forces drove the run."""
    if lead == "mean":
        return members.mean(1)
    if not lead.isdigit() or not 1 <= int(lead) <= members.shape[1]:
        raise RaceError(
            "no such member",
            where="--lead",
            expected=f"mean or 1 to {members.shape[1]}",
            got=lead,
        )
    return members[:, int(lead) - 1]


def temperature(log: Series, text: str) -> np.ndarray | float:
    """Kelvin: a number, or the column [T] of that name."""
    try:
        kelvin: np.ndarray | float = float(text)
    except ValueError:
        kelvin = log[text]
    if not np.all(np.greater(kelvin, 0)) or (isinstance(kelvin, float) and math.isinf(kelvin)):
        raise RaceError("not a temperature", where="--temperature", expected="> 0 K", got=text)
    return kelvin
