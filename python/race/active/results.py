"""The report of a comparison: test errors against the number of labels, one line per
strategy, as table, JSON and figure.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from race.active.config import ActiveConfig
from race.conventions import ENERGY_ERROR
from race.evaluate.figures import COOL, GREY, STYLE, WARM, panels
from race.files import write_atomic, write_json

COLOURS = (GREY, WARM[0], COOL[0], WARM[1], COOL[2], WARM[2], COOL[1], "black")
MARKERS = "osD^v<>P"
METRICS = ("rmse_e", "rmse_f", "coverage90_e", "coverage90_f", "nll_f", "auroc")


def drawn(config: ActiveConfig) -> dict[str, str]:
    """The errors that are drawn: key in a record, and name with unit."""
    energy = ENERGY_ERROR[config.model.pooling]
    return {"rmse_e": f"energy RMSE ({energy})", "rmse_f": "force RMSE (meV/Å)"}


def write(out: Path, config: ActiveConfig) -> None:
    """report.json, report.md and errors_vs_labels.png of the rounds that are done."""
    records = collect(out, config)
    write_json(out / "report.json", {"records": records})
    write_atomic(out / "report.md", markdown(records, config).encode())
    with matplotlib.rc_context(STYLE):
        figure = draw(records, config)
        figure.savefig(out / ".errors_vs_labels.png", format="png")
    (out / ".errors_vs_labels.png").rename(out / "errors_vs_labels.png")


def collect(out: Path, config: ActiveConfig) -> list[dict[str, Any]]:
    """One record for each strategy, seed, round and test set; round 0, the initial set,
    belongs to every strategy.
    """
    records = []
    for seed in config.seeds:
        for name in config.names:
            rounds = [out / f"seed-{seed}" / "initial"]
            rounds += [
                out / f"seed-{seed}" / name.replace("/", "_") / f"round-{k}"
                for k in range(1, config.rounds + 1)
            ]
            for path in (folder / "metrics.json" for folder in rounds):
                if not path.exists():
                    break
                content = json.loads(path.read_text())
                for record in content["records"]:
                    kept = {key: record[key] for key in METRICS if record.get(key) is not None}
                    about = {key: content[key] for key in ("seed", "round", "n_labels")}
                    interval = {
                        key: value for key, value in record["interval90"].items() if key in METRICS
                    }
                    records.append(
                        {"strategy": name}
                        | about
                        | {"split": record["split"]}
                        | kept
                        | {"interval90": interval}
                    )
    return records


def means(
    records: Sequence[dict[str, Any]], strategy: str, split: str, key: str
) -> tuple[list[float], list[float], list[float]]:
    """Numbers of labels, mean over seeds of a metric there, and half the range of the seeds."""
    rounds: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if record["strategy"] == strategy and record["split"] == split and key in record:
            rounds.setdefault(record["round"], []).append(record)
    rows = [rounds[k] for k in sorted(rounds)]
    values = [[record[key] for record in row] for row in rows]
    labels = [float(np.mean([record["n_labels"] for record in row])) for row in rows]
    return labels, [float(np.mean(v)) for v in values], [(max(v) - min(v)) / 2 for v in values]


def labels_to_reach(
    labels: Sequence[float], errors: Sequence[float], target: float
) -> float | None:
    """The number of labels at which the error first falls to `target`, by linear
    interpolation between rounds; None if it does not.
    """
    for k, error in enumerate(errors):
        if error <= target:
            if k == 0:
                return labels[0]
            fraction = (errors[k - 1] - target) / (errors[k - 1] - error)
            return labels[k - 1] + fraction * (labels[k] - labels[k - 1])
    return None


def markdown(records: Sequence[dict[str, Any]], config: ActiveConfig) -> str:
    """A table per test set, and how many labels each strategy needs for what `random`
    reaches in the end.
    """
    seeds = (
        f"seed {config.seeds[0]}"
        if len(config.seeds) == 1
        else f"means over seeds {' '.join(map(str, config.seeds))}"
    )
    lines = [
        "# Active learning: errors against labels",
        "",
        f"{seeds}; {' / '.join(drawn(config).values())}.",
        "",
    ]
    for split in config.test:
        lines += [f"## {split}" + " (out of distribution)" * (split in config.ood), ""]
        curves = {
            name: [means(records, name, split, key) for key in drawn(config)]
            for name in config.names
        }
        n_rounds = max(len(energy[0]) for energy, _ in curves.values())
        labels = next(energy[0] for energy, _ in curves.values() if len(energy[0]) == n_rounds)
        lines += [
            "| labels | "
            + " | ".join(f"{n:g}" for n in labels)
            + " | labels for random's last force error |"
        ]
        lines += ["|" + "---|" * (len(labels) + 2)]
        target = (
            curves["random"][1][1][-1] if "random" in curves and curves["random"][1][1] else None
        )
        for name, (energy, force) in curves.items():
            cells = [f"{e:.2f} / {f:.1f}" for e, f in zip(energy[1], force[1], strict=True)]
            if force[0] != labels[: len(force[0])]:  # a replay may have taken other numbers
                cells = [f"{cell} ({n:g})" for cell, n in zip(cells, force[0], strict=True)]
            reached = None if target is None else labels_to_reach(force[0], force[1], target)
            cells += [""] * (n_rounds - len(cells)) + [
                "" if target is None else "not reached" if reached is None else f"{reached:.0f}"
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines + ["![errors against labels](errors_vs_labels.png)", ""])


def draw(records: Sequence[dict[str, Any]], config: ActiveConfig) -> Figure:
    """A row per quantity, a column per test set; bars are the range of the seeds, or the
    bootstrap interval of a single one.
    """
    splits = list(config.test)
    figure, axes = panels(2 * len(splits), columns=max(len(splits), 1), legend=True)
    for k, (key, label) in enumerate(drawn(config).items()):
        for ax, split in zip(axes[k * len(splits) : (k + 1) * len(splits)], splits, strict=True):
            for j, name in enumerate(config.names):
                _curve(
                    ax,
                    records,
                    config,
                    name,
                    split,
                    key,
                    COLOURS[j % len(COLOURS)],
                    MARKERS[j % len(MARKERS)],
                )
            ax.set(
                xlabel="labels",
                ylabel=label if split == splits[0] else "",
                title=split + " (OOD)" * (split in config.ood),
            )
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.set_ylim(0, None)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper")
    return figure


def _curve(
    ax: Axes,
    records: Sequence[dict[str, Any]],
    config: ActiveConfig,
    name: str,
    split: str,
    key: str,
    colour: str,
    marker: str,
) -> None:
    labels, values, ranges = means(records, name, split, key)
    bars: Any = ranges
    if len(config.seeds) == 1:
        own = [r for r in records if r["strategy"] == name and r["split"] == split and key in r]
        intervals = np.array(
            [record["interval90"].get(key) or [np.nan, np.nan] for record in own], dtype=np.float64
        )
        bars = np.abs(intervals.T - np.array(values)) if len(intervals) else None
    ax.errorbar(
        labels,
        values,
        yerr=bars,
        color=colour,
        marker=marker,
        markersize=4,
        elinewidth=0.8,
        capsize=2,
        label=name,
    )
