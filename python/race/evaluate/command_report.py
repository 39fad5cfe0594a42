"""`race report RUN`: one self-contained page of a run and its evaluation."""

import argparse
import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from race.config import read_run_config
from race.conventions import ENERGY_ERROR
from race.errors import RaceError
from race.files import check_output, write_atomic

TEMPLATE = Path(__file__).with_name("page.html")
CAPTIONS = {
    "learning_curve": "Loss and validation errors by epoch.",
    "parity": "Predictions against references; bars are two predicted standard deviations.",
    "calibration": "How many errors lie inside intervals of each width. The diagonal is ideal.",
    "error_vs_sigma": "Errors against predicted standard deviations.",
    "sparsification": "The error that is left when the least certain predictions are removed.",
    "reliability_by_element": "How many errors of forces lie inside intervals, by element.",
    "reliability_by_temperature": "How many errors of forces lie inside intervals, by temperature.",
}
# key of a record -> (title, digits); energies in the record's unit, forces in meV/A
COLUMNS = {
    "n_frames": ("frames", 0),
    "mae_e": ("MAE E", 2),
    "rmse_e": ("RMSE E", 2),
    "mae_f": ("MAE F", 1),
    "rmse_f": ("RMSE F", 1),
    "rmse_s": ("RMSE S", 2),
    "sharpness_f": ("σ F", 1),
    "coverage90_e": ("E in 90 %", 3),
    "coverage90_f": ("F in 90 %", 3),
    "ce_e": ("CE E", 4),
    "ce_e_floor": ("by chance", 4),
    "ce_f": ("CE F", 4),
    "ce_f_floor": ("by chance", 4),
    "pit_ks": ("PIT KS", 3),
    "pit_ks_floor": ("by chance", 3),
    "auroc_error_f": ("AUROC of errors", 3),
    "auroc_error_f_trivial": ("best trivial", 3),
    "auroc": ("AUROC", 3),
    "auroc_grade": ("by grade", 3),
    "auroc_trivial": ("best trivial", 3),
}
METRICS = {"rmse": "RMSE", "mae": "MAE", "std": "predicted σ", "coverage": "in 90 %", "nll": "NLL"}


@dataclass
class Table:
    """A table of the page."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass
class Page:
    """The variables of page.html."""

    title: str
    sentence: str
    tables: list[Table]
    figures: list[dict[str, str]]
    findings: list[tuple[str, str]]
    provenance: list[tuple[str, str]]
    config: str = field(repr=False)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder made by `race train` or `race fit`")
    parser.add_argument(
        "--evaluation", type=Path, help="folder made by `race evaluate`; else validation alone"
    )
    parser.add_argument("-o", "--out", type=Path, help="the page (default: RUN/report.html)")


def run(args: argparse.Namespace) -> None:
    out = args.out or args.run / "report.html"
    if args.out:
        check_output(out, suffixes=(".html", ".htm"))
    write_atomic(out, html(page(args.run, args.evaluation)).encode())
    print(out)


def html(content: Page) -> str:
    """The page, which needs no other file and no network."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text()).render(vars(content))


def page(run: Path, evaluation: Path | None) -> Page:
    """The page of a run's folder, and of an evaluation's if there is one.

    Raises:
        RaceError: a folder that is not what it should be.
    """
    from race.train.run import read_summary  # imports torch

    config, summary = read_run_config(run / "config.yaml"), read_summary(run)
    training, model = summary["training"], config.model
    minutes = summary.get("seconds", 0.0) / 60
    elements = " ".join(training["elements"])
    energy_unit = ENERGY_ERROR[model.pooling]
    tables = [validation_table(summary["validation"], energy_unit)]
    figures = []
    if evaluation is None:
        figures += drawn_learning_curve(run, model.pooling)
        tables.append(cost_table(summary, []))
    else:
        records = read_records(evaluation)
        refuse_other_model(records, evaluation, run)
        tables += [split_table(records), cost_table(summary, records)]
        figures += [
            {"name": name, "caption": caption, "png": encoded(path.read_bytes())}
            for name, caption in CAPTIONS.items()
            if (path := evaluation / f"{name}.png").exists()
        ]
    files = [(Path(path).name, digest) for path, digest in training.get("files", {}).items()]
    versions = [(name, str(value)) for name, value in summary.get("versions", {}).items()]
    return Page(
        title=f"{run.resolve().name}: {elements}",
        sentence=(
            f"{model.n_members} member{'s' * (model.n_members > 1)} with head {model.head}, "
            f"{model.n_layers} layer{'s' * (model.n_layers > 1)} of "
            f"{model.irreps_hidden} within {model.r_max:g} Å, correlation {model.correlation}; "
            f"trained on {training['n_frames']} frames by {config.train.loss} "
            f"for {minutes:.1f} minutes."
        ),
        tables=tables,
        figures=figures,
        findings=[(name, text) for name, text in training.get("findings", [])],
        provenance=[*versions, *files],
        config=(run / "config.yaml").read_text(),
    )


def validation_table(metrics: dict[str, Any], energy_unit: str) -> Table:
    """The table of summary.json: every metric of the ensemble, with its members beside it."""
    values = {k.removeprefix("validation/"): v for k, v in metrics.items()}
    names = [name for name in values if "/" not in name]
    members = sorted({name.split("/")[1] for name in values if "/" in name})
    head = ["", "all" if members else "value", *(m.replace("_", " ") for m in members)]
    rows = [
        [row_title(name), number(values[name])]
        + [number(values.get(f"{name}/{member}")) for member in members]
        for name in names
    ]
    return Table("Validation", head, rows, in_units(energy_unit))


def row_title(name: str) -> str:
    """Of a metric of summary.json: energy_rmse -> energy RMSE."""
    quantity, _, metric = name.partition("_")
    return f"{quantity} {METRICS.get(metric, metric)}".strip()


def in_units(energy_unit: str) -> str:
    """The sentence above a table of errors."""
    return f"Energies in {energy_unit}, forces in meV/Å, stresses in meV/Å³."


def read_records(evaluation: Path) -> list[dict[str, Any]]:
    """metrics.json of an evaluation.

    Raises:
        RaceError: not an evaluation.
    """
    try:
        return list(json.loads((evaluation / "metrics.json").read_text()))
    except (OSError, ValueError) as error:
        raise RaceError(
            f"not an evaluation ({error})",
            where=evaluation,
            expected="a folder with metrics.json, as `race evaluate` makes",
        ) from None


def refuse_other_model(records: list[dict[str, Any]], evaluation: Path, run: Path) -> None:
    """Raises RaceError: an evaluation of another model than the run's, where it says of which."""
    from race.train.run import identity  # imports torch

    for record in records:
        if (found := record.get("model")) and found != (own := identity(run)):
            raise RaceError(
                "is the evaluation of another model",
                where=evaluation,
                expected=f"one of {run} ({own[:12]}...)",
                got=f"{found[:12]}...",
                remedy=f"evaluate it: race evaluate {run} FILE --out FOLDER",
            )


def split_table(records: list[dict[str, Any]]) -> Table:
    """The errors of an evaluation: one row per split."""
    shown = {key: c for key, c in COLUMNS.items() if any(r.get(key) is not None for r in records)}
    rows = [
        [record["split"] + (" (OOD)" if record["ood"] else "")]
        + [number(record.get(key), digits) for key, (_, digits) in shown.items()]
        for record in records
    ]
    note = (
        in_units(records[0]["energy_unit"])
        + " By chance: what calibrated predictions score on so many frames. AUROC of errors: the "
        "largest tenth of the force errors, found by uncertainty or by the best of |F| and the "
        "nearest atom's distance. AUROC: a split that is OOD, found by uncertainty or by the "
        "best of energy, RMS force, density and shortest distance."
    )
    return Table("Evaluation", ["split", *(title for title, _ in shown.values())], rows, note)


def cost_table(summary: dict[str, Any], records: list[dict[str, Any]]) -> Table:
    """Time of the training, and of predictions where they were evaluated."""
    rows = [["training", f"{summary.get('seconds', 0.0) / 60:.3g} min"]]
    timed = [record for record in records if "us_per_atom" in record]
    rows += [[f"predictions of {r['split']}", f"{r['us_per_atom']:.3g} µs/atom"] for r in timed]
    if not timed:
        return Table("Cost", ["", ""], rows, "`race evaluate` measures that of predictions.")
    note = (
        "Predictions hold all that the model gives, with its uncertainties. They were made by the "
        f"{timed[0]['evaluated']}, on {timed[0]['machine']}."
    )
    return Table("Cost", ["", ""], rows, note)


def number(value: float | None, digits: int | None = None) -> str:
    """A number as the page shows it; empty where there is none."""
    if value is None:
        return ""
    return f"{value:.4g}" if digits is None else f"{value:.{digits}f}"


def drawn_learning_curve(run: Path, pooling: str) -> list[dict[str, str]]:
    """From the run's log, if it has one."""
    from race.evaluate.figures import learning_curve  # matplotlib is slow to import

    log = run / "log.csv"
    figure = learning_curve(log, pooling) if log.exists() else None
    if figure is None:
        return []
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    name = "learning_curve"
    return [{"name": name, "caption": CAPTIONS[name], "png": encoded(stream.getvalue())}]


def encoded(png: bytes) -> str:
    """A picture as text within the page."""
    return base64.b64encode(png).decode()
