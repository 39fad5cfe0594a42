"""`race plugin`: where the LAMMPS plugin is; with --env, the lines that make any LAMMPS find it;
with --i-pi, where the driver of i-PI is.
"""

import argparse
import shlex
from pathlib import Path

from race.deploy.launch import environment, plugin_path


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--i-pi",
        action="store_true",
        help="print the file of the i-PI driver instead, for: i-pi-driver-py -m custom -P FILE",
    )
    what.add_argument(
        "--env",
        action="store_true",
        help="print shell commands instead, for: eval $(race plugin --env)",
    )


def run(args: argparse.Namespace) -> None:
    if args.i_pi:
        print(Path(__file__).with_name("ipi_driver.py"))
        return
    if not args.env:
        print(plugin_path())
        return
    variables = environment()
    for name in ("LAMMPS_PLUGIN_PATH", "LD_LIBRARY_PATH"):
        print(f"export {name}={shlex.quote(variables[name])};")
