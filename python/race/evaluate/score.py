"""One number by which to choose among models: how far they are from knowing everything, and
from knowing what they do not know.

    score = mean of  RMSE_E / spread_E,  RMSE_F / spread_F,  CE_E / CE_max,  CE_F /
    CE_max,  1 - AUROC

Every term is 0 for a perfect model and 1 (1/2 for the last) for one that knows nothing,
whatever the material and the units:
    spread_E   scatter of the energies per atom about the best sum of atomic energies:
               what composition alone leaves unexplained;
    spread_F   RMS of the reference force components: the error of predicting none;
    CE_max     mean of p^2 over the levels, 0.328: the calibration error where no interval
               ever holds the reference, or every one does;
    AUROC      of telling out-of-distribution splits by their epistemic uncertainty
               (race.evaluate.ood).
The errors and calibration errors are means over the splits in distribution, before
recalibration; the AUROC is the mean over the others.

The paper normalises among the models that it compares. Here the normalisation depends on
the references alone, so that a score does not change when another model joins, and
evaluations made one by one can be ranked: `race rank`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from race.evaluate.metrics import LEVELS

CE_MAX = float(np.mean(LEVELS**2))
SMALLEST_SPREAD = 1e-6  # meV/atom, meV/Angstrom
TERMS = ("rmse_e", "rmse_f", "ce_e", "ce_f", "1-auroc")


def unified_score(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The score and its terms from the records of `race evaluate`; None where a term is missing.

    Keys: score, one for each of TERMS, and on = {split: [n_frames, n_atoms, spread_e,
    spread_f]}, which tells evaluations that can be compared: those of the same
    references.
    """
    known, ood = (
        [record for record in records if not record["ood"]],
        [record for record in records if record["ood"]],
    )
    if not known or not ood:
        return None

    def mean(name: str, spread: str | None, among: Sequence[dict[str, Any]]) -> float:
        scales = [record.get(spread, math.nan) if spread else 1.0 for record in among]
        if min(scales) < SMALLEST_SPREAD:  # references that are all alike
            return math.nan
        return float(
            np.mean(
                [
                    record.get(name, math.nan) / scale
                    for record, scale in zip(among, scales, strict=True)
                ]
            )
        )

    terms = {
        "rmse_e": mean("rmse_e", "spread_e", known),
        "rmse_f": mean("rmse_f", "spread_f", known),
        "ce_e": mean("ce_e", None, known) / CE_MAX,
        "ce_f": mean("ce_f", None, known) / CE_MAX,
        "1-auroc": 1 - mean("auroc", None, ood),
    }
    if not all(math.isfinite(value) for value in terms.values()):
        return None
    on = {
        record["split"]: [
            record["n_frames"],
            record["n_atoms"],
            record["spread_e"],
            record["spread_f"],
        ]
        for record in records
    }
    return {"score": float(np.mean(list(terms.values()))), **terms, "on": on}


def sentence(score: dict[str, Any]) -> str:
    """The line that `race evaluate` prints."""
    names = {
        "rmse_e": "RMSE E",
        "rmse_f": "RMSE F",
        "ce_e": "CE E",
        "ce_f": "CE F",
        "1-auroc": "1-AUROC",
    }
    terms = ", ".join(f"{name} {score[key]:.3f}" for key, name in names.items())
    return (
        f"unified score {score['score']:.4f} (0 is perfect; {terms}, each relative to knowing "
        "nothing)"
    )
