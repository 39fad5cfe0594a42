"""`race init FILE ...`: looks at data, and writes a config that learns from it, with a comment
on everything that was guessed.
"""

import argparse
from pathlib import Path

from race.errors import RaceError
from race.files import as_json, write_atomic


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="training frames")
    parser.add_argument(
        "--validation", type=Path, action="append", default=[], help="repeatable; else a tenth"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("config.yaml"), help="the config")
    parser.add_argument("--json", action="store_true", help="what was found, as JSON")


def run(args: argparse.Namespace) -> None:
    if args.out.exists():
        raise RaceError("exists already", where=args.out, remedy="choose another --out")
    # torch and ASE are slow to import
    from race.config import read_config
    from race.train.guessed import guess, looked_at, written
    from race.train.prepare import prepare

    about = guess(args.files, [atoms for path in args.files for atoms in looked_at(path)])
    text = written(about, args.files, args.validation, args.out.parent)
    write_atomic(args.out, text.encode())
    if not args.json:
        print(text)
    refused, rows, findings = None, [], []
    try:
        report = prepare(read_config(args.out)).report
        rows, findings = report.rows, report.findings
    except RaceError as error:
        refused = str(error)
    if args.json:
        found = about.to_dict() | {"checks": dict(rows), "findings": findings, "refused": refused}
        print(as_json({"config": str(args.out), **found}))
    elif refused is not None:
        print(f"`race train` will refuse this data: {refused}")
    else:
        print(report.text())
        print(f"\nnext:  race train {args.out} --out run")
