"""`race evaluate run|artifact data...`: a table on the terminal, records as JSON, figures
as png.
"""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ase
from rich import box
from rich.console import Console
from rich.table import Table

from race.data.fingerprint import fingerprint
from race.errors import RaceError
from race.evaluate.calibration import METHODS
from race.evaluate.evaluated import EvaluatedModel, check_calibration, open_model
from race.evaluate.records import make_records
from race.evaluate.report import (
    N_BOOTSTRAP,
    covariance_scale,
    fit_intervals,
    fit_recalibration,
)
from race.evaluate.score import sentence, unified_score
from race.files import as_json, make_folder, write_json
from race.train.files import sha256

TABLE_WIDTH = 170  # where the output is not a terminal


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
        choices=sorted(METHODS),
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
        help="judge intervals by Student's t: the spread of M members trained apart is an "
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
    evaluated = open_model(args.model, args.batch_size, args.device)
    evaluated.posterior = args.posterior or evaluated.posterior
    frames = {name: _read(evaluated, files) for name, files in paths.items()}
    calibration_frames = _read(evaluated, args.calibrate)
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
        record["in_training"] = any(
            sha256(path) in evaluated.seen for path in paths[record["split"]]
        )

    written = [write_json(args.out / "metrics.json", records)]
    if calibration_frames:
        # Recognises the frames in an artifact that is calibrated on them, and judged later.
        fingerprints = sorted(fingerprint(atoms) for atoms in calibration_frames)
        intervals = fit_intervals(calibration, args.method) | {"fingerprints": fingerprints}
        content = {
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


def named_paths(arguments: Iterable[str]) -> dict[str, list[Path]]:
    """`name=path` or `path` (named by its stem) -> name -> paths."""
    out: dict[str, list[Path]] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or "/" in name:
            name, path = Path(argument).name.split(".")[0], argument
        out.setdefault(name, []).append(Path(path))
    return out


def show(records: list[dict[str, Any]], written: list[Path]) -> None:
    """One row per split; a second line in a cell is the value after recalibration."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    title = f"{records[0]['posterior']}: errors in {records[0]['energy_unit']}, meV/Å, meV/Å³"
    recalibrated = any("ce_f_recal" in record or "ce_e_recal" in record for record in records)
    table = Table(
        title=title + "; second line: recalibrated" * recalibrated,
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    columns = {
        "split": lambda r: (
            r["split"]
            + (" (OOD)" if r["ood"] else "")
            + ("\n(trained on)" if r["in_training"] else "")
        ),
        "frames": lambda r: str(r["n_frames"]),
        "RMSE E": lambda r: _number(r, "rmse_e", ".2f"),
        "RMSE F": lambda r: _number(r, "rmse_f", ".1f"),
        "RMSE S": lambda r: _number(r, "rmse_s", ".2f"),
        "σ F": lambda r: _number(r, "sharpness_f", ".1f"),
        "CE E": lambda r: _pair(r, "ce_e", ".4f"),
        "chance\nE": lambda r: _number(r, "ce_e_floor", ".4f"),
        "CE F": lambda r: _pair(r, "ce_f", ".4f"),
        "chance\nF": lambda r: _number(r, "ce_f_floor", ".4f"),
        "in 90 %\nE": lambda r: _pair(r, "coverage90_e", ".3f"),
        "in 90 %\nF": lambda r: _pair(r, "coverage90_f", ".3f"),
        "PIT KS": lambda r: _pair(r, "pit_ks", ".3f"),
        "NLL F": lambda r: _pair(r, "nll_f", ".2f"),
        "AUROC": lambda r: _number(r, "auroc", ".3f"),
        "ideal": lambda r: _number(r, "auroc_ideal", ".3f"),
        "AUROC\nby σ E": lambda r: _number(r, "auroc_energy", ".3f"),
        "best\ntrivial": lambda r: _number(r, "auroc_trivial", ".3f"),
    }
    rows = [[text(record) for text in columns.values()] for record in records]
    shown = [k for k in range(len(columns)) if any(row[k] for row in rows)]
    for k in shown:
        table.add_column(list(columns)[k], justify="left" if k == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[k] for k in shown))
    console.print(table)
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)


def _number(record: dict[str, Any], key: str, form: str) -> str:
    value = record.get(key)
    return "" if value is None or math.isnan(value) else f"{value:{form}}"


def _pair(record: dict[str, Any], key: str, form: str) -> str:
    before, after = _number(record, key, form), _number(record, f"{key}_recal", form)
    return f"{before}\n{after}" if after else before


def _read(evaluated: EvaluatedModel, paths: Iterable[Path]) -> list[ase.Atoms]:
    return [atoms for path in paths for atoms in evaluated.read(path)]
