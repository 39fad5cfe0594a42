"""`race label config.yaml FRAMES... -o labelled.extxyz`: labels of an oracle, with the section
`oracle` of a `race active` config. The same command continues what was interrupted.
"""

import argparse
import json
from pathlib import Path

from race.active.config import OracleConfig
from race.errors import RaceError
from race.files import XYZ, as_json, check_output
from race.options import read_raw, validated


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, help="YAML with a section `oracle`, as `race active` takes it"
    )
    parser.add_argument(
        "frames",
        nargs="+",
        type=Path,
        help="extxyz, traj or dump files; labels in them are replaced",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="the labelled frames in their order, as extended xyz; labels are kept in "
        "OUTPUT.labels as they come",
    )
    parser.add_argument("--json", action="store_true", help="JSON in place of the last line")


def run(args: argparse.Namespace) -> None:
    raw = read_raw(args.config)
    if not isinstance(raw.get("oracle"), dict):
        raise RaceError("no section oracle", where=args.config, expected="oracle: {...}")
    config = validated(raw["oracle"], OracleConfig, f"{args.config}, oracle")
    if config.labels is not None:
        raise RaceError(
            "computes nothing",
            where=f"{args.config}, oracle.labels",
            expected="oracle.calculator or oracle.lammps",
        )
    check_output(args.output, [args.config, *args.frames], XYZ)
    from race.active.labelling import failed_list, label_frames
    from race.active.oracle import make_oracle
    from race.data.io import read_structures, write_frames
    from race.files import Lock

    frames = [atoms for path in args.frames for _, atoms in read_structures(path)]
    folder = args.output.with_name(f"{args.output.name}.labels")
    oracle = make_oracle(config, [], {}, folder)
    with Lock(folder):
        out = label_frames(frames, oracle, config, args.output)
    write_frames(args.output, out)
    if args.json:
        left_out = failed_list(args.output)
        content = {
            "output": str(args.output),
            "n_frames": len(frames),
            "n_labelled": len(out),
            "n_computed": oracle.computed,
            "failed": json.loads(left_out.read_text()) if left_out.exists() else [],
        }
        print(as_json(content))
        return
    print(f"{args.output}: {len(out)} of {len(frames)} frames, {oracle.computed} labels computed")
