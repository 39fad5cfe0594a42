"""What a label of a frame would teach the model, from its members' predictions.

Bayesian active learning by disagreement (Houlsby et al. 2011, arXiv:1112.5745): the
mutual information of the label and the member, with the mixture of the members' Gaussians
replaced by the Gaussian of its moments,

    BALD_E = 1/2 ln var_total - mean_m 1/2 ln var_m
    BALD_F = mean_atoms ( 1/2 ln det Sigma_total - mean_m 1/2 ln det Sigma_m ),

var_m and Sigma_m being what member m holds to be noise; nats. It is zero where members
agree, however large the noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from race.active.pool import Candidate
from race.data import Dataset
from race.data.graph import Batch
from race.errors import RaceError
from race.model.heads import evidential_kappa
from race.model.race import RACE
from race.posterior.prediction import law_of_total_variance

SCORES = ("max-variance", "bald-energy", "bald-force")
Progress = Callable[[int], Any]  # told how many frames are done


def half_logdet(cov: np.ndarray) -> np.ndarray:
    """1/2 ln det of matrices [..., d, d], NaN where one is not positive definite.

    By Cholesky: a determinant of variances underflows long before its logarithm does.
    """
    cov = np.asarray(cov, dtype=np.float64)
    try:
        factor = np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:
        if cov.ndim == 2:
            return np.array(np.nan)
        return np.stack([half_logdet(part) for part in cov])
    return np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)


def bald_energy(energy: np.ndarray, var: np.ndarray) -> np.ndarray:
    """[n] nats, from each member's energies [n, M] eV and noise variances [n, M] eV^2."""
    var = np.asarray(var, dtype=np.float64)
    return 0.5 * np.log(law_of_total_variance(energy, var).total) - 0.5 * np.log(var).mean(axis=1)


def bald_forces(
    forces: np.ndarray, cov: np.ndarray, epistemic: np.ndarray | None = None
) -> np.ndarray:
    """[n] nats per atom, from each member's forces [n, M, 3] eV/A and noise covariances [n,
    M, 3, 3] (eV/A)^2.

    epistemic: [n, M, 3, 3], what a member itself holds to be epistemic (evidential head).
    """
    return half_logdet(law_of_total_variance(forces, cov, epistemic).total) - half_logdet(cov).mean(
        axis=1
    )


@dataclass(frozen=True)
class FrameScores:
    """Scores of one frame; None where the model does not give it.

    variance: mean over atoms of tr Sigma_total / 3, (eV/A)^2; of a model without force
    uncertainty the variance of the energy per atom, eV^2. bald_energy, bald_force: nats.
    """

    variance: float | None
    bald_energy: float | None
    bald_force: float | None

    def get(self, strategy: str) -> float | None:
        return getattr(self, {"max-variance": "variance"}.get(strategy, strategy.replace("-", "_")))


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
                "train an ensemble with a head that predicts noise (equivariant), or use "
                "max-variance, fps or random"
            )
            raise RaceError(
                f"this model has no {name} score", where=getattr(model, "name", None), remedy=remedy
            )
        out[name] = np.array(column, dtype=np.float64)
        if not np.isfinite(out[name]).all():
            bad = int(np.flatnonzero(~np.isfinite(out[name]))[0])
            raise RaceError(
                f"the {name} score is not finite",
                where=candidates[bad].where,
                got=out[name][bad],
                remedy="leave this frame out",
            )
    return out


def _of_columns(candidate: Candidate, strategy: str) -> float | None:
    columns = candidate.columns
    if strategy == "max-variance" and "force/cov" in columns:
        return float(columns["force/cov"][:, :3].mean())
    if strategy == "max-variance" and "force/std" in columns:
        return float(np.mean(columns["force/std"] ** 2))
    if strategy == "bald-force" and "bald" in columns:
        return float(columns["bald"].mean())
    return None


class Scorer:
    """A model that scores frames; `name` is the path it was read from."""

    name: Path

    def scores(
        self, candidates: Sequence[Candidate], progress: Progress = lambda n: None
    ) -> list[FrameScores]:
        raise NotImplementedError


class RunScorer(Scorer):
    """The model of a run's folder."""

    def __init__(self, path: Path, batch_size: int = 8, device: str = "cpu"):
        from race.train.run import load_run

        self.name, self.batch_size = path, batch_size
        self.model = load_run(path)[0].to(device)

    def dataset(self, candidates: Sequence[Candidate]) -> Dataset:
        dtype = next(self.model.parameters()).dtype
        return Dataset(
            [candidate.bare for candidate in candidates],
            self.model.constants.elements,
            self.model.config.r_max,
            dtype,
        )

    def scores(
        self, candidates: Sequence[Candidate], progress: Progress = lambda n: None
    ) -> list[FrameScores]:
        out: list[FrameScores] = []
        for batch in self.dataset(candidates).batches(self.batch_size):
            out += batch_scores(self.model, batch.to(next(self.model.parameters()).device))
            progress(batch.n_frames)
        return out


def batch_scores(model: RACE, batch: Batch) -> list[FrameScores]:
    """Scores of the frames of one batch."""
    out = {name: value.detach() for name, value in model(batch).tensors().items()}
    # [n_frames, M], [n_atoms, M, 3]
    energy, forces = (out[name].double().cpu().numpy() for name in ("energy", "forces"))
    energy_var = out["energy_var"].double().cpu().numpy() if model.has_energy_var else None
    cov = epistemic = None
    if model.has_forces_cov:
        with torch.no_grad():
            cov = model.forces_cov(out["raw"]).double().cpu().numpy()
            if model.head == "evidential":
                epistemic = (
                    cov / evidential_kappa(out["raw"]).double().cpu().numpy()[..., None, None]
                )
    ensemble, counts = energy.shape[1] > 1, batch.n_atoms_per_frame.cpu().numpy()
    frames = np.split(np.arange(len(forces)), np.cumsum(counts)[:-1])

    def means(values: np.ndarray) -> list[float]:
        return [float(values[rows].mean()) for rows in frames]

    variance: Sequence[float | None] = [None] * len(frames)
    by_energy, by_force = variance, variance
    if cov is not None or ensemble:
        total = law_of_total_variance(forces, cov, epistemic).total
        variance = means(np.trace(total, axis1=-2, axis2=-1) / 3)
    elif energy_var is not None:
        variance = list(law_of_total_variance(energy, energy_var).total / counts**2)
    if energy_var is not None and ensemble:
        by_energy = list(bald_energy(energy, energy_var))
    if cov is not None and (ensemble or epistemic is not None):
        by_force = means(bald_forces(forces, cov, epistemic))
    return [FrameScores(*row) for row in zip(variance, by_energy, by_force, strict=True)]


class ArtifactScorer(Scorer):
    """An artifact, through the runtime that LAMMPS uses too."""

    def __init__(self, path: Path, device: str = "cpu"):
        from race import Calculator

        self.name = path
        self.calculator = Calculator(path, device=device, uncertainty=True)

    def scores(
        self, candidates: Sequence[Candidate], progress: Progress = lambda n: None
    ) -> list[FrameScores]:
        out = []
        for candidate in candidates:
            self.calculator.calculate(candidate.bare)
            found: dict[str, Any] = self.calculator.results
            variance = None
            if "forces_cov" in found:
                variance = float(np.trace(found["forces_cov"], axis1=1, axis2=2).mean() / 3)
            elif "energy_std" in found:
                variance = float(found["energy_std"] ** 2 / len(candidate.atoms) ** 2)
            bald = float(np.mean(found["bald"])) if "bald" in found else None
            out.append(FrameScores(variance, found.get("energy_bald"), bald))
            progress(1)
        return out


def open_scorer(path: Path, batch_size: int = 8, device: str = "cpu") -> Scorer:
    """A run's folder or an artifact.

    Raises:
        RaceError: there is neither.
    """
    if path.is_dir():
        return RunScorer(path, batch_size, device)
    if path.is_file():
        return ArtifactScorer(path, device)
    raise RaceError(
        "no such run or artifact",
        where=path,
        expected="a folder made by `race train` or a .race.pt file",
    )
