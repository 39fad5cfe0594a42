"""`race predict MODEL FRAMES... -o predicted.extxyz`: energies, forces, stress and every
uncertainty of frames that need no labels.
"""

import argparse
import io
from pathlib import Path

from race.errors import RaceError
from race.files import check_output, replacing
from race.progress import progress


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run's folder or an artifact NAME.race.pt")
    parser.add_argument(
        "frames",
        nargs="+",
        type=Path,
        help="extxyz, traj or npz files; labels in them are replaced by predictions",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="extended xyz, frames in the order given"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="frames per pass of a run")
    parser.add_argument("--device", default="cpu")


def run(args: argparse.Namespace) -> None:
    RaceError.unless_at_least(1, args.batch_size, "--batch-size")
    for path in args.frames:
        if args.output.exists() and path.exists() and path.samefile(args.output):
            raise RaceError("the output is one of the inputs", where=f"-o {args.output}")
    check_output(args.output)
    # torch and ASE are slow to import
    import ase.io

    from race.data import read_frames
    from race.evaluate.evaluated import open_model
    from race.evaluate.predicted import predicted

    evaluated = open_model(args.model, args.batch_size, args.device)
    frames = [atoms for path in args.frames for atoms in read_frames(path, require=())]
    if not frames:
        raise RaceError("no frames to predict", where=" ".join(map(str, args.frames)))
    with replacing(args.output) as output:
        file = io.TextIOWrapper(output, encoding="utf-8")
        for atoms in progress(predicted(evaluated, frames), "predicting", len(frames)):
            ase.io.write(file, atoms, format="extxyz")
        file.detach()  # which flushes; `replacing` closes it
    print(f"{args.output}: {len(frames)} frames")
