"""`race active config.yaml --out DIR`: strategies compared on one problem. The same command
continues what was interrupted.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from race.active.config import read_active_config
from race.files import Lock, make_folder


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, help="YAML config; every option is documented in race.active.config"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("active"),
        help="folder of the comparison (default: active); continued if there",
    )
    parser.add_argument(
        "--json", action="store_true", help="the records of the report as JSON; the rest to stderr"
    )


def run(args: argparse.Namespace) -> None:
    config = read_active_config(args.config)
    # torch and matplotlib are slow to import, and a wrong config needs neither
    from race.active.loop import Loop

    make_folder(args.out)
    # Trainings print a line an epoch
    aside = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    with Lock(args.out), aside:
        Loop(config, args.out).run()
    if args.json:
        print((args.out / "report.json").read_text())
