"""Pages that are drawn from the code: every option of a config, every command."""

import argparse
import importlib
import re
from pathlib import Path

from race.active.config import ActiveConfig
from race.cli import COMMANDS
from race.config import Config
from race.options import Described, Options, describe

PLUGIN_README = Path(__file__).parents[1] / "lammps_plugin" / "README.md"


def generate(folder: Path) -> None:
    """Writes the pages into `folder`, which git ignores."""
    folder.mkdir(exist_ok=True)
    (folder / "options.md").write_text(options())
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
    lines = ["| option | type | default | unit | meaning |", "|---|---|---|---|---|"]
    for row in rows:
        default = "required" if row.default is None else f"`{row.default}`"
        cells = (f"`{row.key}`", row.type, default, row.unit, row.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


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
