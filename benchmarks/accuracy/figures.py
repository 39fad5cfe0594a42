"""The two figures and the tables of the accuracy benchmark, drawn from its records."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from pages import table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter  # noqa: E402

Records = Sequence[dict]
COLOURS = {"RACE": "#1f6fb4", "NequIP": "#d1702b", "MACE": "#5a9367"}
MARKERS = {"small": "o", "medium": "s", "large": "D"}


def line(record: dict) -> str:
    """One record, to read on the screen."""
    if record.get("omitted"):
        return f"omitted: {record['omitted']}"
    stress = "" if record["rmse_s"] is None else f", S {record['rmse_s']:.2f} meV/A^3"
    return (
        f"{record['split']}: MAE {record['mae_e']:.2f} meV/atom, {record['mae_f']:.1f} meV/A; "
        f"RMSE {record['rmse_e']:.2f}, {record['rmse_f']:.1f}{stress}; "
        f"{record['us_per_atom']:.1f} us/atom; {record['cpu_minutes']:.1f} minutes"
    )


def splits(records: Records) -> list[tuple[str, str]]:
    """(set, split) with figures, in the order of the records; the first of each set."""
    first: dict[str, str] = {}
    for record in records:
        if record.get("split"):
            first.setdefault(record["set"], record["split"])
    return list(first.items())


def draw(records: Records, folder: Path) -> None:
    """error-over-minutes.png and error-over-inference.png: a panel per set, its first split."""
    panels = splits(records)
    if not panels:
        return
    plot(
        records,
        panels,
        folder / "error-over-minutes.png",
        lambda record: record["cpu_minutes"],
        "training, minutes of one core",
        by_size=True,
    )
    plot(
        records,
        panels,
        folder / "error-over-inference.png",
        lambda record: record["us_per_atom"],
        "inference, us/atom on one core",
        by_size=False,
    )


def plot(
    records: Records,
    panels: list[tuple[str, str]],
    path: Path,
    x: Callable[[dict], float],
    label: str,
    by_size: bool,
) -> None:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, split) in zip(grid.flat, panels, strict=False):
        here = [r for r in records if r["set"] == name and r.get("split") == split]
        kinds = dict.fromkeys((r["code"], r["size"], r["members"]) for r in here)
        for code, size, members in kinds:
            points = sorted(
                (x(r), r["rmse_f"], r["minutes"])
                for r in here
                if (r["code"], r["size"], r["members"]) == (code, size, members)
            )
            text = f"{code} {size}" + f", {members} members" * (members > 1)
            axes.plot(
                [p[0] for p in points],
                [p[1] for p in points],
                marker=MARKERS.get(size, "o"),
                linestyle=("--" if members > 1 else "-") if by_size else "none",
                markerfacecolor="none" if members > 1 else None,
                color=COLOURS[code],
                label=text,
            )
            if not by_size:
                for a, b, minutes in points:
                    axes.annotate(f" {minutes:g}", (a, b), fontsize=7, color="#555555")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_formatter(NullFormatter())
        # Wide enough for a few of these numbers, however near the points are
        for (low, high), widen in (
            (axes.get_xlim(), axes.set_xlim),
            (axes.get_ylim(), axes.set_ylim),
        ):
            middle = (low * high) ** 0.5
            widen(min(low, middle / 3), max(high, middle * 3))
        axes.set_title(f"{name}, {split}", fontsize=10, loc="left")
        axes.set_xlabel(label, fontsize=9)
        axes.set_ylabel("RMSE of forces, meV/A", fontsize=9)
        axes.grid(True, which="both", linewidth=0.3, alpha=0.5)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def section(records: Records) -> list[str]:
    """What README.md shows: provenance, the two figures, and one row per training and split."""
    if not records:
        return ["None yet."]
    machines = ", ".join(dict.fromkeys(r["processor"] for r in records))
    dates = sorted(r["date"] for r in records)
    commits = ", ".join(dict.fromkeys(r["commit"] for r in records))
    packages = dict.fromkeys(
        f"{name} {version}" for r in records for name, version in r.get("versions", {}).items()
    )
    of = f"{', '.join(packages)}, commit {commits}"
    return [
        f"Measured on {machines}, {dates[0]} to {dates[-1]}; {of}.",
        "",
        "![error over training minutes](error-over-minutes.png)",
        "",
        "![error over inference time](error-over-inference.png)",
        "",
        *rows(records),
    ]


def rows(records: Records) -> list[str]:
    head = "set split code size members minutes actual us/atom".split()
    head += ["MAE E", "MAE F", "RMSE E", "RMSE F", "RMSE S", "RMS F"]
    cells = []
    for r in records:
        row = [r["set"], r.get("split") or "", r["code"], r["size"], r["members"]]
        row.append(f"{r['minutes']:g}")
        if r.get("omitted"):
            row += [f"omitted: {r['omitted']}", *[""] * 7]
        else:
            row += [f"{r['cpu_minutes']:.1f}", f"{r['us_per_atom']:.1f}"]
            row += [f"{r['mae_e']:.2f}", f"{r['mae_f']:.1f}"]
            row += [f"{r['rmse_e']:.2f}", f"{r['rmse_f']:.1f}"]
            row += ["" if r["rmse_s"] is None else f"{r['rmse_s']:.2f}", f"{r['rms_f']:.0f}"]
        cells.append(row)
    return table(head, cells)
