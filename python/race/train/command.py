"""`race train config.yaml --out run [--resume]`, alone or as one of torchrun's processes."""

import argparse
from pathlib import Path

from race.config import read_config, read_run_config
from race.errors import RaceError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML config; `race config` prints every option")
    parser.add_argument(
        "--out", type=Path, default=Path("run"), help="folder of the run (default: run)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in --out, or start if there is none",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change an option of the config, e.g. train.epochs=200; repeatable",
    )


def run(args: argparse.Namespace) -> None:
    config = read_config(args.config, args.set)
    # torch is slow to import, and a wrong config needs none of it
    if not args.resume and config.data.shards is None:  # which may do without the files
        for path in [*config.data.train, *config.data.validation]:
            if not path.exists():
                raise RaceError("no such file", where=path)
    from race.train.parallel import Ranks
    from race.train.training import train

    with Ranks(config.train.device) as ranks:
        train(config, args.out, args.resume, ranks)
        if ranks.first:
            print(conclusion(args.out))


def conclusion(out: Path) -> str:
    """The closing table of a run, what its folder holds, and the next commands with the figures
    that they draw.
    """
    from race.train.estimate import duration
    from race.train.log import table
    from race.train.run import read_summary

    summary = read_summary(out)
    epochs = " ".join(map(str, summary["best_epoch"]))
    pooling = read_run_config(out / "config.yaml").model.pooling
    return (
        f"\n{table(summary['validation'], pooling)}\n\n"
        f"{out / 'model.safetensors'}: best of epoch {epochs}, after "
        f"{duration(summary['seconds'])}\n"
        f"{out / 'log.csv'}, {out / 'tensorboard'}: every epoch\n\n"
        f"next:  race report {out}\n"
        f"           the learning curve, and all of this, on one page: {out / 'report.html'}\n"
        f"       race evaluate {out} test=FILE\n"
        "           errors and calibration of frames held out; figures: evaluation/*.png\n"
        f"       race export {out} -o NAME.race.pt\n"
        "           for ASE and LAMMPS"
    )
