"""`race reweight log.lammps --members c_U --temperature 300`: averages of a run with error bars
of the potential (race.evaluate.reweight).
"""

import argparse
from pathlib import Path

from race.errors import RaceError
from race.files import as_json, check_output, write_json

# Boltzmann's constant in the energy unit of LAMMPS's `units`, per Kelvin.
BOLTZMANN = {
    "metal": 8.617333262e-5,
    "real": 0.0019872042586,
    "electron": 3.1668115634e-6,
    "si": 1.380649e-23,
}


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
    # torch and SciPy are slow to import
    if args.output:
        check_output(args.output, [args.log, *args.profiles], (".json",))
    import numpy as np

    from race.data.series import read_series
    from race.evaluate.averages import (
        ENERGIES,
        after,
        driving_energy,
        member_columns,
        notes,
        record,
        show,
        temperature,
    )
    from race.evaluate.reweight import reweight

    log = after(read_series(args.log), args.skip)
    names = member_columns(log, args.members)
    sources = [log, *(after(read_series(path), args.skip) for path in args.profiles)]
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
    driving = driving_energy(members, args.lead)
    kT = BOLTZMANN[args.units] * temperature(log, args.temperature)
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
        "averages": {name: record(average, args.level) for name, average in found.items()},
        "notes": notes(found),
    }
    if args.json:
        print(as_json(content))
    else:
        show(found, len(step), args.level)
    if args.output:
        write_json(args.output, content)
