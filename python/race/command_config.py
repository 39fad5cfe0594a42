"""`race config [KEY ...]`: every option of a config, with type, default, unit and meaning."""

import argparse
import textwrap

from race.config import Config
from race.errors import RaceError
from race.files import as_json
from race.options import Described, Options, describe


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "keys", nargs="*", metavar="KEY", help="an option or a section, e.g. train or model.r_max"
    )
    parser.add_argument(
        "--active", action="store_true", help="the options of `race active` instead"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="a table for a page")
    form.add_argument("--json", action="store_true", help="a list of objects")


def run(args: argparse.Namespace) -> None:
    kind: type[Options] = Config
    if args.active:
        from race.active.config import ActiveConfig as kind  # noqa: N813
    options = [option for option in describe(kind) if not args.keys or asked(option, args.keys)]
    if not options:
        raise RaceError("no such option", where=" ".join(args.keys), remedy="`race config` has all")
    if args.json:
        print(as_json([option._asdict() for option in options]))
        return
    print(markdown(options) if args.markdown else plain(options))


def asked(option: Described, keys: list[str]) -> bool:
    """Whether one of the keys is the option, or a section that it is in."""
    return any(option.key == key or option.key.startswith(f"{key}.") for key in keys)


def plain(options: list[Described]) -> str:
    """Two lines and more for each."""
    lines = []
    for option in options:
        default = "must be given" if option.default is None else f"default {option.default}"
        unit = f", {option.unit}" if option.unit else ""
        lines.append(f"{option.key}: {option.type}{unit}; {default}")
        lines += textwrap.wrap(option.meaning, 90, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def markdown(options: list[Described]) -> str:
    """A table with a row for each."""
    rows = [("option", "type", "default", "unit", "meaning"), ("---",) * 5]
    rows += [
        (f"`{o.key}`", o.type, f"`{o.default}`" if o.default else "", o.unit, o.meaning)
        for o in options
    ]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    )
