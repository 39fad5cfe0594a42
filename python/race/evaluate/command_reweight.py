"""`race reweight log.lammps --members c_U --temperature 300`: averages of a run with error bars
of the potential (race.evaluate.reweight).
"""

import argparse
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from race.data.series import Series, read_series
from race.errors import RaceError
from race.evaluate.reweight import LEAST_SHARE, LEAST_STEPS, Average, reweight
from race.files import as_json, write_json

# Boltzmann's constant in the energy unit of LAMMPS's `units`, per Kelvin.
BOLTZMANN = {
    "metal": 8.617333262e-5,
    "real": 0.0019872042586,
    "electron": 3.1668115634e-6,
    "si": 1.380649e-23,
}

# Columns of thermo that the potential makes. Of the first each member has its own, by the
# difference of the energies; of the others the log has the driving potential's alone.
ENERGIES = ("PotEng", "TotEng", "E_pair")
PRESSURES = ("Press", "Pxx", "Pyy", "Pzz", "Pxy", "Pxz", "Pyz", "Enthalpy")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log",
        type=Path,
        help="thermo output, or a file of fix print or fix ave/time, with a column for each "
        "member's energy (`compute U all race energy/members`)",
    )
    parser.add_argument(
        "--members",
        required=True,
        metavar="c_ID",
        help="their columns: c_U for all c_U[k], or a part such as c_U[2:9]",
    )
    parser.add_argument(
        "--temperature",
        required=True,
        metavar="K|COLUMN",
        help="of the thermostat, Kelvin; or the column that holds it",
    )
    parser.add_argument(
        "--observables",
        nargs="+",
        action="extend",
        metavar="COLUMN",
        help="columns of the log to average (default: all others)",
    )
    parser.add_argument(
        "--profiles",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FILE",
        help="files of `fix ave/time ... mode vector` (an RDF), one value per write: Nrepeat 1",
    )
    parser.add_argument(
        "--lead",
        default="mean",
        metavar="mean|M",
        help="whose forces drove the run, as in pair_style (default: mean)",
    )
    parser.add_argument("--skip", type=int, default=0, metavar="STEP", help="steps before this")
    parser.add_argument("--units", choices=BOLTZMANN, default="metal", help="of the log")
    parser.add_argument("--method", choices=("auto", "direct", "cumulant"), default="auto")
    parser.add_argument("--level", type=float, default=0.9, help="of the interval (default: 0.9)")
    parser.add_argument(
        "-o", "--output", type=Path, help="JSON file, with each member's average and the profiles"
    )
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")


def run(args: argparse.Namespace) -> None:
    if not 0 < args.level < 1:
        raise RaceError("out of range", where="--level", expected="0 < P < 1", got=args.level)
    log = _after(read_series(args.log), args.skip)
    names = member_columns(log, args.members)
    sources = [log, *(_after(read_series(path), args.skip) for path in args.profiles)]
    step = sources[0].step
    for series in sources[1:]:
        step = np.intersect1d(step, series.step)
    if len(step) < 2:
        raise RaceError(
            "fewer than two steps to average over",
            where=", ".join(str(series.path) for series in sources),
            expected="values at the same steps in all files, after --skip",
            got=f"{len(step)} steps",
        )
    log = log.at(step)
    members = np.stack([log[name] for name in names], axis=1)  # [T, M]
    driving = _driving(members, args.lead)
    kT = BOLTZMANN[args.units] * _temperature(log, args.temperature)
    others = [name for name in log.columns if name not in names and name.lower() != "step"]
    found = {}
    for name in args.observables or others:
        values, own = log[name], name in ENERGIES
        if own:
            values = values[:, None] + members - driving[:, None]
        found[name] = reweight(values, members, driving, kT, args.method, own=own)
    for series in sources[1:]:
        for name, values in series.at(step).columns.items():
            found[f"{series.path.name}:{name}"] = reweight(
                values, members, driving, kT, args.method
            )
    content = {
        "log": str(args.log),
        "n_steps": len(step),
        "level": args.level,
        "averages": {name: _record(average, args.level) for name, average in found.items()},
        "notes": notes(found),
    }
    if args.json:
        print(as_json(content))
    else:
        show(found, len(step), args.level)
    if args.output:
        write_json(args.output, content)


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
    """What the numbers cannot say of themselves."""
    lines = []
    if any(average.method == "cumulant" for average in found.values()):
        lines.append(
            "cumulant: the members differ by more than kT, so that few steps would carry the "
            f"weight (below {LEAST_SHARE:.0%} or {LEAST_STEPS:.0f} steps); first order in the "
            "difference instead"
        )
    if blind := [name for name in found if name in PRESSURES]:
        lines.append(
            f"warning: {', '.join(blind)}: of the potential that drove the run, in every member's "
            "average; their own pressures are not in the log, and the interval is too narrow"
        )
    weak = [n for n, a in found.items() if a.method == "direct" and a.effective.min() < LEAST_STEPS]
    if weak:
        lines.append(
            f"warning: fewer than {LEAST_STEPS:.0f} steps carry the weight of a member in "
            f"{', '.join(weak)}; use --method cumulant or a longer run"
        )
    return lines


def _record(average: Average, level: float) -> dict[str, Any]:
    names = ("mean", "sampling_std", "epistemic_std", "noise_std", "members", "effective")
    record = {name: getattr(average, name).tolist() for name in names}
    return record | {"half_width": average.half_width(level).tolist(), "method": average.method}


def _after(series: Series, first: int) -> Series:
    return series.at(series.step[series.step >= first])


def _driving(members: np.ndarray, lead: str) -> np.ndarray:
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


def _temperature(log: Series, text: str) -> np.ndarray | float:
    try:
        kelvin: np.ndarray | float = float(text)
    except ValueError:
        kelvin = log[text]
    if not np.all(np.greater(kelvin, 0)) or (isinstance(kelvin, float) and math.isinf(kelvin)):
        raise RaceError("not a temperature", where="--temperature", expected="> 0 K", got=text)
    return kelvin
