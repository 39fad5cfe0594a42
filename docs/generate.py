"""Pages that are drawn from the code: every option of a config, every command."""

import argparse
import importlib
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from race.active.config import ActiveConfig
from race.cli import COMMANDS
from race.config import Config

PLUGIN_README = Path(__file__).parents[1] / "lammps_plugin" / "README.md"


def generate(folder: Path) -> None:
    """Writes the pages into `folder`, which git ignores."""
    folder.mkdir(exist_ok=True)
    (folder / "options.md").write_text(options())
    (folder / "cli.md").write_text(commands())
    (folder / "lammps.md").write_text(plugin_reference())


def options() -> str:
    """A table for each section of `race train config.yaml` and `race active config.yaml`."""
    parts = ["Every option of `race train config.yaml`. An option that is not here is an error.\n"]
    parts += [section(name, field) for name, field in Config.model_fields.items()]
    parts.append(
        "\n## `race active config.yaml`\n\nBeside the sections below it takes "
        "`data`, `model` and `train` as above.\n"
    )
    for name, field in ActiveConfig.model_fields.items():
        if name not in Config.model_fields and submodel(field) is not None:
            parts.append(section(name, field))
    plain = {
        name: field for name, field in ActiveConfig.model_fields.items() if submodel(field) is None
    }
    parts.append("\n### (top level)\n\n" + table(plain))
    return "\n".join(parts)


def section(name: str, field: FieldInfo) -> str:
    """One section of a config as a table."""
    model = submodel(field)
    assert model is not None
    return f"\n## `{name}`\n\n{(model.__doc__ or '').strip()}\n\n{table(model.model_fields)}"


def submodel(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, if it is one."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def table(fields: dict[str, FieldInfo]) -> str:
    """Option, type, default, meaning."""
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = (
            "required"
            if field.is_required()
            else show(field.get_default(call_default_factory=True))
        )
        cells = (f"`{name}`", type_name(field.annotation), default, field.description or "")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def show(value: Any) -> str:
    return f"`{value}`" if not isinstance(value, BaseModel) else ""


def type_name(kind: Any) -> str:
    """As a user would write it: `float`, `cosine` or `plateau`, list of `str`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in arguments if part is not type(None))
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"{type_name(arguments[1])} by name"
    return {"Path": "path"}.get(
        getattr(kind, "__name__", str(kind)), getattr(kind, "__name__", str(kind))
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
