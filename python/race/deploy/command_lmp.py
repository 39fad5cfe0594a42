"""`race lmp -in in.script`: this environment's LAMMPS, with pair_style race at hand."""

import argparse
import os
import sys

from race.deploy.launch import command, environment


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "race lmp [--ranks N] [--lmp PATH] LAMMPS-ARGUMENTS..."
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="MPI ranks (default: 1)")
    parser.add_argument(
        "--lmp", default="lmp", metavar="PATH", help="another LAMMPS than the environment's"
    )


def run(args: argparse.Namespace) -> None:
    words = command(args.rest, args.ranks, args.lmp)
    variables = environment()
    # The search for the program itself goes by the PATH of this process, not by the new one.
    os.environ["PATH"] = variables["PATH"]
    sys.stdout.flush()
    os.execvpe(words[0], words, variables)
