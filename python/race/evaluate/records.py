"""The records of an evaluation: one per split, with the comparison of OOD splits to the others."""

from typing import Any

from race.evaluate.calibration import Recalibration
from race.evaluate.evaluated import EvaluatedModel
from race.evaluate.ood import ood_record
from race.evaluate.report import split_record
from race.evaluate.split import Split


def make_records(
    evaluated: EvaluatedModel,
    splits: list[Split],
    fitted: dict[str, Recalibration],
    scale: float | None,
    n_resamples: int,
) -> list[dict[str, Any]]:
    """One record per split, OOD splits being compared to all others."""
    known = [split for split in splits if not split.ood]
    records = []
    for split in splits:
        record = {
            "posterior": evaluated.posterior,
            "ood": split.ood,
            **evaluated.extra,
        } | split_record(split, fitted, scale, n_resamples)
        if split.ood and known:
            detection = ood_record(known, split, n_resamples)
            record["interval90"] |= detection.pop("interval90", {})
            record |= detection
        records.append(record)
    return records
