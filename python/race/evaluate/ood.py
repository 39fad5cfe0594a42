"""Out-of-distribution detection: does the predicted uncertainty of a frame tell it from the
frames the model knows?
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from race.evaluate.bootstrap import N_BOOTSTRAP, clustered_interval
from race.evaluate.ranking import auprc, auroc, frame_score, simulated_errors
from race.evaluate.split import Split


def frame_scores(split: Split, source: str = "epistemic") -> dict[str, np.ndarray]:
    """Scores [n_frames] by name:

        mean, max   over atoms, of sqrt(tr Sigma_i / 3), eV/Angstrom
        energy      standard deviation per atom, eV
        stress      RMS of the six standard deviations, eV/Angstrom^3
        bald        1/2 ln (var_total / var_aleatoric) of the energy, nats: the information
                    of its label about the members. Noise of a frame does not raise it, as
                    it raises a variance.
        grade       of the atom least like the training set (race.model.grade); it is no
                    uncertainty, and `source` does not change it

    Scores of targets that are not predicted are left out.

    Args:
        split: the frames.
        source: "epistemic" or "total".
    """
    out = {"energy": np.sqrt(getattr(split.prediction.energy, source)) / split.size}
    if (split.prediction.energy.aleatoric > 0).all():
        out["bald"] = 0.5 * np.log(
            split.prediction.energy.total / split.prediction.energy.aleatoric
        )
    if split.prediction.forces is not None:
        cov = getattr(split.prediction.forces, source)
        per_atom = np.sqrt(np.trace(cov, axis1=-2, axis2=-1) / 3)
        out |= {
            pooling: frame_score(per_atom, split.labels.frame, split.n_frames, pooling)
            for pooling in ("mean", "max")
        }
    if split.prediction.stress is not None:
        stress = np.sqrt(np.trace(getattr(split.prediction.stress, source), axis1=-2, axis2=-1) / 6)
        if np.isfinite(stress).all():  # frames without a volume have none
            out["stress"] = stress
    if split.prediction.grade is not None:
        # Infinite of an element that was never trained on; ranks need numbers
        grade = np.minimum(split.prediction.grade, np.finfo(np.float64).max)
        out["grade"] = frame_score(grade, split.labels.frame, split.n_frames, "max")
    return out


def ood_record(
    known: Sequence[Split], ood: Split, n_resamples: int = N_BOOTSTRAP
) -> dict[str, Any]:
    """AUROC and AUPRC of an OOD split against the in-distribution splits, each with a
    bootstrap interval.

    The score is the epistemic uncertainty, or the total where no split has an epistemic
    one (a single member). Keys:
        auroc, auprc: score "mean" of `frame_scores` ("energy" without forces); auroc_max,
            auroc_energy, auroc_stress, auroc_bald, auroc_grade (and auprc_...): the other
            scores.
        ..._ideal: the value that the error of a frame reaches as its own score, with
            errors drawn from the predicted covariances: RMS or largest force error, error
            of the energy per atom, RMS error of the stress. The grade has none.
        auroc_trivial: the best of scores that know nothing of errors (`Split.trivial`:
            energy, RMS force, density, shortest distance), each from the better side;
            auroc_by_energy and so on: each of them. An uncertainty that does not beat
            them has not been seen to detect anything.
        auroc_observed: the value that the actual RMS force error reaches. If it is well
            below auroc, the split is unlike the others but predicted well.
    """
    splits = [*known, ood]
    source = (
        "epistemic"
        if any((split.prediction.energy.epistemic > 0).any() for split in splits)
        else "total"
    )
    positive = np.concatenate([np.full(split.n_frames, split is ood) for split in splits])
    scores = [frame_scores(split, source) for split in splits]
    names = [name for name in scores[0] if all(name in score for score in scores)]
    joined = {name: np.concatenate([score[name] for score in scores]) for name in names}
    if not any(values.any() for values in joined.values()):
        return {}
    main = "mean" if "mean" in joined else "energy"
    out: dict[str, Any] = {"ood_score": source, "interval90": {}}
    for name, values in joined.items():
        if not values.any():
            continue
        drawn = None if name == "grade" else _joined_draws(splits, name)
        for suffix in [""] * (name == main) + [f"_{name}"] * (name != "mean"):
            for key, metric in ((f"auroc{suffix}", auroc), (f"auprc{suffix}", auprc)):
                out[key] = metric(values, positive)
                if drawn is not None:
                    out[f"{key}_ideal"] = float(np.mean([metric(draw, positive) for draw in drawn]))
                score = partial(_of_rows, metric, values, positive)
                out["interval90"][key] = clustered_interval(
                    score, len(values), n_resamples=n_resamples
                )
    common = [name for name in splits[0].trivial if all(name in split.trivial for split in splits)]
    for name in common:
        area = auroc(np.concatenate([split.trivial[name] for split in splits]), positive)
        out[f"auroc_by_{name}"] = max(area, 1 - area)
    if common:
        out["auroc_trivial"] = max(out[f"auroc_by_{name}"] for name in common)
    out["auroc_observed"] = auroc(
        np.concatenate([_observed_errors(split) for split in splits]), positive
    )
    return out


def _of_rows(
    metric: Callable[..., Any], score: np.ndarray, positive: np.ndarray, rows: np.ndarray
) -> float:
    return metric(score[rows], positive[rows])


def _joined_draws(splits: Sequence[Split], score: str) -> np.ndarray:
    """[n_simulations, n_frames] over all splits."""
    return np.concatenate([_drawn_errors(split, score) for split in splits], axis=1)


def _drawn_errors(split: Split, score: str) -> np.ndarray:
    """[n_simulations, n_frames] error magnitudes that go with a score of `frame_scores`,
    drawn from the prediction.
    """
    if score in ("energy", "bald"):
        return (
            np.abs(simulated_errors(split.prediction.energy.total[:, None, None])[..., 0])
            / split.size
        )
    if score == "stress":
        assert split.prediction.stress is not None
        return np.linalg.norm(simulated_errors(split.prediction.stress.total), axis=-1)
    assert split.prediction.forces is not None
    square = (simulated_errors(split.prediction.forces.total) ** 2).sum(-1)
    return np.sqrt(
        [frame_score(draw, split.labels.frame, split.n_frames, score) for draw in square]
    )


def _observed_errors(split: Split) -> np.ndarray:
    """[n_frames] RMS force error, or the error of the energy per atom without forces."""
    forces = split.residual("forces")
    if forces is None:
        return np.abs(split.labels.energy - split.prediction.energy.mean) / split.size
    return np.sqrt(frame_score((forces.error**2).sum(-1), forces.frame, split.n_frames))
