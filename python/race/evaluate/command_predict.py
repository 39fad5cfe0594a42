"""`race predict MODEL FRAMES... -o predicted.extxyz`: energies, forces, stress and every
uncertainty of frames that need no labels.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from race.conventions import SIX_TO_VOIGT, six_from_matrix
from race.data import read_frames
from race.data.graph import ORIGIN
from race.errors import RaceError
from race.evaluate.evaluated import EvaluatedModel, open_model
from race.files import check_output, writing
from race.predict.prediction import Prediction
from race.progress import progress

CHUNK = 32  # frames that are predicted, then written
LABELS = ("energy", "forces", "stress")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run's folder or an artifact NAME.race.pt")
    parser.add_argument(
        "frames",
        nargs="+",
        type=Path,
        help="extxyz, traj or npz files; labels in them are replaced by predictions",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="extended xyz, frames in the order given"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="frames per pass of a run")
    parser.add_argument("--device", default="cpu")


def run(args: argparse.Namespace) -> None:
    RaceError.unless_at_least(1, args.batch_size, "--batch-size")
    for path in args.frames:
        if args.output.exists() and path.exists() and path.samefile(args.output):
            raise RaceError("the output is one of the inputs", where=f"-o {args.output}")
    check_output(args.output)
    evaluated = open_model(args.model, args.batch_size, args.device)
    frames = [atoms for path in args.frames for atoms in read_frames(path, require=())]
    if not frames:
        raise RaceError("no frames to predict", where=" ".join(map(str, args.frames)))
    partial = args.output.with_name(f".{args.output.name}.tmp")
    try:
        with writing(args.output), open(partial, "w") as file:
            for atoms in progress(predicted(evaluated, frames), "predicting", len(frames)):
                ase.io.write(file, atoms, format="extxyz")
        with writing(args.output):
            partial.replace(args.output)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{args.output}: {len(frames)} frames")


def predicted(evaluated: EvaluatedModel, frames: Sequence[ase.Atoms]) -> Iterator[ase.Atoms]:
    """The frames one by one, with predictions under ASE's names and their uncertainty:

    info energy_std, energy_epistemic_std (eV), stress_std ([6], ASE's Voigt order,
    eV/Angstrom^3), energy_bald (nats); arrays forces_std [n, 3] (eV/Angstrom), forces_cov and
    forces_cov_epistemic [n, 6] in SIX_ORDER ((eV/Angstrom)^2), bald [n] (nats), grade [n] (of an
    artifact that knows its training set). A model that gives no uncertainty leaves them out.
    """
    for begin in range(0, len(frames), CHUNK):
        chunk = frames[begin : begin + CHUNK]
        found = evaluated.moments(chunk)
        ends = np.cumsum([len(atoms) for atoms in chunk])
        for k, (atoms, end) in enumerate(zip(chunk, ends, strict=True)):
            yield _with(atoms, found, k, slice(end - len(atoms), end))


def _with(atoms: ase.Atoms, found: Prediction, k: int, rows: slice) -> ase.Atoms:
    energy, forces, stress = found.energy, found.forces, found.stress
    out = ase.Atoms(
        numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc
    )
    out.info = {key: x for key, x in atoms.info.items() if key not in (*LABELS, ORIGIN)}
    results: dict[str, Any] = {"energy": float(energy.mean[k])}
    if forces is not None:
        results["forces"] = forces.mean[rows]
    if energy.std[k] > 0:
        out.info["energy_std"] = float(energy.std[k])
        out.info["energy_epistemic_std"] = float(np.sqrt(energy.epistemic[k]))
    if forces is not None and forces.total[rows].any():
        out.arrays["forces_std"] = forces.std[rows]
        out.arrays["forces_cov"] = six_from_matrix(forces.total[rows])
        out.arrays["forces_cov_epistemic"] = six_from_matrix(forces.epistemic[rows])
    if stress is not None and np.isfinite(stress.mean[k]).all():
        results["stress"] = stress.mean[k][list(SIX_TO_VOIGT)]
        if (stress.std[k] > 0).all():
            out.info["stress_std"] = stress.std[k][list(SIX_TO_VOIGT)]
    if found.energy_bald is not None:
        out.info["energy_bald"] = float(found.energy_bald[k])
    if found.forces_bald is not None:
        out.arrays["bald"] = found.forces_bald[rows]
    if found.grade is not None:
        out.arrays["grade"] = found.grade[rows]
    out.calc = SinglePointCalculator(out, **results)
    return out
