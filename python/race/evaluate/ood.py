"""Out-of-distribution detection: does the predicted uncertainty of a frame tell it from the frames the model knows?"""

from collections.abc import Sequence

import numpy as np

from race.evaluate.bootstrap import clustered_interval
from race.evaluate.ranking import auprc, auroc, frame_score, simulated_errors
from race.evaluate.report import N_BOOTSTRAP, Split


def frame_scores(split: Split, source: str = "epistemic") -> dict[str, np.ndarray]:
    """Scores [n_frames]: "mean" and "max" over atoms of sqrt(tr Sigma_i / 3), eV/Angstrom, and "energy", std per atom, eV.

    source: "epistemic" or "total". Without force predictions only "energy".
    """
    out = {"energy": np.sqrt(getattr(split.prediction.energy, source)) / split.labels.n_atoms}
    if split.prediction.forces is not None:
        cov = getattr(split.prediction.forces, source)
        per_atom = np.sqrt(np.trace(cov, axis1=-2, axis2=-1) / 3)
        out |= {pooling: frame_score(per_atom, split.labels.frame, split.n_frames, pooling) for pooling in ("mean", "max")}
    return out


def ood_record(known: Sequence[Split], ood: Split, n_resamples: int = N_BOOTSTRAP) -> dict:
    """AUROC and AUPRC of an OOD split against the in-distribution splits.

    The score is the epistemic uncertainty, or the total where no split has an epistemic one (a single member). Keys:
        auroc, auprc: score "mean" of `frame_scores` ("energy" without forces); auroc_max, auroc_energy: the other scores.
        auroc_ideal: what the RMS force error of a frame reaches as its own score, errors being drawn from the predicted covariances.
        auroc_observed: what the actual RMS force error reaches; well below auroc, the split is strange but not wrong.
    """
    splits = [*known, ood]
    source = "epistemic" if any((split.prediction.energy.epistemic > 0).any() for split in splits) else "total"
    positive = np.concatenate([np.full(split.n_frames, split is ood) for split in splits])
    scores = [frame_scores(split, source) for split in splits]
    joined = {name: np.concatenate([score[name] for score in scores]) for name in scores[0]}
    if not any(values.any() for values in joined.values()):
        return {}
    main = joined.get("mean", joined["energy"])
    out: dict = {"ood_score": source, "auroc": auroc(main, positive), "auprc": auprc(main, positive)}
    interval = clustered_interval(lambda rows: auroc(main[rows], positive[rows]), len(main), n_resamples=n_resamples)
    out |= {"interval90": {"auroc": interval}, "auroc_energy": auroc(joined["energy"], positive)}
    if "max" in joined:
        out["auroc_max"] = auroc(joined["max"], positive)
    drawn, observed = zip(*(_frame_errors(split) for split in splits), strict=True)
    out["auroc_ideal"] = float(np.mean([auroc(draw, positive) for draw in np.concatenate(drawn, axis=1)]))
    out["auroc_observed"] = auroc(np.concatenate(observed), positive)
    return out


def _frame_errors(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Error magnitude of each frame, drawn from the prediction [n_simulations, n_frames] and observed [n_frames]."""
    n_atoms = split.labels.n_atoms
    forces = split.residual("forces")
    if forces is None:
        draws = simulated_errors(split.prediction.energy.total[:, None, None])[..., 0]
        return np.abs(draws) / n_atoms, np.abs(split.labels.energy - split.prediction.energy.mean) / n_atoms
    draws = (simulated_errors(forces.cov) ** 2).sum(-1)
    drawn = np.stack([frame_score(draw, forces.frame, split.n_frames) for draw in draws])
    return np.sqrt(drawn), np.sqrt(frame_score((forces.error**2).sum(-1), forces.frame, split.n_frames))
