"""`race rank EVALUATION...`: the unified scores of several evaluations, best first.

It reads what `race evaluate` wrote, so that models are evaluated once each, wherever and
whenever, and comparing them costs nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from race.errors import RaceError
from race.files import as_json

SAME = 1e-6  # relative; spreads are functions of the references alone


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "evaluations",
        nargs="+",
        type=Path,
        metavar="EVALUATION",
        help="folders that `race evaluate --out` wrote, with the same splits, some of them --ood",
    )
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")


def run(args: argparse.Namespace) -> None:
    from race.evaluate.score import TERMS  # imports torch

    rows = ranked(args.evaluations)
    if args.json:
        print(
            as_json(
                [
                    {"evaluation": str(path), "posterior": posterior, **score}
                    for path, posterior, score in rows
                ]
            )
        )
        return
    console = Console(width=None if Console().is_terminal else 140)
    table = Table(
        title="unified score: 0 is perfect; terms relative to knowing nothing", box=box.SIMPLE
    )
    for k, column in enumerate(
        ("", "posterior", "score", "RMSE E", "RMSE F", "CE E", "CE F", "1-AUROC")
    ):
        table.add_column(column, justify="left" if k < 2 else "right", no_wrap=True)
    for path, posterior, score in rows:
        table.add_row(str(path), posterior, *(f"{score[key]:.4f}" for key in ("score", *TERMS)))
    console.print(table)


def ranked(evaluations: list[Path]) -> list[tuple[Path, str, dict[str, Any]]]:
    """(folder, posterior, score) from the best on; ties as given.

    Raises:
        RaceError: no evaluation, one without a score, evaluations on different references.
    """
    from race.evaluate.score import unified_score  # imports torch

    rows = []
    for path in evaluations:
        try:
            records = json.loads((path / "metrics.json").read_text())
        except (OSError, ValueError) as error:
            raise RaceError(
                f"not an evaluation ({error})",
                where=path,
                expected="a folder that `race evaluate --out` wrote",
            ) from None
        score = unified_score(
            [
                {key: value for key, value in record.items() if value is not None}
                for record in records
            ]
        )
        if score is None:
            remedy = (
                "evaluate with labelled splits in and out of distribution (--ood) and a model "
                "that knows its error"
            )
            raise RaceError("no unified score", where=path / "metrics.json", remedy=remedy)
        rows.append((path, str(records[0]["posterior"]), score))
        _check_same(rows[0][2]["on"], score["on"], rows[0][0], path)
    return sorted(rows, key=lambda row: row[2]["score"])


def _check_same(first: dict[str, Any], other: dict[str, Any], first_path: Path, path: Path) -> None:
    same = first.keys() == other.keys() and all(
        abs(a - b) <= SAME * max(abs(a), abs(b))
        for name in first
        for a, b in zip(first[name], other[name], strict=True)
    )
    if not same:
        remedy = "evaluate both on the same files"
        raise RaceError(
            f"its splits are not those of {first_path}",
            where=path,
            expected=first,
            got=other,
            remedy=remedy,
        )
