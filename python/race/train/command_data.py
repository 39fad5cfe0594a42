"""`race data config.yaml`: shards of a data set that is larger than memory."""

import argparse
from pathlib import Path

from race.config import read_config


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, help="that of the training; data.shards is the folder to make"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change an option of the config, e.g. data.shards=shards; repeatable",
    )


def run(args: argparse.Namespace) -> None:
    config = read_config(args.config, args.set)
    from race.train.shards import build  # slow to import, and a wrong config needs none of it

    report = build(config)
    print(f"{config.data.shards}: shards of {len(config.data.train)} training files")
    print(report.text())
