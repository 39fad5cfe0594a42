"""The chart of the main README, from results/cpu.json.

python benchmarks/chart.py
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from contests import ENSEMBLE  # noqa: E402
from report import AOT, JIT, MACE, one, trained  # noqa: E402
from results import FINAL, ROOT  # noqa: E402

PICTURE = ROOT / "docs" / "speed.png"
OURS, THEIRS = "#1f6fb4", "#b9bec4"


def bars(
    records: list[dict],
) -> tuple[list[tuple[str, float, bool]], list[tuple[str, float, bool]]]:
    """(label, value, ours) for inference in us/atom and training in configurations/s; what
    was not measured is left out.
    """
    inference = (
        ("RACE", one(records), True),
        (
            "RACE, 8 members: each one's\nforces, 3x3 covariances",
            one(records, outputs=ENSEMBLE, members=8),
            True,
        ),
        ("NequIP AOTInductor", one(records, AOT), False),
        ("NequIP TorchScript", one(records, JIT), False),
        ("MACE compiled", one(records, MACE), False),
    )
    training = (
        ("RACE", trained(records, "RACE", 5), True),
        ("RACE, 8 members at once", trained(records, "RACE", 5, members=8), True),
        ("NequIP compiled", trained(records, "NequIP compiled", 5), False),
        ("MACE compiled", trained(records, MACE, 5), False),
    )
    return (
        [(label, record["us_per_atom"], ours) for label, record, ours in inference if record],
        [
            (label, record["configurations_per_second"], ours)
            for label, record, ours in training
            if record
        ],
    )


def draw(records: list[dict], path: Path) -> None:
    figure, panels = plt.subplots(
        1, 2, figsize=(11, 2.8), width_ratios=(1, 1), layout="constrained"
    )
    titles = (
        (
            "Equal layers and channels: energy and forces",
            "microseconds per atom, less is better; Si-512, float32, one core",
        ),
        (
            "Equal layers and channels: training",
            "configurations per second, more is better; 3BPA, batch 5",
        ),
    )
    for axes, rows, (title, subtitle) in zip(panels, bars(records), titles, strict=True):
        labels, values, ours = zip(*reversed(rows), strict=True)
        drawn = axes.barh(
            labels, values, color=[OURS if own else THEIRS for own in ours], height=0.7
        )
        axes.bar_label(
            drawn,
            [f"{value:.0f}" if value >= 20 else f"{value:.1f}" for value in values],
            padding=3,
            fontsize=9,
        )
        axes.set_xlim(0, 1.1 * max(values))
        axes.set_title(title, fontsize=11, fontweight="bold", loc="left", pad=18)
        axes.text(0, 1.04, subtitle, transform=axes.transAxes, fontsize=8.5, color="#555555")
        axes.xaxis.set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    draw(json.loads(FINAL.read_text()), PICTURE)


if __name__ == "__main__":
    main()
