"""The `race` command: one sub-command per stage of the journey, each implemented beside the
code it runs.
"""

import argparse
import importlib
import sys

from race import __version__
from race.errors import RaceError

# name -> (module with `configure(parser)` and `run(args)`, one-line help). Imported only
# when called.
COMMANDS = {
    "train": ("race.train.command", "train a model or an ensemble from a YAML config"),
    "fit": (
        "race.posterior.command",
        "fit a posterior over the weights of a trained run: a new run whose members are its "
        "samples",
    ),
    "evaluate": (
        "race.evaluate.command",
        "errors, calibration and figures of a run on labelled data",
    ),
    "rank": ("race.evaluate.command_rank", "compare evaluations by their unified score"),
    "export": (
        "race.deploy.command_export",
        "compile a trained run into one artifact for ASE and LAMMPS",
    ),
    "select": (
        "race.active.command_select",
        "choose structures to label from a pool or a LAMMPS dump",
    ),
    "active": (
        "race.active.command_active",
        "compare selection strategies: select, label, train, judge, again",
    ),
    "reweight": (
        "race.evaluate.command_reweight",
        "averages of an MD run with the error bar that the potential leaves",
    ),
    "lmp": ("race.deploy.command_lmp", "run LAMMPS with pair_style race"),
    "plugin": ("race.deploy.command_plugin", "where the LAMMPS plugin is"),
    "config": ("race.command_config", "print every option of a config, or explain one"),
    "info": ("race.deploy.command_info", "verify an artifact and print what it holds"),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="race", description=__doc__)
    parser.add_argument("--version", action="version", version=f"race {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help_text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=help_text)
        if argv[:1] == [name]:
            importlib.import_module(module).configure(sub)
    # `race lmp` hands on all from the first word that is no option of its own.
    own = 1
    while argv[:1] == ["lmp"] and own < len(argv) and argv[own].startswith("--"):
        own += 1 if "=" in argv[own] or argv[own] == "--help" else 2
    rest = argv[own:] if argv[:1] == ["lmp"] else []
    args = parser.parse_args(argv[: len(argv) - len(rest)])
    if argv[:1] == ["lmp"]:  # others take their options from `vars(args)`
        args.rest = rest
    try:
        importlib.import_module(COMMANDS[args.command][0]).run(args)
        sys.stdout.flush()
    except RaceError as error:
        print(f"race {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
