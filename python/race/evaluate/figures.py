"""Figures of `race evaluate`: one style, colour-blind-safe (Okabe & Ito 2008): cool colours
in distribution, warm colours out of it.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.special import ndtri

from race.conventions import ENERGY_ERROR
from race.evaluate.calibration import Recalibration
from race.evaluate.metrics import LEVELS, gaussian_bounds, observed_coverage
from race.evaluate.ranking import sparsification
from race.evaluate.report import MILLI
from race.evaluate.split import Residual, Split, rank_rows

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
}
COOL = ("#0072B2", "#56B4E9", "#009E73")
WARM = ("#D55E00", "#E69F00", "#CC79A7", "#8C510A")
GREY = "0.55"
MAX_POINTS = 1500  # of a scatter plot, per split
PANEL = 3.1  # inches
UNITS = {
    "energy": "energy per atom (eV)",
    "forces": "force component (eV/Å)",
    "stress": "stress component (eV/Å³)",
}
MAX_TEMPERATURES = 6  # lines of one panel; more are pooled


def draw_all(
    splits: Sequence[Split],
    recalibration: dict[str, Recalibration],
    out: Path,
    log: Path | None = None,
) -> list[Path]:
    """Every figure that the data allow, as png files in `out`; returns their paths."""
    pooling = "sum" if splits[0].extensive else "mean"
    drawings: dict[str, Callable[[], Figure | None]] = {
        "learning_curve": lambda: learning_curve(log, pooling) if log and log.exists() else None,
        "parity": lambda: parity(splits),
        "calibration": lambda: calibration_curves(splits, recalibration),
        "error_vs_sigma": lambda: error_against_sigma(splits),
        "sparsification": lambda: sparsification_curves(splits),
        "reliability_by_element": lambda: element_reliability(splits),
        "reliability_by_temperature": lambda: temperature_reliability(splits),
    }
    paths = []
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            if (figure := draw()) is not None:
                paths.append(out / f"{name}.png")
                figure.savefig(paths[-1])
    return paths


def panels(n: int, columns: int = 3, legend: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of n square panels, with room on the right for a legend."""
    columns = 2 if n == 4 and columns == 3 else min(n, columns)
    rows = -(-n // columns)
    figure = Figure(figsize=(PANEL * columns + (1.5 if legend else 0.2), PANEL * rows + 0.1))
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[n:]:
        spare.set_axis_off()
    return figure, axes[:n]


def colours(splits: Sequence[Split]) -> dict[str, str]:
    """Split name -> colour."""
    counts = {False: 0, True: 0}
    out = {}
    for split in splits:
        family = WARM if split.ood else COOL
        out[split.name] = family[counts[split.ood] % len(family)]
        counts[split.ood] += 1
    return out


def _legend(figure: Figure, splits: Sequence[Split], extra: Sequence[Line2D] = ()) -> None:
    colour = colours(splits)
    handles = [
        Line2D([], [], color=colour[s.name], label=f"{s.name} (OOD)" if s.ood else s.name)
        for s in splits
    ]
    figure.legend(handles=[*handles, *extra], loc="outside right upper")


# --- training -------------------------------------------------------------------------------------


def learning_curve(log: Path, pooling: str = "sum") -> Figure | None:
    """Loss and validation errors by epoch from run/log.csv; single members as thin lines
    under their ensemble. pooling: of the model.
    """
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return None
    series = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    shown = [
        ("loss", {"train/loss": "training", "validation/loss": "validation"}),
        (f"energy RMSE ({ENERGY_ERROR[pooling]})", {"validation/energy_rmse": "ensemble"}),
        ("force RMSE (meV/Å)", {"validation/forces_rmse": "ensemble"}),
        ("coverage of 90 % force intervals", {"validation/forces_coverage": "ensemble"}),
    ]
    shown = [
        (label, {n: t for n, t in lines.items() if n in series and np.isfinite(series[n]).any()})
        for label, lines in shown
    ]
    shown = [(label, lines) for label, lines in shown if lines]
    figure, axes = panels(len(shown), columns=4)
    for ax, (label, lines) in zip(axes, shown, strict=True):
        several = False
        for (name, title), colour in zip(lines.items(), (COOL[0], WARM[0]), strict=False):
            members = [
                values for key, values in series.items() if key.startswith(f"{name}/member_")
            ]
            several |= bool(members)
            for values in members:
                ax.plot(series["epoch"], values, color=GREY, linewidth=0.7)
            ax.plot(series["epoch"], series[name], color=colour, label=title)
        if label == "loss":
            # A likelihood starts in the thousands and ends below zero
            ax.set_yscale("symlog", linthresh=1)
        if "RMSE" in label:
            ax.set_yscale("log")
            _few_ticks(ax.yaxis)
        if "coverage" in label:
            ax.axhline(0.9, color="black", linestyle=":", linewidth=1)
            ax.set_ylim(None, 1)
        if several:
            ax.plot([], [], color=GREY, linewidth=0.7, label="members")
        if several or len(lines) > 1:
            ax.legend()
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set(xlabel="epoch", title=label)
    return figure


# --- predictions against references ---------------------------------------------------------------


def parity(splits: Sequence[Split], n_sigma: float = 2.0) -> Figure:
    """Predicted against reference energies and force components, bars of two predicted
    standard deviations.
    """
    quantities = [q for q in UNITS if any(split.residual(q) is not None for split in splits)]
    figure, axes = panels(len(quantities), legend=True)
    rng = np.random.default_rng(0)
    for ax, quantity in zip(axes, quantities, strict=True):
        for split in sorted(
            splits, key=lambda split: not split.ood
        ):  # those in distribution on top
            residual = split.residual(quantity)
            if residual is None:
                continue
            reference = getattr(split.labels, quantity)
            x = reference[np.isfinite(reference)] / np.repeat(
                residual.size, residual.error.size // len(residual.error)
            )
            error, std = (
                (values.T / residual.size).T.ravel() for values in (residual.error, residual.std)
            )
            pick = rng.permutation(len(x))[:MAX_POINTS]
            bars = n_sigma * std[pick] if residual.probabilistic else None
            colour = colours(splits)[split.name]
            style: dict[str, Any] = {
                "fmt": "o",
                "color": colour,
                "markersize": 2,
                "elinewidth": 0.5,
                "markeredgewidth": 0,
            }
            _, _, lines = ax.errorbar(x[pick], (x - error)[pick], yerr=bars, **style)
            for line in lines:
                line.set_alpha(0.3)
        low, high = ax.get_xlim()
        ax.axline((low, low), (high, high), color="black", linewidth=0.8, zorder=3)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set(xlim=(low, high), title=UNITS[quantity], xlabel="reference", ylabel="predicted")
    _legend(
        figure, splits, [Line2D([], [], color=GREY, linewidth=0.8, label=f"bars: ±{n_sigma:g}σ")]
    )
    return figure


def calibration_curves(
    splits: Sequence[Split], recalibration: dict[str, Recalibration]
) -> Figure | None:
    """Observed coverage of central intervals against the nominal one; dashed after
    recalibration.
    """
    quantities = [q for q in ("energy", "forces", "stress") if _judged(splits, q)]
    if not quantities:
        return None
    figure, axes = panels(len(quantities), legend=True)
    for ax, quantity in zip(axes, quantities, strict=True):
        for split, residual in _judged(splits, quantity):
            z = residual.z
            _reliability_line(ax, z, colours(splits)[split.name])
            if quantity in recalibration:
                levels = np.concatenate([[0], LEVELS, [1]])
                observed = observed_coverage(z, LEVELS, recalibration[quantity].bounds)
                ax.plot(
                    levels,
                    np.concatenate([[0], observed, [1]]),
                    color=colours(splits)[split.name],
                    linestyle="--",
                    linewidth=1.1,
                )
        _reliability_frame(ax, quantity)
    styles = [
        Line2D([], [], color=GREY, label="predicted"),
        Line2D([], [], color=GREY, linestyle="--", label="recalibrated"),
    ]
    _legend(figure, splits, styles if recalibration else ())
    return figure


def error_against_sigma(splits: Sequence[Split], n_bins: int = 12) -> Figure | None:
    """|force error| against predicted sigma: density, quantiles in bins of sigma (bands),
    and where calibrated ones would be (dotted).
    """
    judged = [(split, forces) for split, forces in _judged(splits, "forces") if forces.error.any()]
    if not judged:
        return None
    figure, axes = panels(len(judged))
    quantiles, dotted = (0.25, 0.5, 0.75, 0.95), "if calibrated"
    for ax, (split, residual) in zip(axes, judged, strict=True):
        sigma, error = MILLI * residual.std.ravel(), MILLI * np.abs(residual.error).ravel()
        order = np.argsort(sigma)
        bins = [b for b in np.array_split(order, n_bins) if len(b) >= 10] or [order]
        centre = np.array([np.sqrt(np.mean(sigma[b] ** 2)) for b in bins])
        found = np.array([np.quantile(error[b], quantiles) for b in bins])
        positive = error > 0
        ax.hexbin(
            sigma[positive],
            error[positive],
            gridsize=45,
            xscale="log",
            yscale="log",
            bins="log",
            cmap="Greys",
            mincnt=1,
            alpha=0.6,
            linewidths=0,
        )
        colour = colours(splits)[split.name]
        ax.fill_between(
            centre, found[:, 0], found[:, 2], color=colour, alpha=0.25, linewidth=0, label="25-75 %"
        )
        ax.plot(centre, found[:, 1], color=colour, label="median")
        ax.plot(centre, found[:, 3], color=colour, linestyle="--", label="95 %")
        ends = np.array([centre[0], centre[-1]])
        for q in quantiles:
            ax.plot(
                ends,
                ndtri(0.5 + q / 2) * ends,
                color="black",
                linestyle=":",
                linewidth=0.9,
                label=dotted if q == 0.5 else None,
            )
        ax.set_ylim(np.quantile(error[positive], 0.005), 1.5 * np.quantile(error, 0.9995))
        ax.set_xlim(*np.quantile(sigma, [0.0005, 0.9995]) * [0.9, 1.1])
        _few_ticks(ax.xaxis)
        _few_ticks(ax.yaxis)
        ax.set(
            title=f"{split.name} (OOD)" if split.ood else split.name,
            xlabel="predicted σ (meV/Å)",
            ylabel="|force error| (meV/Å)",
        )
        ax.legend(loc="lower right")
    return figure


def element_reliability(splits: Sequence[Split]) -> Figure | None:
    """Coverage of force intervals, one panel per element."""
    judged = _judged(splits, "forces")
    symbols = sorted(
        {str(symbol) for split, _ in judged for symbol in np.unique(split.labels.symbols)}
    )
    if not symbols:
        return None
    figure, axes = panels(len(symbols), legend=True)
    for ax, symbol in zip(axes, symbols, strict=True):
        for split, residual in judged:
            rows = split.labels.symbols[residual.kept] == symbol
            if rows.any():
                _reliability_line(ax, residual.z[rows], colours(splits)[split.name])
        _reliability_frame(ax, f"forces on {symbol}")
    _legend(figure, splits)
    return figure


def temperature_reliability(splits: Sequence[Split]) -> Figure | None:
    """Coverage of force intervals, one panel per split that knows temperatures, one line per
    temperature, from cold to hot.
    """
    judged = [
        (s, r)
        for s, r in _judged(splits, "forces")
        if s.temperature is not None and np.isfinite(s.temperature).any()
    ]
    if not judged:
        return None
    figure, axes = panels(len(judged))
    for ax, (split, residual) in zip(axes, judged, strict=True):
        temperature = split.temperature[residual.frame]  # type: ignore[index]
        groups = np.array_split(np.unique(temperature[np.isfinite(temperature)]), MAX_TEMPERATURES)
        groups = [group for group in groups if len(group)]
        for k, group in enumerate(groups):
            colour = matplotlib.colormaps["plasma"](0.85 * k / max(len(groups) - 1, 1))
            label = f"{group[0]:g} K" if len(group) == 1 else f"{group[0]:g} to {group[-1]:g} K"
            _reliability_line(ax, residual.z[np.isin(temperature, group)], colour, label)
        _reliability_frame(ax, f"forces, {split.name}" + " (OOD)" * split.ood)
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.08))
    return figure


def sparsification_curves(splits: Sequence[Split]) -> Figure | None:
    """RMSE of what is left when the most uncertain rows are removed (solid), and when the
    largest errors are (dashed).
    """
    quantities = [q for q in ("energy", "forces", "stress") if _judged(splits, q)]
    if not quantities:
        return None
    figure, axes = panels(len(quantities), legend=True)
    for ax, quantity in zip(axes, quantities, strict=True):
        for split, residual in _judged(splits, quantity):
            score, magnitude = rank_rows(residual)
            for line, by in (("-", score), ("--", magnitude)):
                fraction, remaining = sparsification(by, magnitude)
                ax.plot(
                    fraction,
                    remaining,
                    line,
                    color=colours(splits)[split.name],
                    linewidth=1.5 if line == "-" else 0.9,
                )
        title = {"energy": "energy", "forces": "forces on atoms", "stress": "stress"}[quantity]
        ax.set(
            xlim=(0, 1),
            ylim=(0, None),
            title=title,
            xlabel="fraction removed",
            ylabel="RMSE left, relative",
        )
    styles = [
        Line2D([], [], color=GREY, label="most uncertain first"),
        Line2D([], [], color=GREY, linestyle="--", label="largest error first"),
    ]
    _legend(figure, splits, styles)
    return figure


def _few_ticks(axis: Axis) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _judged(splits: Sequence[Split], quantity: str) -> list[tuple[Split, Residual]]:
    """The splits whose predictions of a quantity carry an uncertainty."""
    found = [(split, split.residual(quantity)) for split in splits]
    return [
        (split, residual)
        for split, residual in found
        if residual is not None and residual.probabilistic
    ]


def _reliability_line(ax: Axes, z: np.ndarray, colour: Any, label: str | None = None) -> None:
    levels = np.concatenate([[0], LEVELS, [1]])
    ax.plot(
        levels,
        np.concatenate([[0], observed_coverage(z, LEVELS, gaussian_bounds), [1]]),
        color=colour,
        label=label,
    )


def _reliability_frame(ax: Axes, title: str) -> None:
    ax.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
    ax.annotate("too cautious", (0.04, 0.93), color=GREY, fontsize=8)
    ax.annotate("overconfident", (0.96, 0.04), color=GREY, fontsize=8, ha="right")
    ax.set(
        xlim=(0, 1),
        ylim=(0, 1),
        title=title,
        xlabel="nominal coverage",
        ylabel="observed coverage",
        aspect="equal",
    )
