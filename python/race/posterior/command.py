"""`race fit --posterior NAME run [run ...] --out folder`: from a finished run to a new one
whose members are samples of a posterior.
"""

import argparse
from pathlib import Path

from race.errors import RaceError
from race.posterior.registry import POSTERIORS

OWN = ("posterior", "runs", "out", "resume", "command")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder made by `race train`; several for an ensemble",
    )
    parser.add_argument("--posterior", required=True, metavar="NAME", help=" | ".join(POSTERIORS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the new run")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue a fit that was interrupted, or start if there is none in --out",
    )
    for flag in sorted(
        {key for posterior in POSTERIORS.values() for key in posterior.options.model_fields}
    ):
        parser.add_argument(
            f"--{flag.replace('_', '-')}",
            dest=flag,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
    parser.epilog = "\n".join(describe())


def describe() -> list[str]:
    """The options of every posterior, from their classes."""
    lines = []
    for name, posterior in POSTERIORS.items():
        lines += ["", f"{name}: {posterior.help}"]
        for key, info in posterior.options.model_fields.items():
            lines.append(
                f"  --{key.replace('_', '-'):20} {info.description} (default: {info.default})"
            )
    return lines


def run(args: argparse.Namespace) -> None:
    if args.posterior not in POSTERIORS:
        raise RaceError(
            "no such posterior",
            where="--posterior",
            expected=" or ".join(POSTERIORS),
            got=args.posterior,
        )
    from race.posterior.fit import fit  # torch is slow to import

    given = {key: value for key, value in vars(args).items() if key not in OWN}
    fit(args.posterior, args.runs, args.out, given, args.resume)
