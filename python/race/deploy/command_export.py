"""`race export run -o x.race.pt`."""

import argparse
import json
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from race.config import BaselineOptions
from race.deploy.hybrid import hybrid_lines
from race.errors import RaceError

if TYPE_CHECKING:  # torch, which the help does without
    from race.data import Batch
    from race.posterior.protocol import Run

logger = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder that `race train` wrote")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="the artifact, NAME.race.pt"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        help="of the stored weights (default: as trained)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        help="calibration.json that `race evaluate --calibrate` wrote; LAMMPS applies it",
    )
    parser.add_argument(
        "--leaders",
        action="store_true",
        help="carry each member by itself as well, for `lead M`: dynamics that pay for one "
        "member; the file is twice as large",
    )
    parser.add_argument(
        "--distilled",
        type=Path,
        metavar="RUN",
        help="carry the one-member model of another run, as `race fit distill` makes it of this "
        "one, for `lead distilled`",
    )
    parser.add_argument(
        "--grade",
        choices=("mahalanobis", "gmm"),
        default="mahalanobis",
        help="how the grade measures what is unlike the training set: distance from its mean by "
        "element, or likelihood under Gaussian mixtures (default: mahalanobis)",
    )
    parser.add_argument(
        "--portable",
        action="store_true",
        help="stock torch operators only: slower, needs no compiled kernel",
    )


def run(args: argparse.Namespace) -> None:
    if not args.output.name.endswith(".race.pt"):
        raise RaceError(
            "unusual name of an artifact",
            where="--output",
            expected="NAME.race.pt",
            got=args.output.name,
        )
    from race.deploy.export import alone, export_model
    from race.posterior.protocol import Run
    from race.train.run import identity, load_run, trained_on

    run = Run.load(args.run)
    model, digest = run.model, identity(args.run)
    summary = run.summary | {
        "identity": digest,
        "trained_on": sorted(trained_on(run.config, run.summary)),
    }
    calibration, intervals = (
        read_calibration(args.calibration, digest) if args.calibration else ({}, {})
    )
    leaders = alone(model) if args.leaders else {}
    if args.distilled:
        leaders["distilled"], _, about = load_run(args.distilled)
        if about.get("posterior", {"weights": []}).get("weights", [digest]) != [digest]:
            logger.warning(
                f"{args.distilled} was not distilled of {args.run} as it is now: where the two "
                "differ, dynamics follow the former and uncertainties are the latter's"
            )
    digest = export_model(
        model,
        args.output,
        dtype=args.dtype,
        portable=args.portable,
        summary=summary,
        calibration=calibration,
        intervals=intervals,
        leaders=leaders,
        training_set=training_set(run, args.grade),
        grade=args.grade,
    )
    print(
        f"{args.output}  {args.output.stat().st_size / 1e6:.1f} MB  sha256 {digest}  self-test "
        "passed"
    )
    if (baseline := model.constants.baseline) is not None:
        print("\n".join(said(baseline, args.output, model.constants.elements)))


def said(baseline: BaselineOptions, path: Path, elements: Sequence[str]) -> list[str]:
    """How LAMMPS adds the baseline."""
    if lines := hybrid_lines(baseline, path, elements):
        return ["in LAMMPS, with the baseline:", *(f"  {line}" for line in lines)]
    return [
        f"the model adds to a baseline, {baseline.calculator}: in LAMMPS give pair_style "
        "hybrid/overlay both (data.baseline.lammps names its commands)"
    ]


def training_set(run: "Run", grade: str = "mahalanobis") -> Iterable["Batch"]:
    """Batches of the run's training set that its grade is fitted to; none, with a warning, where
    its files are not at hand.
    """
    if run.model.has_leverage and grade == "mahalanobis":  # its distance is the grade
        return
    from race.model.grade import N_ATOMS, N_RARE

    try:
        dataset = run.prepare().train
    except (RaceError, OSError) as error:
        warnings.warn(f"the artifact has no grade: {error}", stacklevel=2)
        return
    yield from dataset.sampled(run.config.train.batch_size, N_ATOMS, N_RARE)


def read_calibration(
    path: Path, model: str | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """The part of an evaluation's calibration.json that librace and LAMMPS apply.

    Args:
        path: of the file.
        model: what it has to be of (race.train.run.identity), where it says so.

    Returns:
        Factors on predicted standard deviations, those there are of force_std_scale (of
        the whole covariance, where it is regular), energy_std_scale and stress_std_scale;
        and the table of calibrated intervals (race.evaluate.report.fit_intervals).
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RaceError(f"cannot read the calibration ({error})", where=path) from None
    expected = "a file of `race evaluate --calibrate`"
    intervals = content.get("intervals", {}) if isinstance(content, dict) else None
    if not isinstance(intervals, dict) or (intervals and "levels" not in intervals):
        raise RaceError("is no calibration", where=path, expected=expected)
    if model is not None and content.get("model") not in (None, model):
        raise RaceError(
            "was fitted to the errors of another model",
            where=path,
            expected=f"one of model {model[:12]}..., as it is now",
            got=f"{content['model'][:12]}...",
            remedy="calibrate this run: race evaluate RUN ... --calibrate FILE",
        )
    scales = dict(intervals.get("scale", {}))
    scales["forces"] = (
        content.get("covariance_scale")
        or scales.get("forces")
        or content.get("forces", {}).get("scale")
    )
    named = {
        "forces": "force_std_scale",
        "energy": "energy_std_scale",
        "stress": "stress_std_scale",
    }
    calibration = {
        named[quantity]: scale
        for quantity, scale in scales.items()
        if type(scale) in (int, float) and scale > 0
    }
    if "force_std_scale" not in calibration and "energy" not in intervals:
        raise RaceError(
            "no factor for the force or energy uncertainty",
            where=path,
            expected=expected,
        )
    return calibration, {key: value for key, value in intervals.items() if key != "scale"}
