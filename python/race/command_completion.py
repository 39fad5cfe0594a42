"""`eval "$(race completion bash)"`: a shell completes the commands, options and files of race."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from race.cli import COMMANDS, make_parser


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def run(args: argparse.Namespace) -> None:
    print(script(args.shell))


def script(shell: str) -> str:
    """The script that the shell evaluates. It starts no Python while it completes."""
    parser = make_parser(COMMANDS)
    for action in every_action(parser):
        if action.type is Path or "PATH" in str(action.metavar):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def every_action(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from every_action(command)
        else:
            yield action
