"""`race init FILE ...`: looks at data, and writes a config that learns from it, with a comment
on everything that was guessed.
"""

import argparse
from pathlib import Path

from race.errors import RaceError
from race.files import write_atomic


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="training frames")
    parser.add_argument(
        "--validation", type=Path, action="append", default=[], help="repeatable; else a tenth"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("config.yaml"), help="the config")


def run(args: argparse.Namespace) -> None:
    if args.out.exists():
        raise RaceError("exists already", where=args.out, remedy="choose another --out")
    # torch and ASE are slow to import
    from race.config import read_config
    from race.train.guessed import looked_at, written
    from race.train.prepare import prepare

    frames = [atoms for path in args.files for atoms in looked_at(path)]
    text = written(args.files, args.validation, frames, args.out.parent)
    write_atomic(args.out, text.encode())
    print(text)
    try:
        print(prepare(read_config(args.out)).report.text())
    except RaceError as error:
        print(f"`race train` will refuse this data: {error}")
        return
    print(f"\nnext:  race train {args.out} --out run")
