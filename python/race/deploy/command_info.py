"""`race info x.race.pt`: what an artifact says of itself, verified first."""

import argparse
from bisect import bisect_left
from pathlib import Path
from typing import Any

from race.deploy.artifact import read_metadata
from race.files import as_json
from race.heads import HEADS, trained_head


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="NAME.race.pt")
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")


def run(args: argparse.Namespace) -> None:
    metadata, digest = read_metadata(args.artifact)
    if args.json:
        print(as_json(metadata | {"head": trained_head(metadata), "sha256": digest}))
    else:
        print("\n".join(describe(metadata, digest)))


def describe(metadata: dict[str, Any], digest: str) -> list[str]:
    """The lines of the table."""
    model, training = metadata["model"], metadata["training"]
    commit = f", commit {metadata['git_commit'][:10]}" if metadata["git_commit"] else ""
    operators = "portable (stock torch operators)" if metadata["portable"] else "compiled operators"
    rows = [
        ("elements", " ".join(metadata["elements"])),
        ("cutoff", f"{metadata['r_max']:g} A"),
        ("members", _members(metadata)),
        ("head", _head(trained_head(metadata), metadata["stress_head"])),
        ("layers", f"{metadata['n_layers']} x {model['irreps_hidden']}, lmax {model['lmax']}"),
        ("parameters", f"{metadata['n_parameters']:,}"),
        ("stored as", f"{metadata['dtype']}, {operators}"),
        (
            "halo",
            f"one cutoff; {' '.join(map(str, metadata['halo_widths'])) or 'no'} values per atom "
            "exchanged between layers",
        ),
        ("radial weights", _radial(metadata)),
        (
            "calibration",
            ", ".join(f"{name} {value:.4g}" for name, value in metadata["calibration"].items())
            or "none",
        ),
        ("intervals", _intervals(metadata.get("intervals", {}))),
        ("made by", f"race {metadata['race_version']}, torch {metadata['torch_version']}{commit}"),
        ("sha256", digest),
    ]
    if "baseline" in metadata:
        rows.append(("adds to", _baseline(metadata["baseline"])))
    if "n_frames" in training:
        low, high = training["n_atoms_per_frame"]
        rows.append(("trained on", f"{training['n_frames']} structures of {low} to {high} atoms"))
        if unseen := set(metadata["elements"]) - set(training.get("per_element", {})):
            names = " ".join(sorted(unseen))
            rows.append(("  no data of", f"{names}: predictions and their deviations mean nothing"))
    for element, force in training["max_force"].items():
        rms = training["per_element"][element]["force_rms"]
        rows.append((f"  forces on {element}", f"rms {rms:.3g}, largest {force:.3g} eV/A"))
    if training["min_distance"]:
        rows.append(
            (
                "  shortest pairs",
                ", ".join(
                    f"{pair} {distance:.2f} A"
                    for pair, distance in training["min_distance"].items()
                ),
            )
        )
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _baseline(about: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in about["arguments"].items())
    program = about["calculator"] and f"{about['calculator']}({arguments})"
    return "; ".join(filter(None, [program, *about["lammps"]]))


def _members(metadata: dict[str, Any]) -> str:
    n_members, n_trunks = metadata["n_members"], metadata["n_trunks"]
    trunks = ""
    if n_trunks < n_members:
        count, cost = (
            ("1 trunk", "one member")
            if n_trunks == 1
            else (f"{n_trunks} trunks", f"{n_trunks} members")
        )
        trunks = f", readouts on {count}: mean forces cost {cost}"
    return f"{n_members} ({metadata['posterior']}{trunks})"


def _radial(metadata: dict[str, Any]) -> str:
    table = metadata.get("radial_table", {"knots": metadata["model"]["radial_knots"]})
    if not table["knots"]:
        return "the MLP, for every edge"
    error = (
        f", forces within {table['force_error']:.1g} of the MLP's" if "force_error" in table else ""
    )
    return f"a spline through {table['knots']} knots, as trained{error}"


def _intervals(intervals: dict[str, Any]) -> str:
    """The calibrated intervals of 90 %, or of the last level."""
    parts = []
    for quantity in ("energy", "forces", "stress"):
        if quantity in intervals:
            k = min(bisect_left(intervals["levels"], 0.9), len(intervals[quantity]) - 1)
            parts.append(
                f"{quantity} {100 * intervals['levels'][k]:g} % within "
                f"{intervals[quantity][k]:.3g} sigma"
            )
    return (
        f"{intervals['method']}, {len(intervals['fingerprints'])} frames: {', '.join(parts)}"
        if parts
        else "none"
    )


def _head(head: str, stress_head: str) -> str:
    stress = "" if stress_head == "none" else f", of the stress {stress_head} (6x6 covariance)"
    return f"{head} ({HEADS[head].gives}){stress}"
