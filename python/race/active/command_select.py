"""`race select --strategy S --budget N [RUN or NAME.race.pt] POOL... -o selected.extxyz`."""

import argparse
from pathlib import Path

from race.active.config import STRATEGIES
from race.errors import RaceError
from race.files import XYZ, as_json, check_output
from race.progress import bar


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="[MODEL] POOL",
        help="a run's folder or an artifact (random, fps on "
        "distances and dumps with their own uncertainty need none), then extxyz, traj or LAMMPS "
        "text dumps",
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        required=True,
        help="bald-all: all labels of a frame at once, in the light of those chosen; bald-drawn: "
        "drawn in proportion to it; maxdet, lcmd: spread over the last layers' features; "
        "max-epistemic: variance without noise",
    )
    parser.add_argument("--budget", type=int, required=True, metavar="N", help="frames to select")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="the selected frames, best first, as extended xyz",
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PATH",
        help="structures known already (training set)",
    )
    parser.add_argument(
        "--min-distance",
        type=float,
        default=0.0,
        metavar="D",
        help="leave out frames whose sorted pair distances differ "
        "by less than D Angstrom (RMS) from one chosen before (default 0: only equal structures)",
    )
    parser.add_argument(
        "--features",
        choices=("distances", "model"),
        default="distances",
        help="what fps measures (default: distances)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of random, of bald-drawn, and of the first frame of fps",
    )
    parser.add_argument(
        "--elements",
        nargs="+",
        action="extend",
        metavar="EL",
        help="element of each LAMMPS type, for dumps without a column element",
    )
    parser.add_argument(
        "--compute",
        action="append",
        metavar="COMMAND",
        help='what wrote the columns c_ID[k] of a dump, e.g. "u all race/atom force/std"',
    )
    parser.add_argument(
        "--skip-bad-frames",
        type=int,
        default=0,
        metavar="N",
        help="frames of the pool that may be left out because they cannot be used; each is named",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="frames per pass")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")


def run(args: argparse.Namespace) -> None:
    RaceError.unless_at_least(1, args.batch_size, "--batch-size")
    has_model = args.inputs[0].is_dir() or args.inputs[0].name.endswith(".race.pt")
    model_path, paths = (args.inputs[0], args.inputs[1:]) if has_model else (None, args.inputs)
    if not paths:
        raise RaceError(
            "no pool", where=model_path, expected="files with structures after the model"
        )
    if args.features != "distances" and args.strategy != "fps":
        raise RaceError("is that of fps", where="--features", got=f"--strategy {args.strategy}")
    check_output(args.output, [*args.inputs, *args.exclude], XYZ)
    # torch and ASE are slow to import
    from race.data.dump import is_dump

    for option in ("elements", "compute"):
        if getattr(args, option) and not any(map(is_dump, [*paths, *args.exclude])):
            raise RaceError("is for LAMMPS dumps, and there is none", where=f"--{option}")
    from race.active.pool import read_pool
    from race.active.scores import open_scorer
    from race.active.selected import listed, show, write_selected
    from race.active.strategies import Selector
    from race.data.io import Tolerance

    tolerance = Tolerance(args.skip_bad_frames, "--skip-bad-frames")
    model = open_scorer(model_path, args.batch_size, args.device) if model_path else None
    asked = model if args.strategy not in ("random", "fps") or args.features == "model" else None
    known = None if asked is None else asked.predictor.elements
    compute = ";".join(args.compute or []) or None
    pool = read_pool(paths, args.elements, compute, tolerance, known)
    exclude = read_pool(args.exclude, args.elements) if args.exclude else []
    selector = Selector(args.strategy, args.budget, args.seed, args.min_distance, args.features)
    with bar() as shown:
        task = shown.add_task(f"{args.strategy}: {len(pool)} frames", total=None)
        choices = selector.select(pool, model, exclude, lambda n: shown.update(task, advance=n))
    write_selected(args.output, pool, choices, args.strategy)
    if args.json:
        content = {"selected": listed(pool, choices), "output": str(args.output)}
        print(as_json(content | {"n_pool": len(pool), "budget": args.budget}))
    else:
        show(pool, choices, args.output, args.budget)
