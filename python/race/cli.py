"""The `race` command: one sub-command per stage of the journey, each implemented beside the
code it runs.
"""

import argparse
import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Collection, Iterator
from typing import Any, TextIO

from race import __version__
from race.errors import RaceError

# name -> (module with `configure(parser)` and `run(args)`, one-line help). Imported only
# when called.
COMMANDS = {
    "init": ("race.train.command_init", "look at data, and write a config that learns from it"),
    "convert-data": ("race.train.command_convert", "systems of DeePMD-kit as extended xyz"),
    "data": ("race.train.command_data", "shards of a data set that is larger than memory"),
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
    "report": ("race.evaluate.command_report", "one page of a run and its evaluation, as HTML"),
    "predict": (
        "race.evaluate.command_predict",
        "energies, forces, stress and their uncertainty of unlabelled frames",
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
    "label": (
        "race.active.command_label",
        "labels of structures by an ASE calculator or LAMMPS, several at a time",
    ),
    "active": (
        "race.active.command_active",
        "compare selection strategies: select, label, train, test, again",
    ),
    "reweight": (
        "race.evaluate.command_reweight",
        "averages of an MD run with the error bar that the potential leaves",
    ),
    "lmp": ("race.deploy.command_lmp", "run LAMMPS with pair_style race"),
    "plugin": ("race.deploy.command_plugin", "where the LAMMPS plugin is"),
    "build-plugin": (
        "race.deploy.command_build_plugin",
        "compile the LAMMPS plugin for another LAMMPS",
    ),
    "config": ("race.command_config", "print every option of a config, or explain one"),
    "completion": ("race.command_completion", "completion of commands and options, for a shell"),
    "info": ("race.deploy.command_info", "verify an artifact and print what it holds"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0, 2 after an error that one line explains, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv[:1] and argv[0] in COMMANDS else ""
    try:
        with outlive_readers(), messages(aside="--json" in argv):
            _run(argv)
    except RaceError as error:
        return _end(name, str(error), 2)
    except KeyboardInterrupt:
        return _end(name, "interrupted", 130)
    except OSError as error:
        # Errors of the file system have a number; an OSError by a bug has none
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _end(name, f"{where}{error.strerror}", 2)
    return 0


def make_parser(configured: Collection[str]) -> argparse.ArgumentParser:
    """The parser of `race`; only the commands named have their options, which cost an import."""
    parser = argparse.ArgumentParser(prog="race", description=__doc__)
    parser.add_argument("--version", action="version", version=f"race {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help_text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=help_text)
        if name in configured:
            importlib.import_module(module).configure(sub)
    return parser


def _run(argv: list[str]) -> None:
    parser = make_parser(argv[:1])
    if argv[:1] != ["lmp"] and "" in argv:
        raise RaceError(
            "is empty",
            where=f"argument {argv.index('')}",
            remedy="is a variable of the script unset?",
        )
    # `race lmp` hands on all from the first word that is no option of its own.
    own = 1
    while argv[:1] == ["lmp"] and own < len(argv) and argv[own].startswith("--"):
        own += 1 if "=" in argv[own] or argv[own] == "--help" else 2
    rest = argv[own:] if argv[:1] == ["lmp"] else []
    args = parser.parse_args(argv[: len(argv) - len(rest)])
    if argv[:1] == ["lmp"]:  # others take their options from `vars(args)`
        args.rest = rest
    importlib.import_module(COMMANDS[args.command][0]).run(args)
    sys.stdout.flush()


def _end(name: str, message: str, status: int) -> int:
    with contextlib.suppress(OSError):
        print(f"{f'race {name}' if name else 'race'}: {message}", file=sys.stderr)
    return status


@contextlib.contextmanager
def messages(aside: bool = False) -> Iterator[None]:
    """Sends the library's information to stdout as it is, and its warnings to stderr.

    Args:
        aside: all to stderr, because stdout holds JSON.
    """
    logger = logging.getLogger("race")
    handler = _Messages()
    handler.aside = aside
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Messages(logging.Handler):
    aside = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(f"warning: {record.getMessage()}", file=sys.stderr, flush=True)
        else:
            print(record.getMessage(), file=sys.stderr if self.aside else None, flush=True)


@contextlib.contextmanager
def outlive_readers() -> Iterator[None]:
    """Inside, a reader that leaves early (`| head`) does not end the work: what it does not
    read goes nowhere.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Outliving(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Outliving:
    """A text stream whose reader may leave."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._without_reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._without_reader():
            self._stream.flush()

    @contextlib.contextmanager
    def _without_reader(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


if __name__ == "__main__":
    sys.exit(main())
