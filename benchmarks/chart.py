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


def bars(records: list[dict]) -> tuple[list[tuple[str, float, bool]], list[tuple[str, float, bool]]]:
    """(label, value, ours) for inference in us/atom and training in configurations/s; what was not measured is left out."""
    inference = (
        ("RACE", one(records), True),
        ("RACE, 8 members:\nall forces + covariances", one(records, outputs=ENSEMBLE, members=8), True),
        ("NequIP AOTInductor", one(records, AOT), False),
        ("NequIP TorchScript", one(records, JIT), False),
        ("MACE compiled", one(records, MACE), False),
    )
    training = (
        ("RACE", trained(records, "RACE", 5), True),
        ("RACE, 8 members", trained(records, "RACE", 5, members=8), True),
        ("NequIP compiled", trained(records, "NequIP compiled", 5), False),
        ("MACE compiled", trained(records, MACE, 5), False),
    )
    return (
        [(label, record["us_per_atom"], ours) for label, record, ours in inference if record],
        [(label, record["configurations_per_second"], ours) for label, record, ours in training if record],
    )


def draw(records: list[dict], path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(10, 2.9), width_ratios=(5, 4))
    titles = (
        "Energy and forces, us per atom (less is better)\nSi-512, float32, one core",
        "Training, configurations per second (more is better)\n3BPA, batch 5, float32, one core",
    )
    for axes, rows, title in zip(panels, bars(records), titles, strict=True):
        labels, values, ours = zip(*reversed(rows), strict=True)
        drawn = axes.barh(labels, values, color=[OURS if own else THEIRS for own in ours], height=0.7)
        axes.bar_label(drawn, [f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values], padding=3, fontsize=9)
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 3, max(values) * 3)
        axes.set_title(title, fontsize=10, loc="left")
        axes.xaxis.set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=9)
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
    figure.tight_layout(w_pad=3)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    draw(json.loads(FINAL.read_text()), PICTURE)


if __name__ == "__main__":
    main()
