"""`race evaluate run|artifact data...`: a table on the terminal, records as JSON, figures
as png.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from race.errors import RaceError
from race.evaluate.bootstrap import N_BOOTSTRAP
from race.files import as_json, make_folder, write_json

RECALIBRATIONS = ("conformal", "isotonic", "scaling")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, help="folder made by `race train`, or artifact made by `race export`"
    )
    parser.add_argument(
        "data",
        nargs="+",
        metavar="[NAME=]PATH",
        help="labelled structures; splits of one name are joined",
    )
    parser.add_argument(
        "--calibrate",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PATH",
        help="frames to fit the recalibration on",
    )
    parser.add_argument(
        "--method",
        choices=RECALIBRATIONS,
        default="isotonic",
        help="recalibration (default: isotonic)",
    )
    parser.add_argument(
        "--ood",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="splits unlike the training set: AUROC against the others",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("evaluation"),
        help="folder of the results (default: evaluation)",
    )
    parser.add_argument(
        "--student",
        action="store_true",
        help="compare intervals with Student's t: the spread of M members trained apart is an "
        "estimate with M - 1 degrees of freedom",
    )
    parser.add_argument(
        "--posterior", help="name of the posterior in the records (default: from the model)"
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=N_BOOTSTRAP,
        help="resamples of frames for the 90 %% intervals; 0: none",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="frames per pass")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")


def run(args: argparse.Namespace) -> None:
    RaceError.unless_at_least(1, args.batch_size, "--batch-size")
    RaceError.unless_at_least(0, args.bootstrap, "--bootstrap")
    paths = named_paths(args.data)
    if unknown := sorted(set(args.ood) - set(paths)):
        raise RaceError("no such split", where=f"--ood {unknown[0]}", expected=" or ".join(paths))
    # torch and ASE are slow to import
    from race.data.fingerprint import fingerprint
    from race.evaluate.cost import prediction_cost
    from race.evaluate.evaluated import check_calibration, open_model
    from race.evaluate.records import make_records
    from race.evaluate.report import covariance_scale, fit_intervals, fit_recalibration
    from race.evaluate.score import sentence, unified_score
    from race.evaluate.table import show
    from race.train.files import sha256

    evaluated = open_model(args.model, args.batch_size, args.device)
    evaluated.posterior = args.posterior or evaluated.posterior
    frames = {
        name: [atoms for path in files for atoms in evaluated.read(path)]
        for name, files in paths.items()
    }
    calibration_frames = [atoms for path in args.calibrate for atoms in evaluated.read(path)]
    check_calibration(evaluated, args.calibrate, calibration_frames, frames)
    if args.student and evaluated.extra["n_members"] < 2:
        raise RaceError(
            "no spread to estimate a variance by",
            where="--student",
            expected="two or more members",
            got=evaluated.extra["n_members"],
        )
    make_folder(args.out)

    splits = [
        evaluated.split(name, atoms, name in args.ood, args.student)
        for name, atoms in frames.items()
    ]
    fitted, scale = evaluated.fitted, evaluated.force_std_scale
    if calibration_frames:
        calibration = evaluated.split("calibration", calibration_frames, student=args.student)
        fitted, scale = fit_recalibration(calibration, args.method), covariance_scale(calibration)
    records = make_records(evaluated, splits, fitted, scale, args.bootstrap)
    for record in records:
        some = frames[record["split"]][: args.batch_size]
        record |= prediction_cost(evaluated, some, args.device)
        record["model"] = evaluated.identity
        record["evaluated"] = "run" if args.model.is_dir() else "artifact"
        record["in_training"] = any(
            sha256(path) in evaluated.seen for path in paths[record["split"]]
        )

    written = [write_json(args.out / "metrics.json", records)]
    if calibration_frames:
        # Recognises the frames in an artifact that is calibrated on them, and evaluated later.
        fingerprints = sorted(fingerprint(atoms) for atoms in calibration_frames)
        intervals = fit_intervals(calibration, args.method) | {"fingerprints": fingerprints}
        content = {
            "model": evaluated.identity,
            "frames": [str(path) for path in args.calibrate],
            "covariance_scale": scale,
            "intervals": intervals,
        }
        written.append(
            write_json(
                args.out / "calibration.json",
                content | {name: r.to_dict() for name, r in fitted.items()},
            )
        )
    from race.evaluate.figures import draw_all  # matplotlib is slow to import

    written += draw_all(splits, fitted, args.out, evaluated.log)
    score = unified_score(records)
    if args.json:
        print(as_json({"records": records, "score": score, "files": [str(p) for p in written]}))
        return
    show(records, written)
    if score is not None:
        print(sentence(score))
    if args.model.is_dir():
        print(f"\nnext:  race report {args.model} --evaluation {args.out}    all of it on one page")
        calibrated = f" --calibration {args.out / 'calibration.json'}" * bool(calibration_frames)
        print(f"       race export {args.model} -o NAME.race.pt{calibrated}    for ASE and LAMMPS")


def named_paths(arguments: Iterable[str]) -> dict[str, list[Path]]:
    """`name=path` or `path` (named by its stem) -> name -> paths."""
    out: dict[str, list[Path]] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or "/" in name:
            name, path = Path(argument).name.split(".")[0], argument
        out.setdefault(name, []).append(Path(path))
    return out
