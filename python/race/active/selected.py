"""The selected frames: their file, and a table on the terminal."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from race.active.pool import Candidate
from race.active.strategies import Choice, describe
from race.data.io import write_frames

SHOWN = 12  # rows of the table


def write_selected(
    path: Path, pool: Sequence[Candidate], choices: Sequence[Choice], strategy: str
) -> None:
    """Extended xyz of the chosen frames with all that they had, and info keys of `describe`."""
    frames = []
    for choice in choices:
        atoms = pool[choice.index].atoms.copy()
        atoms.calc = pool[choice.index].atoms.calc
        atoms.info |= describe(choice, pool[choice.index], strategy)
        frames.append(atoms)
    write_frames(path, frames)


def listed(pool: Sequence[Candidate], choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """What was chosen as records, best first."""
    return [
        {
            "file": str(pool[choice.index].source),
            "frame": pool[choice.index].index,
            "score": choice.score,
            "by": choice.by,
        }
        for choice in choices
    ]


def show(pool: Sequence[Candidate], choices: Sequence[Choice], output: Path, budget: int) -> None:
    """Prints what was chosen, a row for each structure."""
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("", "score", "by", "file", "frame"):
        table.add_column(
            column, justify="left" if column in ("by", "file") else "right", no_wrap=True
        )
    for rank, choice in enumerate(choices[:SHOWN], 1):
        candidate = pool[choice.index]
        score = "" if choice.score is None else f"{choice.score:.4g}"
        table.add_row(str(rank), score, choice.by, str(candidate.source), str(candidate.index))
    if len(choices) > SHOWN:
        table.add_row("...")
    console.print(table)
    n_from = Counter(str(pool[choice.index].source) for choice in choices)
    parts = ", ".join(f"{n} of {source}" for source, n in n_from.items()) if len(n_from) > 1 else ""
    console.print(
        f"{output}: {len(choices)} of {len(pool)} frames" + (f" ({parts})" if parts else ""),
        highlight=False,
        soft_wrap=True,
    )
    if len(choices) < budget:
        console.print(
            f"the budget of {budget} is not used up: the other frames are known or too like "
            "those chosen",
            highlight=False,
        )
