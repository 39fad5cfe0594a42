"""`race export run -o x.race.pt`."""

import argparse
import json
from pathlib import Path

from race.deploy.export import export_model
from race.errors import RaceError
from race.train.run import load_run


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder that `race train` wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the artifact, NAME.race.pt")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="of the stored weights (default: as trained)")
    parser.add_argument("--portable", action="store_true", help="stock torch operators only: slower, needs no compiled kernel")


def run(args: argparse.Namespace) -> None:
    if not args.output.name.endswith(".race.pt"):
        raise RaceError("unusual name of an artifact", where="--output", expected="NAME.race.pt", got=args.output.name)
    model, _, summary = load_run(args.run)
    digest = export_model(model, args.output, dtype=args.dtype, portable=args.portable, summary=summary, calibration=_calibration(args.run))
    print(f"{args.output}  {args.output.stat().st_size / 1e6:.1f} MB  sha256 {digest}  self-test passed")


def _calibration(run: Path) -> dict[str, float]:
    """run/calibration.json, constants by name, where `race evaluate` has left one."""
    path = run / "calibration.json"
    return json.loads(path.read_text()) if path.exists() else {}
