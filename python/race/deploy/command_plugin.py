"""`race plugin`: where the LAMMPS plugin is; with --env, the lines that make any LAMMPS find it."""

import argparse
import shlex

from race.deploy.launch import environment, plugin_path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env",
        action="store_true",
        help="print shell commands instead, for: eval $(race plugin --env)",
    )


def run(args: argparse.Namespace) -> None:
    if not args.env:
        print(plugin_path())
        return
    variables = environment()
    for name in ("LAMMPS_PLUGIN_PATH", "LD_LIBRARY_PATH"):
        print(f"export {name}={shlex.quote(variables[name])};")
