"""`race predict MODEL FRAMES... -o predicted.extxyz`: energies, forces, stress and every
uncertainty of frames that need no labels.
"""

import argparse
import io
from pathlib import Path

from race.errors import RaceError
from race.files import XYZ, check_output, replacing
from race.progress import progress


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run's folder or an artifact NAME.race.pt")
    parser.add_argument(
        "frames",
        nargs="+",
        type=Path,
        help="extxyz, traj or npz files, LAMMPS dumps; labels in them are replaced by predictions",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="extended xyz, frames in the order given"
    )
    parser.add_argument(
        "--elements",
        nargs="+",
        action="extend",
        metavar="EL",
        help="element of each LAMMPS type, for dumps without a column element",
    )
    parser.add_argument(
        "--skip-bad-frames",
        type=int,
        default=0,
        metavar="N",
        help="frames that may be left out because they cannot be used; each is named",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="frames per pass of a run")
    parser.add_argument("--device", default="cpu")


def run(args: argparse.Namespace) -> None:
    RaceError.unless_at_least(1, args.batch_size, "--batch-size")
    check_output(args.output, [args.model, *args.frames], XYZ)
    # torch and ASE are slow to import
    import ase.io

    from race.data.io import Tolerance, read_structures
    from race.evaluate.evaluated import open_model
    from race.evaluate.predicted import predicted

    evaluated = open_model(args.model, args.batch_size, args.device)
    tolerance = Tolerance(args.skip_bad_frames, "--skip-bad-frames")
    known = evaluated.predictor.elements
    read = (read_structures(path, args.elements, tolerance, known) for path in args.frames)
    frames = [atoms for found in read for _, atoms in found]
    if not frames:
        raise RaceError("no frames to predict", where=" ".join(map(str, args.frames)))
    with replacing(args.output) as output:
        file = io.TextIOWrapper(output, encoding="utf-8")
        for atoms in progress(predicted(evaluated, frames), "predicting", len(frames)):
            ase.io.write(file, atoms, format="extxyz")
        file.detach()  # which flushes; `replacing` closes it
    print(f"{args.output}: {len(frames)} frames")
