"""Scores of how much a frame's label would teach the model, from its members' predictions.

Bayesian active learning by disagreement: BALD_E of the energy, BALD_F of the force on each
atom (race.predict.moments), the latter averaged over the atoms of a frame. The grade, of any
model: how unlike the training set the most unlike atom of a frame is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from race.active.pool import Candidate
from race.errors import RaceError
from race.evaluate.evaluated import open_model
from race.predict.predictor import Predictor, Progress

SCORES = ("max-variance", "max-epistemic", "bald-energy", "bald-force", "grade")


@dataclass(frozen=True)
class FrameScores:
    """Scores of one frame; None where the model does not give it.

    variance: mean over atoms of tr Sigma_total / 3, (eV/A)^2; of a model without force
    uncertainty the variance of the energy per atom, eV^2; epistemic: its epistemic part,
    which no label's noise raises. bald_energy, bald_force: nats. grade: the largest of the
    atoms; infinite for an element that was in no training frame.
    """

    variance: float | None
    bald_energy: float | None
    bald_force: float | None
    epistemic: float | None = None
    grade: float | None = None

    def get(self, strategy: str) -> float | None:
        """The score by which a strategy ranks; None where the model does not give it."""
        return getattr(self, strategy.removeprefix("max-").replace("-", "_"))


def score_pool(
    candidates: Sequence[Candidate],
    names: Sequence[str],
    model: "Scorer | None",
    progress: Progress = lambda n: None,
) -> dict[str, np.ndarray]:
    """[n] scores, large ones wanted, for each of `names` of SCORES.

    A dump that has the columns needed is taken at its word; other frames are predicted by
    the model, once.

    Raises:
        RaceError: no model where one is needed, a model that cannot tell, a score that is
            not finite (naming the frame).
    """
    values = {name: [_of_columns(candidate, name) for candidate in candidates] for name in names}
    ask = [k for k in range(len(candidates)) if any(values[name][k] is None for name in names)]
    if ask and model is None:
        raise RaceError(
            f"no model to tell {' and '.join(names)}",
            where=candidates[ask[0]].where,
            expected="RUN or NAME.race.pt before the pool",
            remedy="or a dump with compute race/atom, and --compute to say which of its columns "
            "are what",
        )
    for k, scores in zip(
        ask,
        model.scores([candidates[k] for k in ask], progress) if model and ask else [],
        strict=True,
    ):
        for name in names:
            if values[name][k] is None:
                values[name][k] = scores.get(name)
    out = {}
    for name, column in values.items():
        if any(value is None for value in column):
            remedy = (
                "give an artifact, NAME.race.pt: `race export` fits the grade to the training set"
                if name == "grade"
                else "train an ensemble with a head that predicts noise (equivariant), or use "
                "max-variance, fps or random"
            )
            raise RaceError(
                f"this model has no {name} score", where=getattr(model, "name", None), remedy=remedy
            )
        out[name] = np.array(column, dtype=np.float64)
        wrong = np.isnan(out[name]) if name == "grade" else ~np.isfinite(out[name])
        if wrong.any():
            bad = int(np.flatnonzero(wrong)[0])
            raise RaceError(
                f"the {name} score is not finite",
                where=candidates[bad].where,
                got=out[name][bad],
                remedy="leave this frame out",
            )
    return out


def pool_information(
    candidates: Sequence[Candidate], model: "Scorer | None", progress: Progress = lambda n: None
) -> np.ndarray:
    """[n, M, M] of every frame, see `race.predict.moments.joint_information`.

    Raises:
        RaceError: no model, or one without members and a noise of energies and forces; a
            frame of which it is not finite.
    """
    information = None
    if model is not None:
        information = model.predictor.predict(
            [candidate.bare for candidate in candidates], progress=progress, joint=True
        ).information
    if information is None:
        raise RaceError(
            "no joint information of energy and forces",
            where=getattr(model, "name", None),
            expected="a run or artifact of several members with a covariance head before the pool",
        )
    finite = np.isfinite(information).all((1, 2))
    if not finite.all():
        bad = candidates[int(np.argmin(finite))]
        raise RaceError(
            "the information is not finite", where=bad.where, remedy="leave this frame out"
        )
    return information


def _of_columns(candidate: Candidate, strategy: str) -> float | None:
    columns = candidate.columns
    if strategy == "max-variance" and "force/cov" in columns:
        return float(columns["force/cov"][:, :3].mean())
    if strategy == "max-variance" and "force/std" in columns:
        return float(np.mean(columns["force/std"] ** 2))
    if strategy == "max-epistemic" and "force/epistemic" in columns:
        return float(columns["force/epistemic"][:, :3].mean())
    if strategy == "bald-force" and "bald" in columns:
        return float(columns["bald"].mean())
    if strategy == "grade" and "grade" in columns:
        return float(columns["grade"].max())
    return None


class Scorer:
    """A predictor that scores frames; `name` is the path it was read from."""

    def __init__(self, predictor: Predictor, name: Path):
        self.predictor, self.name = predictor, name

    def scores(
        self, candidates: Sequence[Candidate], progress: Progress = lambda n: None
    ) -> list[FrameScores]:
        """The scores of each candidate."""
        frames = [candidate.bare for candidate in candidates]
        if not frames:
            return []
        prediction, gives = self.predictor.predict(frames, progress=progress), self.predictor.gives
        n_atoms = np.array([len(atoms) for atoms in frames])
        first = np.cumsum(n_atoms) - n_atoms

        def means(values: np.ndarray) -> np.ndarray:  # over the atoms of each frame
            return np.add.reduceat(values, first) / n_atoms

        columns: list[np.ndarray | None] = [None, prediction.energy_bald, None, None, None]
        if gives.forces and prediction.forces is not None:
            columns[0] = means(np.trace(prediction.forces.total, axis1=-2, axis2=-1) / 3)
            if gives.forces_epistemic:
                columns[3] = means(np.trace(prediction.forces.epistemic, axis1=-2, axis2=-1) / 3)
        elif gives.energy:
            columns[0] = prediction.energy.total / n_atoms**2
            if gives.ensemble:
                columns[3] = prediction.energy.epistemic / n_atoms**2
        if prediction.forces_bald is not None:
            columns[2] = means(prediction.forces_bald)
        if prediction.grade is not None:
            columns[4] = np.maximum.reduceat(prediction.grade, first)
        rows = ([None] * len(frames) if values is None else values.tolist() for values in columns)
        return [FrameScores(*row) for row in zip(*rows, strict=True)]


def open_scorer(path: Path, batch_size: int = 8, device: str = "cpu") -> Scorer:
    """A run's folder or an artifact.

    Raises:
        RaceError: there is neither.
    """
    return Scorer(open_model(path, batch_size, device).predictor, path)
