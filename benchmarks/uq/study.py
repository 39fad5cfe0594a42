"""One study: runs that are trained, fitted, judged and timed once each, whatever is
interrupted, and the records that come of them.

OUT/runs/NAME/            as `race train` and `race fit` write them, and asked.json: what
was asked for OUT/evaluations/NAME.json records of one run, one for each split
OUT/artifacts/NAME.race.pt, NAME.cost.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
import race._race
import torch
import yaml

from race.config import Config
from race.data.graph import neighbors, species_index
from race.deploy.command_export import training_set
from race.deploy.export import export_model
from race.errors import RaceError
from race.evaluate.evaluated import EvaluatedModel, check_calibration, open_model
from race.evaluate.records import make_records
from race.evaluate.report import covariance_scale, fit_recalibration
from race.evaluate.split import Split
from race.files import write_json
from race.posterior.fit import fit
from race.posterior.protocol import Run
from race.train.training import train

HERE = Path(__file__).resolve().parent
METRICS = (
    "rmse_e",
    "rmse_f",
    "rmse_s",
    "mae_e",
    "mae_f",
    "ce_e",
    "ce_e_floor",
    "ce_f",
    "ce_f_floor",
    "ce_e_recal",
    "ce_f_recal",
    "coverage90_e",
    "coverage90_f",
    "coverage90_s",
    "coverage90_p",
    "coverage90_e_recal",
    "coverage90_f_recal",
    "pit_ks",
    "pit_ks_floor",
    "pit_ks_recal",
    "nll_e",
    "nll_f",
    "nll_f_recal",
    "sharpness_f",
    "ause_f",
    "ause_f_ideal",
    "auroc_error_f",
    "auroc_error_f_ideal",
    "auroc_error_f_grade",
    "auroc_error_f_by_forces",
    "auroc_error_f_by_nearest",
    "auroc_error_f_trivial",
    "auroc",
    "auroc_ideal",
    "auroc_max",
    "auroc_max_ideal",
    "auroc_energy",
    "auroc_energy_ideal",
    "auroc_bald",
    "auroc_stress",
    "auroc_grade",
    "auroc_by_energy",
    "auroc_by_forces",
    "auroc_by_density",
    "auroc_by_nearest",
    "auroc_trivial",
    "auroc_observed",
)
ABOUT = ("n_members", "head", "n_frames", "ood")

Records = list[dict[str, Any]]
Further = Callable[[EvaluatedModel, Sequence[Split], Records], Records]


class Study:
    """The folder `out`. What is there is not made again; what was made with other options
    is refused.

    bootstrap: resamples of frames for the 90 % intervals of the records. timing: seconds
    for which an MD step is repeated in each round.
    """

    def __init__(self, out: Path, bootstrap: int, timing: float):
        self.out, self.bootstrap, self.timing = out, bootstrap, timing

    def train(self, name: str, config: Mapping[str, Any]) -> Path:
        """`race train --resume` with the sections `data`, `model` and `train`."""
        run, checked = self.out / "runs" / name, Config.model_validate(config)
        if not self._asked(run, {"config": checked.model_dump(mode="json")}):
            say(f"training {name}")
            train(checked, run, resume=True)
        return run

    def fit(self, name: str, posterior: str, runs: Sequence[Path], **options: Any) -> Path:
        """`race fit --resume`."""
        run = self.out / "runs" / name
        if not self._asked(
            run, {"posterior": posterior, "runs": [path.name for path in runs], "options": options}
        ):
            say(f"fitting {name}")
            fit(posterior, runs, run, options, resume=True)
        return run

    def _asked(self, run: Path, what: dict[str, Any]) -> bool:
        """Whether the run is finished; refuses one that is or was to be another."""
        asked = run.parent / f"{run.name}.asked.json"
        asked.parent.mkdir(parents=True, exist_ok=True)
        if asked.exists() and complete(json.loads(asked.read_text())) != what:
            raise RaceError(
                "was made with other options",
                where=run,
                remedy=f"remove {run} and {asked}, or use another --out",
            )
        write_json(asked, what)
        summary = run / "summary.json"
        return (
            (run / "config.yaml").exists()
            and summary.exists()
            and "seconds" in json.loads(summary.read_text())
        )

    def evaluate(
        self,
        name: str,
        run: Path,
        splits: Mapping[str, Sequence[Path]],
        ood: Sequence[str] = (),
        calibration: Sequence[Path] = (),
        further: Further | None = None,
    ) -> list[dict[str, Any]]:
        """What `race evaluate` finds of a run or an artifact, reduced to METRICS and their
        bootstrap intervals, one record per split. further: what it makes of these records.
        """
        path = self.out / "evaluations" / f"{name}.json"
        if not path.exists():
            say(f"judging {name}")
            source = open_model(run)
            frames = {
                split: [atoms for file in files for atoms in source.read(file)]
                for split, files in splits.items()
            }
            fitted, scale = {}, None
            if calibration:
                known = [atoms for file in calibration for atoms in source.read(file)]
                check_calibration(source, list(calibration), known, frames)
                held_out = source.split("calibration", known)
                fitted, scale = fit_recalibration(held_out, "isotonic"), covariance_scale(held_out)
            judged = [source.split(split, atoms, split in ood) for split, atoms in frames.items()]
            records = [
                reduced(record)
                for record in make_records(source, judged, fitted, scale, self.bootstrap)
            ]
            if further is not None:
                records = further(source, judged, records)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, records)
        return json.loads(path.read_text())

    def export(self, run: Path) -> Path:
        """`race export`."""
        artifact = self.out / "artifacts" / f"{run.name}.race.pt"
        if not artifact.exists():
            say(f"exporting {run.name}")
            artifact.parent.mkdir(parents=True, exist_ok=True)
            source = Run.load(run)
            training = training_set(source)
            export_model(source.model, artifact, summary=source.summary, training_set=training)
        return artifact

    def cost(self, name: str, run: Path, single: Path, atoms: ase.Atoms) -> dict[str, float]:
        """Time of librace's predict over that of the run `single`, of one member, without
        uncertainty: median of rounds in which all take turns. `md_cost`: with all
        uncertainties; `md_cost_mean`: energy and forces alone.
        """
        path = self.out / "artifacts" / f"{name}.cost.json"
        if not path.exists():
            say(f"timing {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            calls = [
                self._predictor(run, atoms, True),
                self._predictor(run, atoms, False),
                self._predictor(single, atoms, False),
            ]
            write_json(
                path,
                dict(
                    zip(
                        ("md_cost", "md_cost_mean"),
                        interleaved_ratios(calls, self.timing),
                        strict=True,
                    )
                ),
            )
        return json.loads(path.read_text())

    def _predictor(self, run: Path, atoms: ase.Atoms, uncertain: bool):
        model = race._race.load(str(self.export(run)), "cpu", None, "")
        about = json.loads(model.metadata)
        sender, receiver, vector = neighbors(
            atoms.positions, np.asarray(atoms.cell.array), atoms.pbc, about["r_max"]
        )
        row_ptr = np.concatenate([[0], np.bincount(receiver, minlength=len(atoms)).cumsum()])
        arrays = [
            torch.from_numpy(np.ascontiguousarray(a))
            for a in (species_index(atoms, about["elements"]), vector, sender, row_ptr)
        ]

        def call() -> None:
            out = model.predict(*arrays, members=uncertain, uncertainty=uncertain)
            if uncertain and about["n_members"] > 1:
                race._race.member_covariance(out["forces"])

        return call


def complete(asked: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, options of training that have come since at their defaults."""
    return (
        asked | {"config": Config.model_validate(asked["config"]).model_dump(mode="json")}
        if "config" in asked
        else asked
    )


def interleaved_ratios(calls: Sequence, seconds: float, rounds: int = 9) -> list[float]:
    """Medians over rounds of the time of each of calls[:-1] over that of calls[-1], each
    repeated for about `seconds`.
    """
    ratios, counts = [], []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        counts.append(max(1, round(seconds / (time.perf_counter() - start))))
    for _ in range(rounds):
        times = []
        for call, count in zip(calls, counts, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                call()
            times.append((time.perf_counter() - start) / count)
        ratios.append([time / times[-1] for time in times[:-1]])
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


def reduced(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of `race evaluate` with METRICS alone, null where there is none, and their
    intervals.
    """
    out = {key: record.get(key) for key in ("posterior", "split", *ABOUT, *METRICS)}
    return out | {
        "interval90": {
            key: both
            for key, both in record["interval90"].items()
            if key in METRICS and None not in both and np.isfinite(both).all()
        }
    }


def seconds(run: Path, own: bool = False) -> float:
    """Training time of a run and of all that it was fitted to; own: of the fit alone."""
    summary = json.loads((run / "summary.json").read_text())
    return summary["posterior"]["fit_seconds"] if own else summary["seconds"]


def arguments(
    name: str, description: str | None, reads_data: bool = True
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Command line, and the study's options: NAME.yaml, changed by its section `quick`
    under --quick. reads_data: it needs --data.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "output" / name,
        help="folder of runs (default: benchmarks/uq/output/NAME)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=HERE / "results",
        help="folder of the tables (default: benchmarks/uq/results)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=reads_data,
        default=Path(),
        help="folder that holds 3bpa/, b2o3/ and rmd17/" + ", not read here" * (not reads_data),
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="everything in seconds, to see that it runs; the figures mean nothing",
    )
    args = parser.parse_args()
    options = yaml.safe_load((HERE / f"{name}.yaml").read_text())
    quick = options.pop("quick")
    args.out, args.data = args.out.resolve(), args.data.resolve()
    return args, merged(options, quick) if args.quick else options


def merged(options: Any, changes: Any) -> Any:
    """Nested dictionaries, those of `changes` winning."""
    if not isinstance(options, dict) or not isinstance(changes, dict):
        return changes
    return options | {key: merged(options.get(key), value) for key, value in changes.items()}


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)
