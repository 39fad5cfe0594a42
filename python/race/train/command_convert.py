"""`race convert-data FOLDER... -o train.extxyz`: systems of DeePMD-kit as extended xyz."""

import argparse
import io
from collections import Counter
from pathlib import Path

from race.errors import RaceError
from race.files import XYZ, check_output, write_atomic


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="DeePMD systems (npy, mixed or raw), or folders of them",
    )
    parser.add_argument(
        "--elements",
        nargs="+",
        action="extend",
        default=[],
        help="by type, where type_map.raw does not say",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="extended xyz file")


def run(args: argparse.Namespace) -> None:
    import ase.io  # slow to import, as is all of race.data

    from race.data.deepmd import deepmd_frames, systems

    if args.output.exists():
        raise RaceError("exists already", where=args.output, remedy="choose another --output")
    check_output(args.output, suffixes=XYZ)
    text, count = io.StringIO(), Counter[str]()
    for folder in args.folders:
        for system in systems(folder):
            for atoms in deepmd_frames(system, args.elements):
                # `data.source_key: system` and weights by system need it
                atoms.info["system"] = system.name
                ase.io.write(text, atoms, format="extxyz")
                count[str(system)] += 1
    write_atomic(args.output, text.getvalue().encode())
    for name, n in count.items():
        print(f"{name}: {n} frames")
    print(f"{args.output}: {count.total()} frames in eV and Angstrom\n")
    print(f"next:  race init {args.output}")
