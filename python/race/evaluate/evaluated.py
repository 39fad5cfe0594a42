"""The model that is evaluated: a run, or an artifact, with what the records say of it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np

from race.config import BaselineOptions
from race.data import read_frames
from race.data.fingerprint import fingerprint
from race.data.graph import neighbors
from race.data.label_noise import NOISE, BySource, frame_noise, set_noise
from race.data.levels import FILE, Offsets, source_of, subtract_offsets
from race.errors import RaceError
from race.evaluate.calibration import IntervalTable, Recalibration
from race.evaluate.ranking import frame_score
from race.evaluate.split import Split
from race.heads import trained_head
from race.posterior.registry import posterior_name
from race.predict.artifact import ArtifactPredictor
from race.predict.baseline import with_baseline
from race.predict.prediction import Estimate, Labels, Prediction, frame_labels
from race.predict.predictor import ModelPredictor, Predictor
from race.train.files import sha256
from race.train.run import identity, load_run, trained_on

QUANTITIES = ("energy", "forces", "stress")


FARTHEST = 5.0  # Angstrom, to which the nearest atom is looked for


@dataclass
class EvaluatedModel:
    """A predictor with its provenance.

    identity: of the run (race.train.run), None of artifacts that do not say; posterior: its
    name, which goes into the records; extra: further entries of every
    record; keys: arguments of `read_frames`; log: training log, if any; seen: sha256 of
    the files that it was trained on; fitted, force_std_scale: the recalibration that it
    carries, and calibrated_on the fingerprints of the frames that this was fitted to;
    extensive: its target adds up over atoms; energy_offsets, source_key: of levels of
    theory (race.data.levels); label_noise: of sources (race.data.label_noise); baseline: what
    predictions gain (race.data.baseline).
    """

    predictor: Predictor
    posterior: str
    extra: dict[str, Any]
    identity: str | None = None
    keys: dict[str, Any] = field(default_factory=dict)
    log: Path | None = None
    seen: set[str] = field(default_factory=set)
    fitted: dict[str, Recalibration] = field(default_factory=dict)
    force_std_scale: float | None = None
    calibrated_on: set[str] = field(default_factory=set)
    extensive: bool = True
    energy_offsets: Offsets = field(default_factory=dict)
    source_key: str = FILE
    label_noise: BySource = field(default_factory=dict)
    baseline: BaselineOptions | None = None

    def read(self, path: Path) -> list[ase.Atoms]:
        """Frames with energies, forces or both."""
        frames = read_frames(path, require=(), wanted=("energy", "forces"), **self.keys)
        subtract_offsets(frames, self.energy_offsets, self.source_key, mean=not self.extensive)
        for atoms in frames:
            if own := self.label_noise.get(source_of(atoms, self.source_key)):
                set_noise(atoms, own, mean=not self.extensive)
        return frames

    def split(
        self, name: str, frames: list[ase.Atoms], ood: bool = False, student: bool = False
    ) -> Split:
        """The frames with their predictions, for evaluation. Labels with noise of their own are
        compared with predictions that include this noise.

        Args:
            name: of the split.
            frames: its frames.
            ood: they are out of distribution.
            student: errors are compared with Student's t.
        """
        prediction, labels = self.predict(frames)
        prediction = of_labels(prediction, frames)
        n_members = self.extra["n_members"] if student else None
        split = Split(
            name, prediction, labels, ood, temperatures(frames), self.extensive, n_members
        )
        distances = [nearest_distances(atoms) for atoms in frames]
        return replace(
            split,
            trivial=trivial_scores(frames, split, distances),
            trivial_atoms=trivial_scores_of_atoms(split, distances),
        )

    def predict(self, frames: list[ase.Atoms]) -> tuple[Prediction, Labels]:
        """Forces and stress are predicted where a frame has labels of forces."""
        labels = frame_labels(frames)
        return self.moments(frames, forces=labels.forces is not None), labels

    def moments(self, frames: Sequence[ase.Atoms], forces: bool = True) -> Prediction:
        """Predicts frames with or without labels, the baseline included."""
        found = self.predictor.predict(frames, forces=forces)
        return found if self.baseline is None else with_baseline(found, frames, self.baseline)


def evaluated_run(path: Path, batch_size: int = 8, device: str | None = None) -> EvaluatedModel:
    """A folder written by `race train` or `race fit`."""
    model, config, summary = load_run(path)
    extra = {"n_members": config.model.n_members, "head": config.model.head}
    if "seconds" in summary:
        extra["train_s"] = summary["seconds"]
    data = config.data
    return EvaluatedModel(
        ModelPredictor(model, batch_size, device),
        label(posterior_name(config.model, summary), config.model.head),
        extra,
        identity(path),
        keys=data.reading(),
        log=path / "log.csv",
        seen=trained_on(config, summary),
        extensive=config.model.pooling == "sum",
        energy_offsets=config.constants.energy_offsets,
        source_key=data.source_key,
        label_noise=data.label_noise,
        baseline=config.constants.baseline,
    )


def evaluated_artifact(path: Path, device: str | None = None) -> EvaluatedModel:
    """A compiled artifact, read by the runtime that LAMMPS uses too."""
    predictor = ArtifactPredictor(path, device)
    about, head = predictor.metadata, trained_head(predictor.metadata)
    intervals = about.get("intervals", {})
    levels = np.array(intervals.get("levels", []))
    return EvaluatedModel(
        predictor,
        label(about["posterior"], head),
        {"n_members": about["n_members"], "head": head},
        about.get("run"),
        seen=set(about.get("trained_on", [])),
        fitted={
            name: IntervalTable(levels, np.array(intervals[name]))
            for name in QUANTITIES
            if name in intervals
        },
        force_std_scale=about["calibration"].get("force_std_scale"),
        calibrated_on=set(intervals.get("fingerprints", [])),
        extensive=not predictor.intensive,
        baseline=predictor.baseline,
    )


def open_model(path: Path, batch_size: int = 8, device: str | None = None) -> EvaluatedModel:
    """A run's folder or an artifact.

    Raises:
        RaceError: there is neither.
    """
    if path.is_dir():
        return evaluated_run(path, batch_size, device)
    if path.is_file():
        return evaluated_artifact(path, device)
    raise RaceError(
        "no such run or artifact",
        where=path,
        expected="a folder made by `race train` or a .race.pt file",
    )


def check_calibration(
    evaluated: EvaluatedModel,
    paths: list[Path],
    calibration: list[ase.Atoms],
    splits: dict[str, list[ase.Atoms]],
) -> None:
    """Refuses a recalibration fitted to frames that the model was trained on or that it
    would be evaluated on.
    """
    for path in paths:
        if sha256(path) in evaluated.seen:
            raise RaceError(
                "the model was trained on it",
                where=f"--calibrate {path}",
                expected="frames held out of training",
            )
    known, what = {fingerprint(atoms) for atoms in calibration}, "are also in --calibrate"
    if not calibration:
        known, what = evaluated.calibrated_on, "are those that the artifact was calibrated on"
    for name, frames in splits.items():
        if shared := sum(fingerprint(atoms) in known for atoms in frames):
            remedy = "calibrate on other frames than those you evaluate"
            raise RaceError(
                f"{shared} of {len(frames)} frames {what}", where=f"split {name}", remedy=remedy
            )


def of_labels(prediction: Prediction, frames: Sequence[ase.Atoms]) -> Prediction:
    """With the labels' own noise added to what is aleatoric."""
    if not any(NOISE in atoms.info for atoms in frames):
        return prediction
    energy, forces, stress = np.array([frame_noise(atoms) for atoms in frames]).T ** 2
    on_atoms = np.repeat(forces, [len(atoms) for atoms in frames])

    def wider(estimate: Estimate | None, own: np.ndarray) -> Estimate | None:
        if estimate is None:
            return None
        if estimate.aleatoric.ndim == 3:
            own = own[:, None, None] * np.eye(estimate.aleatoric.shape[-1])
        return replace(estimate, aleatoric=estimate.aleatoric + own)

    return replace(
        prediction,
        energy=replace(prediction.energy, aleatoric=prediction.energy.aleatoric + energy),
        forces=wider(prediction.forces, on_atoms),
        stress=wider(prediction.stress, stress),
    )


def trivial_scores(
    frames: list[ase.Atoms], split: Split, distances: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Scores that tell frames apart without any uncertainty, [n_frames] each: the mean prediction's
    energy per atom (eV), its RMS force (eV/Angstrom), atoms per volume (1/Angstrom^3) and
    the shortest distance of two atoms (Angstrom). A score that one frame lacks is left
    out. distances: `nearest_distances` of each frame.
    """
    prediction = split.prediction
    out = {"energy": prediction.energy.mean / split.size}
    if prediction.forces is not None:
        square = (prediction.forces.mean**2).sum(1)
        out["forces"] = np.sqrt(frame_score(square, split.labels.frame, split.n_frames) / 3)
    if all(atoms.pbc.all() for atoms in frames):
        out["density"] = np.array([len(atoms) / atoms.get_volume() for atoms in frames])
    if all(len(atoms) > 1 for atoms in frames):
        out["nearest"] = np.array([of_atoms.min() for of_atoms in distances])
    return out


def trivial_scores_of_atoms(split: Split, distances: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Likewise of the atoms of all frames, [n_atoms] each: the norm of the predicted force and
    the distance of the nearest atom.
    """
    out = {"nearest": np.concatenate(distances)}
    if split.prediction.forces is not None:
        out["forces"] = np.linalg.norm(split.prediction.forces.mean, axis=1)
    return out


def nearest_distances(atoms: ase.Atoms) -> np.ndarray:
    """To another atom, not to an atom's own image, [n_atoms] Angstrom, at most FARTHEST."""
    cell = np.asarray(atoms.cell.array)
    sender, receiver, vector = neighbors(atoms.positions, cell, atoms.pbc, FARTHEST)
    out, others = np.full(len(atoms), FARTHEST), sender != receiver
    np.minimum.at(out, receiver[others], np.linalg.norm(vector[others], axis=1))
    return out


def temperatures(frames: Iterable[ase.Atoms]) -> np.ndarray:
    """[n_frames] info["temperature"] (K); NaN where a frame has none that is a number."""

    def number(value: object) -> float:
        return float(value) if isinstance(value, int | float | np.number) else math.nan

    return np.array([number(atoms.info.get("temperature")) for atoms in frames])


def label(posterior: str, head: str) -> str:
    """The posterior's name; of a single member its head, which is then all that knows of
    an error.
    """
    return head if posterior == "point" else posterior
