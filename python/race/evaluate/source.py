"""What makes the predictions to be judged: a run's folder through its model, or an artifact
through `race.Calculator`.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import numpy as np

from race.conventions import SIX_TO_VOIGT
from race.data import Dataset, read_frames
from race.errors import RaceError
from race.evaluate.calibration import IntervalTable, Recalibration
from race.posterior.prediction import (
    Estimate,
    Labels,
    Prediction,
    concatenate,
    join_labels,
    law_of_total_variance,
    predict_dataset,
)
from race.posterior.registry import posterior_name

QUANTITIES = ("energy", "forces", "stress")


class Source(ABC):
    """A model with a name for its posterior.

    posterior: goes into the records; extra: further entries of every record; log:
    training log, if any; seen: sha256 of the files that it was trained on; fitted,
    force_std_scale: the recalibration that it carries, and calibrated_on the fingerprints
    of the frames that this was fitted to; keys: arguments of `read_frames`.
    """

    posterior: str
    extra: dict[str, Any]
    log: Path | None = None
    seen: set[str] = set()
    fitted: dict[str, Recalibration] = {}
    force_std_scale: float | None = None
    calibrated_on: set[str] = set()
    keys: dict[str, Any]

    def read(self, path: Path) -> list[ase.Atoms]:
        """Labelled frames; energies are required."""
        return read_frames(path, require=("energy",), **self.keys)

    @abstractmethod
    def predict(self, frames: list[ase.Atoms]) -> tuple[Prediction, Labels]: ...


class RunSource(Source):
    """A folder written by `race train`."""

    def __init__(self, path: Path, batch_size: int = 8, device: str | None = None):
        from race.train.run import load_run

        self.model, config, summary = load_run(path)
        self.model = self.model.to(device or "cpu")
        self.batch_size, self.log = batch_size, path / "log.csv"
        self.posterior = label(posterior_name(config.model, summary), config.model.head)
        self.extra = {"n_members": config.model.n_members, "head": config.model.head}
        if "seconds" in summary:
            self.extra["train_s"] = summary["seconds"]
        data, files = config.data, summary.get("training", {}).get("files", {})
        self.seen = {files[str(name)] for name in data.train if str(name) in files}
        self.keys = {
            "energy_key": data.energy_key,
            "forces_key": data.forces_key,
            "stress_key": data.stress_key,
            "units": data.units,
        }

    def predict(self, frames: list[ase.Atoms]) -> tuple[Prediction, Labels]:
        dtype = next(self.model.parameters()).dtype
        elements, r_max = self.model.constants.elements, self.model.config.r_max
        return predict_dataset(self.model, Dataset(frames, elements, r_max, dtype), self.batch_size)


class ArtifactSource(Source):
    """A compiled artifact, read by the runtime that LAMMPS uses too."""

    def __init__(self, path: Path, device: str | None = None):
        from race import Calculator

        self.calculator = Calculator(path, device=device or "cpu", uncertainty=True)
        about = self.calculator.metadata
        self.posterior, self.keys = label(about["posterior"], about["head"]), {}
        self.extra = {"n_members": about["n_members"], "head": about["head"]}

        intervals = about.get("intervals", {})
        levels = np.array(intervals.get("levels", []))
        self.fitted = {
            name: IntervalTable(levels, np.array(intervals[name]))
            for name in QUANTITIES
            if name in intervals
        }
        self.force_std_scale = about["calibration"].get("force_std_scale")
        self.calibrated_on = set(intervals.get("fingerprints", []))

    def predict(self, frames: list[ase.Atoms]) -> tuple[Prediction, Labels]:
        results = []
        for atoms in frames:
            self.calculator.calculate(atoms)
            results.append(self.calculator.results)
        return prediction_of_results(results), labels_of_frames(frames)


def open_source(path: Path, batch_size: int = 8, device: str | None = None) -> Source:
    """A run's folder or an artifact.

    Raises:
        RaceError: there is neither.
    """
    if path.is_dir():
        return RunSource(path, batch_size, device)
    if path.is_file():
        return ArtifactSource(path, device)
    raise RaceError(
        "no such run or artifact",
        where=path,
        expected="a folder made by `race train` or a .race.pt file",
    )


def label(posterior: str, head: str) -> str:
    """The posterior's name; of a single member its head, which is then all that knows of
    an error.
    """
    return head if posterior == "point" else posterior


def prediction_of_results(results: list[dict[str, Any]]) -> Prediction:
    """Moments from the results of `race.Calculator(uncertainty=True)`, one dictionary per frame."""
    return concatenate(_moments(result) for result in results)


def _moments(result: dict[str, Any]) -> Prediction:
    energy = law_of_total_variance(result["energy_members"][None])
    if "energy_std" in result:
        energy = replace(
            energy, aleatoric=np.maximum(result["energy_std"] ** 2 - energy.epistemic, 0)
        )
    zero = np.zeros((*result["forces"].shape, 3))
    cov = [
        np.asarray(result.get(f"forces_cov_{part}", zero), dtype=np.float64)
        for part in ("aleatoric", "epistemic")
    ]
    forces = Estimate(np.asarray(result["forces"], dtype=np.float64), *cov)
    six = list(SIX_TO_VOIGT)
    members = result.get("stress_members", np.full((len(result["energy_members"]), 6), np.nan))
    noise = (
        np.asarray(result["stress_cov_aleatoric"])[None, None][..., six, :][..., six]
        if "stress_cov_aleatoric" in result
        else None
    )
    return Prediction(energy, forces, law_of_total_variance(members[None][..., six], noise))


def labels_of_frames(frames: list[ase.Atoms]) -> Labels:
    """References of frames from `read_frames`."""

    def label(place: dict, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(place.get(name, np.full(shape, np.nan)), dtype=np.float64)

    parts = [
        Labels(
            energy=label(atoms.info, "energy", ()).reshape(1),
            forces=label(atoms.arrays, "forces", (len(atoms), 3)),
            stress=label(atoms.info, "stress", (6,)).reshape(1, 6),
            frame=np.zeros(len(atoms), dtype=np.int64),
            n_atoms=np.array([len(atoms)]),
            symbols=np.array(atoms.get_chemical_symbols()),
        )
        for atoms in frames
    ]
    return join_labels(parts)
