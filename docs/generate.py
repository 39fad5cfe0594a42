"""Pages that are drawn from the code: options of a config, commands, quantities, architectures;
and a table from the records of a benchmark.
"""

import argparse
import importlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import race._race

from race.active.config import ActiveConfig
from race.cli import COMMANDS
from race.config import Config
from race.options import Described, Options, describe
from race.presets import PRESETS, SIZES

# What a dimension is in Python; in LAMMPS it is that of the simulation's `units`
UNITS = {
    "energy": "eV",
    "force": "eV/Angstrom",
    "force^2": "(eV/Angstrom)^2",
    "stress": "eV/Angstrom^3",
    "stress^2": "(eV/Angstrom^3)^2",
    "nats": "nats",
    "1": "1",
}
ROOT = Path(__file__).parents[1]
PLUGIN_README = ROOT / "lammps_plugin" / "README.md"
POSTERIORS = ROOT / "benchmarks" / "uq" / "results" / "b2o3.json"


def generate(folder: Path) -> None:
    """Writes the pages into `folder`, which git ignores."""
    folder.mkdir(exist_ok=True)
    (folder / "options.md").write_text(options())
    (folder / "architectures.md").write_text(architectures())
    (folder / "quantities.md").write_text(quantities())
    (folder / "posteriors.md").write_text(posteriors())
    (folder / "cli.md").write_text(commands())
    (folder / "lammps.md").write_text(plugin_reference())


def options() -> str:
    """A table for each section of `race train config.yaml` and `race active config.yaml`."""
    parts = [
        "Every option of `race train config.yaml`. An option that is not here is an error. A "
        "config that writes out no architecture has that of the preset `medium`, not the "
        "defaults below.\n"
    ]
    parts += sections(Config)
    parts.append(
        "\n## `race active config.yaml`\n\nBeside the sections below it takes "
        "`data`, `model` and `train` as above.\n"
    )
    parts += sections(ActiveConfig, without=Config)
    return "\n".join(parts)


def sections(kind: type[Options], without: type[Options] | None = None) -> list[str]:
    """One table for each section of `kind`, and one of its options that are in none."""
    tables: dict[str, list[Described]] = {}
    for option in describe(kind):
        section, dot, name = option.key.partition(".")
        if without is not None and section in without.model_fields:
            continue
        tables.setdefault(section if dot else "", []).append(option._replace(key=name or section))
    return [
        (f"\n## `{section}`\n\n" if section else "\n### (top level)\n\n") + table(rows)
        for section, rows in tables.items()
    ]


def table(rows: list[Described]) -> str:
    """Option, type, default, unit, meaning."""
    return markdown(
        ("option", "type", "default", "unit", "meaning"),
        [
            (
                f"`{row.key}`",
                row.type,
                "required" if row.default is None else f"`{row.default}`",
                row.unit,
                row.meaning,
            )
            for row in rows
        ],
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def architectures() -> str:
    """What `model: NAME` stands for."""
    named = SIZES | PRESETS
    keys = dict.fromkeys(key for options in named.values() for key in options)
    return "\n".join(
        markdown(["option", *(f"`{name}`" for name in group)], rows)
        for group in (SIZES, PRESETS)
        for rows in [
            [
                [f"`{key}`", *(_cell(options.get(key)) for options in group.values())]
                for key in keys
                if any(key in options for options in group.values())
            ]
        ]
    )


def _cell(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def quantities() -> str:
    """librace's table: the names of each quantity in LAMMPS and in ASE."""
    parts = []
    for per_atom, heading in ((True, "Of each atom"), (False, "Of the structure")):
        rows = [
            (
                f"`{row['name']}`" if row["in_lammps"] else "",
                f"`{row['property']}`" if row["property"] else "",
                f"`{row['symbol']}`" if row["symbol"] else "",
                str(row["n_columns"] or "M"),
                UNITS[row["dimension"]],
                row["meaning"],
            )
            for row in race._race.quantities()
            if row["per_atom"] == per_atom
        ]
        head = ("compute", "ASE property", "`extract_peratom`", "columns", "unit", "meaning")
        parts.append(f"## {heading}\n\n{markdown(head, rows)}")
    return "\n".join(parts)


def posteriors() -> str:
    """Costs and errors of each posterior on B2O3, with where and when they were measured."""
    measured = json.loads(POSTERIORS.read_text())
    by_split: dict[str, dict[str, dict]] = {}
    for record in measured["records"]:
        by_split.setdefault(record["split"], {})[record["posterior"]] = record
    rows = []
    for name, liquid in by_split["liquid"].items():
        crystals = by_split["crystals"][name]
        rows.append(
            (
                f"`{name}`" if name != "single" else "one member",
                str(liquid["n_members"]),
                f"{liquid['train_s']:.0f}",
                f"{liquid['md_cost']:.1f}, {liquid['md_cost_mean']:.1f}",
                f"{liquid['rmse_e']:.1f}, {liquid['rmse_f']:.0f}",
                f"{liquid['nll_f']:.2f}",
                f"{crystals['auroc_energy']:.2f}",
                f"{crystals['coverage90_e']:.2f}",
            )
        )
    about = measured["about"]
    note = f" {about['note']}" if about.get("note") else ""
    head = ("posterior", "members", "training, s", "MD step", "RMSE E, F", "NLL F")
    return (
        markdown((*head, "AUROC of crystals by E", "their E in 90 %"), rows)
        + f"\n*{about['machine']}; {about['date']}; commit {about['versions']['commit']}.{note}*\n"
    )


def plugin_reference() -> str:
    """The plugin's README; its links to other files of the repository become their names."""
    return re.sub(r"\[([^]]+)\]\(\.\./[^)]*\)", r"\1", PLUGIN_README.read_text())


def commands() -> str:
    """`race NAME --help` of every command."""
    parts = []
    for name, (module, text) in COMMANDS.items():
        parser = argparse.ArgumentParser(
            prog=f"race {name}", formatter_class=lambda prog: argparse.HelpFormatter(prog, width=90)
        )
        importlib.import_module(module).configure(parser)
        heading = f"## `race {name}`\n\n{text[0].upper()}{text[1:]}."
        parts.append(f"{heading}\n\n```text\n{parser.format_help()}```\n")
    return "\n".join(parts)
