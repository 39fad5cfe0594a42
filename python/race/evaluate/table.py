"""The table of `race evaluate`."""

import math
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

TABLE_WIDTH = 170  # where the output is not a terminal


def show(records: list[dict[str, Any]], written: list[Path]) -> None:
    """One row per split; a second line in a cell is the value after recalibration."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    title = f"{records[0]['posterior']}: errors in {records[0]['energy_unit']}, meV/Å, meV/Å³"
    recalibrated = any("ce_f_recal" in record or "ce_e_recal" in record for record in records)
    table = Table(
        title=title + "; second line: recalibrated" * recalibrated,
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    columns = {
        "split": lambda r: (
            r["split"]
            + (" (OOD)" if r["ood"] else "")
            + ("\n(trained on)" if r["in_training"] else "")
        ),
        "frames": lambda r: str(r["n_frames"]),
        "RMSE E": lambda r: _number(r, "rmse_e", ".2f"),
        "RMSE F": lambda r: _number(r, "rmse_f", ".1f"),
        "RMSE S": lambda r: _number(r, "rmse_s", ".2f"),
        "σ F": lambda r: _number(r, "sharpness_f", ".1f"),
        "CE E": lambda r: _pair(r, "ce_e", ".4f"),
        "chance\nE": lambda r: _number(r, "ce_e_floor", ".4f"),
        "CE F": lambda r: _pair(r, "ce_f", ".4f"),
        "chance\nF": lambda r: _number(r, "ce_f_floor", ".4f"),
        "in 90 %\nE": lambda r: _pair(r, "coverage90_e", ".3f"),
        "in 90 %\nF": lambda r: _pair(r, "coverage90_f", ".3f"),
        "PIT KS": lambda r: _pair(r, "pit_ks", ".3f"),
        "NLL F": lambda r: _pair(r, "nll_f", ".2f"),
        "AUROC": lambda r: _number(r, "auroc", ".3f"),
        "ideal": lambda r: _number(r, "auroc_ideal", ".3f"),
        "AUROC\nby σ E": lambda r: _number(r, "auroc_energy", ".3f"),
        "by\ngrade": lambda r: _number(r, "auroc_grade", ".3f"),
        "best\ntrivial": lambda r: _number(r, "auroc_trivial", ".3f"),
    }
    rows = [[text(record) for text in columns.values()] for record in records]
    shown = [k for k in range(len(columns)) if any(row[k] for row in rows)]
    for k in shown:
        table.add_column(list(columns)[k], justify="left" if k == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[k] for k in shown))
    console.print(table)
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)


def _number(record: dict[str, Any], key: str, form: str) -> str:
    value = record.get(key)
    return "" if value is None or math.isnan(value) else f"{value:{form}}"


def _pair(record: dict[str, Any], key: str, form: str) -> str:
    before, after = _number(record, key, form), _number(record, f"{key}_recal", form)
    return f"{before}\n{after}" if after else before
