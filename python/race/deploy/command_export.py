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
    parser.add_argument("--calibration", type=Path, help="calibration.json that `race evaluate --calibrate` wrote; LAMMPS applies it")
    parser.add_argument("--portable", action="store_true", help="stock torch operators only: slower, needs no compiled kernel")


def run(args: argparse.Namespace) -> None:
    if not args.output.name.endswith(".race.pt"):
        raise RaceError("unusual name of an artifact", where="--output", expected="NAME.race.pt", got=args.output.name)
    model, _, summary = load_run(args.run)
    calibration = read_calibration(args.calibration) if args.calibration else {}
    digest = export_model(model, args.output, dtype=args.dtype, portable=args.portable, summary=summary, calibration=calibration)
    print(f"{args.output}  {args.output.stat().st_size / 1e6:.1f} MB  sha256 {digest}  self-test passed")


def read_calibration(path: Path) -> dict[str, float]:
    """The constants that librace and LAMMPS apply, out of an evaluation's calibration.json.

    Returns:
        force_std_scale: factor on the standard deviations of forces.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RaceError(f"cannot read the calibration ({error})", where=path) from None
    scale = content.get("covariance_scale") or content.get("forces", {}).get("scale")  # a singular covariance has the latter only
    if not isinstance(scale, float) or not scale > 0:
        raise RaceError("no factor for the force uncertainty", where=path, expected="covariance_scale, or forces by --method scaling")
    return {"force_std_scale": scale}
