"""`race select --strategy S --budget N [RUN or NAME.race.pt] POOL... -o selected.extxyz`."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from race.active.config import STRATEGIES
from race.active.pool import Candidate, read_pool
from race.active.scores import open_scorer
from race.active.strategies import Choice, Selector, describe
from race.data.io import Tolerance, write_frames
from race.errors import RaceError
from race.files import check_output
from race.progress import bar

SHOWN = 12  # rows of the table


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


def run(args: argparse.Namespace) -> None:
    RaceError.unless_at_least(1, args.batch_size, "--batch-size")
    has_model = args.inputs[0].is_dir() or args.inputs[0].name.endswith(".race.pt")
    model_path, paths = (args.inputs[0], args.inputs[1:]) if has_model else (None, args.inputs)
    if not paths:
        raise RaceError(
            "no pool", where=model_path, expected="files with structures after the model"
        )
    for path in [*args.inputs, *args.exclude]:
        if args.output.exists() and path.exists() and path.samefile(args.output):
            raise RaceError(
                "the output is one of the inputs",
                where=f"-o {args.output}",
                expected="another file: the frames that are not chosen would be lost",
            )
    check_output(args.output)
    tolerance = Tolerance(args.skip_bad_frames, "--skip-bad-frames")
    pool = read_pool(paths, args.elements, ";".join(args.compute or []) or None, tolerance)
    exclude = read_pool(args.exclude, args.elements) if args.exclude else []
    model = open_scorer(model_path, args.batch_size, args.device) if model_path else None
    selector = Selector(args.strategy, args.budget, args.seed, args.min_distance, args.features)
    with bar() as shown:
        task = shown.add_task(f"{args.strategy}: {len(pool)} frames", total=None)
        choices = selector.select(pool, model, exclude, lambda n: shown.update(task, advance=n))
    write_selected(args.output, pool, choices, args.strategy)
    show(pool, choices, args)


def write_selected(
    path: Path, pool: Sequence[Candidate], choices: Sequence[Choice], strategy: str
) -> None:
    """Extended xyz of the chosen frames with all that they had, and info keys of `describe`."""
    frames = []
    for choice in choices:
        atoms = pool[choice.index].atoms.copy()
        atoms.calc = pool[choice.index].atoms.calc
        atoms.info |= describe(choice, pool[choice.index], strategy)
        frames.append(atoms)
    write_frames(path, frames)


def show(pool: Sequence[Candidate], choices: Sequence[Choice], args: argparse.Namespace) -> None:
    """Prints what was chosen, a row for each structure."""
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("", "score", "by", "file", "frame"):
        table.add_column(
            column, justify="left" if column in ("by", "file") else "right", no_wrap=True
        )
    for rank, choice in enumerate(choices[:SHOWN], 1):
        candidate = pool[choice.index]
        score = "" if choice.score is None else f"{choice.score:.4g}"
        table.add_row(str(rank), score, choice.by, str(candidate.source), str(candidate.index))
    if len(choices) > SHOWN:
        table.add_row("...")
    console.print(table)
    n_from = Counter(str(pool[choice.index].source) for choice in choices)
    parts = ", ".join(f"{n} of {source}" for source, n in n_from.items()) if len(n_from) > 1 else ""
    console.print(
        f"{args.output}: {len(choices)} of {len(pool)} frames" + (f" ({parts})" if parts else ""),
        highlight=False,
        soft_wrap=True,
    )
    if len(choices) < args.budget:
        console.print(
            f"the budget of {args.budget} is not used up: the other frames are known or too like "
            "those chosen",
            highlight=False,
        )
