"""Tables of records, and the files NAME.json and NAME.md that hold them."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import results  # noqa: E402
from provenance import stamp  # noqa: E402

FORMS = {
    "rmse_e": ("RMSE E", ".2f"),
    "rmse_f": ("RMSE F", ".1f"),
    "rmse_s": ("RMSE S", ".2f"),
    "mae_e": ("MAE E", ".2f"),
    "mae_f": ("MAE F", ".1f"),
    "ce_e": ("CE E", ".4f"),
    "ce_e_floor": ("by chance", ".4f"),
    "ce_f": ("CE F", ".4f"),
    "ce_f_floor": ("by chance", ".4f"),
    "ce_e_recal": ("CE E recal.", ".4f"),
    "ce_f_recal": ("CE F recal.", ".4f"),
    "coverage90_e": ("E in 90 %", ".3f"),
    "coverage90_f": ("F in 90 %", ".3f"),
    "coverage90_s": ("stress in 90 %", ".3f"),
    "coverage90_p": ("pressure in 90 %", ".3f"),
    "coverage90_f_recal": ("F in 90 % recal.", ".3f"),
    "coverage90_e_recal": ("E in 90 % recal.", ".3f"),
    "pit_ks": ("PIT KS", ".3f"),
    "pit_ks_floor": ("by chance", ".3f"),
    "pit_ks_recal": ("PIT KS recal.", ".3f"),
    "nll_e": ("NLL E", ".2f"),
    "nll_f": ("NLL F", ".2f"),
    "nll_f_recal": ("NLL F scaled", ".2f"),
    "ause_f": ("AUSE F", ".3f"),
    "ause_f_ideal": ("ideal", ".3f"),
    "auroc_error_f": ("error AUROC", ".3f"),
    "auroc_error_f_ideal": ("ideal", ".3f"),
    "auroc_error_f_grade": ("by grade", ".3f"),
    "auroc_error_f_by_forces": ("by force", ".3f"),
    "auroc_error_f_by_nearest": ("by distance", ".3f"),
    "auroc_error_f_trivial": ("best trivial", ".3f"),
    "auroc": ("AUROC by F", ".3f"),
    "auroc_ideal": ("ideal", ".3f"),
    "auroc_energy": ("AUROC by E", ".3f"),
    "auroc_bald": ("by BALD E", ".3f"),
    "auroc_max": ("by largest F", ".3f"),
    "auroc_stress": ("by stress", ".3f"),
    "auroc_grade": ("by grade", ".3f"),
    "auroc_by_energy": ("energy", ".3f"),
    "auroc_by_forces": ("RMS force", ".3f"),
    "auroc_by_density": ("density", ".3f"),
    "auroc_by_nearest": ("distance", ".3f"),
    "auroc_trivial": ("best trivial", ".3f"),
    "auroc_observed": ("by error", ".3f"),
    "auroc_defect": ("defect AUROC", ".3f"),
    "auroc_defect_grade": ("by grade", ".3f"),
    "auroc_defect_by_forces": ("by force", ".3f"),
    "auroc_defect_by_nearest": ("by distance", ".3f"),
    "n_members": ("members", "d"),
    "train_s": ("training s", ".0f"),
    "fit_s": ("fit s", ".0f"),
    "md_cost": ("MD step", ".2f"),
    "md_cost_mean": ("of the mean", ".2f"),
}


def table(
    records: Sequence[Mapping[str, Any]],
    first: Mapping[str, str],
    keys: Sequence[str],
    intervals: bool = False,
) -> list[str]:
    """Markdown rows, one for each record.

    first: heading -> key of the columns that name a record; keys: those of FORMS, left
    out where no record has a value; intervals: with those of `interval90`.
    """
    keys = [key for key in keys if any(record.get(key) is not None for record in records)]
    lines = [
        "| " + " | ".join([*first, *(FORMS[key][0] for key in keys)]) + " |",
        "|" + "---|" * (len(first) + len(keys)),
    ]
    for record in records:
        cells = [str(record[key]) for key in first.values()] + [
            cell(record, key, FORMS[key][1], intervals) for key in keys
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def cell(record: Mapping[str, Any], key: str, form: str, interval: bool = False) -> str:
    """The figure; with half the range of its seeds where there are several. interval: with its
    90 % interval, where it has one.
    """
    value = record.get(key)
    if value is None:
        return ""
    if interval and (both := record.get("interval90", {}).get(key)):
        return f"{value:{form}} ({both[0]:{form}} to {both[1]:{form}})"
    spread = record.get("spread", {}).get(key)
    return f"{value:{form}}" + (f" ± {spread:{form}}" if spread is not None else "")


def pooled(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """One record for several seeds: means, and in `spread` half the range. Whatever else
    they share is kept.
    """
    out: dict[str, Any] = {
        key: value
        for key, value in records[0].items()
        if all(record.get(key) == value for record in records)
    }
    out |= {"spread": {}, "seeds": len(records)}
    for key in keys:
        values = [record[key] for record in records if record.get(key) is not None]
        if len(values) == len(records):
            out[key] = sum(values) / len(values)
            out["spread"][key] = (max(values) - min(values)) / 2
        else:
            out[key] = None
    return out


def averaged(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """`pooled`, with the means of the bounds of the intervals, too: those are of frames that are
    drawn anew while the model stays.
    """
    if len(records) == 1:
        return dict(records[0])
    both = set.intersection(*(set(record["interval90"]) for record in records))
    intervals = {
        key: [sum(bound) / len(records) for bound in zip(*of, strict=True)]
        for key in records[0]["interval90"]
        if key in both
        for of in [[record["interval90"][key] for record in records]]
    }
    return pooled(records, keys) | {"interval90": intervals}


Draw = Callable[[Sequence[Mapping[str, Any]]], list[str]]


def write(folder: Path, name: str, records: Sequence[Mapping[str, Any]], draw: Draw) -> None:
    """NAME.json: where, when and of which versions, and the records, one to a line; NAME.md,
    drawn from it alone. A study that is run again passes its first records first: while
    they are those that stand there, the file and its stamp are kept.
    """
    path = folder / f"{name}.json"
    records = [dict(record) for record in records]
    known = read(path)[: len(records)]
    # As text: a NaN differs from itself
    if not known or json.dumps(known) != json.dumps(records):
        results.write(path, records, about=stamp())
    path.with_suffix(".md").write_text(page(path, draw))


def read(path: Path) -> list[dict[str, Any]]:
    """The records of NAME.json, none if there is no such file."""
    return json.loads(path.read_text())["records"] if path.exists() else []


def page(path: Path, draw: Draw) -> str:
    """NAME.md of NAME.json."""
    return (
        "\n".join([*draw(read(path)), "", results.said(json.loads(path.read_text())["about"])])
        + "\n"
    )
