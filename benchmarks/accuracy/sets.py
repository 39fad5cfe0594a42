"""The data sets of the accuracy benchmark, as every code reads them.

`prepare` writes train.xyz, validation.xyz and test-SPLIT.xyz into a folder: extended XYZ
with ASE's standard labels (eV, eV/Angstrom, eV/Angstrom^3), and the same under MACE's keys.
All codes get the same frames, the same cutoff and the same atomic energies.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from race.conventions import SIX_TO_VOIGT
from race.data import read_frames
from race.data.statistics import atomic_energies, elements_of


@dataclass(frozen=True)
class Frames:
    """Frames of one set: `known` are divided into training and validation frames, `tests`
    are the judged splits by name. isolated: a file of single atoms, or None.
    """

    known: list[ase.Atoms]
    tests: dict[str, list[ase.Atoms]]
    isolated: Path | None = None


@dataclass(frozen=True)
class DataSet:
    """One set: how to read it, the share of validation frames, the cutoff of every model in
    Angstrom, and whether stresses are trained and judged.
    """

    read: Callable[[Path], Frames]
    validation: float
    r_max: float = 5.0
    stress: bool = False


def rmd17(molecule: str) -> Callable[[Path], Frames]:
    """Split 01: 950 + 50 and 1000 test frames."""

    def read(data: Path) -> Frames:
        known, test = (
            read_frames(data / "rmd17" / f"rmd17_{molecule}_{part}_01.npz")
            for part in ("train", "test")
        )
        return Frames(known, {"test": test})

    return read


def threebpa(data: Path) -> Frames:
    """450 + 50 frames at 300 K. The hot test files hold frames that active learning chose
    for being uncertain: "600 K" and "1200 K" are the others, "..., chosen too" are all.
    """
    folder = data / "3bpa"
    hot = {
        f"{kelvin} K": read_frames(folder / f"test{kelvin}K_mixedT_plus_AL.extxyz")
        for kelvin in (600, 1200)
    }
    unbiased = {
        name: [
            frame
            for frame in frames
            if "mixedT" in frame.info["source"] or frame.info.get("random_selected") is True
        ]
        for name, frames in hot.items()
    }
    tests = {"300 K": read_frames(folder / "test300K_mixedT_not_in_train.extxyz")}
    tests |= unbiased | {f"{name}, chosen too": frames for name, frames in hot.items()}
    return Frames(read_frames(folder / "train_300K.xyz"), tests, folder / "iso_atoms.xyz")


def mlearn(element: str) -> Callable[[Path], Frames]:
    def read(data: Path) -> Frames:
        known, test = (
            read_frames(data / "mlearn" / f"{element}_{part}.extxyz")
            for part in ("training", "test")
        )
        return Frames(known, {"test": test})

    return read


def b2o3(data: Path) -> Frames:
    """Liquids at 3000 and 1600 K; glass and crystals are out of distribution."""

    def part(name: str, which: str) -> list[ase.Atoms]:
        return read_frames(data / "b2o3" / f"B2O3_{name}_{which}.extxyz")

    liquids = ("liquid_3000K", "liquid_1600K")
    others = {
        "glass": "glass_300K",
        "alpha": "crystal_alpha",
        "beta": "crystal_beta",
        "40 GPa": "crystal_highP_40GPa",
    }
    tests = {"liquid": [frame for name in liquids for frame in part(name, "val")]}
    tests |= {split: part(name, "val") for split, name in others.items()}
    return Frames([frame for name in liquids for frame in part(name, "train")], tests)


SETS = {
    "ethanol": DataSet(rmd17("ethanol"), 0.05),
    "toluene": DataSet(rmd17("toluene"), 0.05),
    "aspirin": DataSet(rmd17("aspirin"), 0.05),
    "3BPA": DataSet(threebpa, 0.1),
    "Si": DataSet(mlearn("Si"), 0.1, stress=True),
    "Mo": DataSet(mlearn("Mo"), 0.1, stress=True),
    "B2O3": DataSet(b2o3, 0.06, r_max=4.0, stress=True),
}


BOX = 100.0  # Angstrom, around molecules; no code reads it


def file_of(split: str) -> str:
    return f"test-{split.replace(' ', '').replace(',', '-')}.xyz"


def prepare(data: Path, name: str, folder: Path, most: int | None = None) -> dict:
    """Writes the files once and returns what every code must know of the set: elements,
    atomic energies (isolated atoms where the set has them, else a least-squares fit),
    number of training frames, test splits. most: frames of each file, for a trial.
    """
    about = folder / "set.json"
    if about.exists():
        return json.loads(about.read_text())
    one = SETS[name]
    frames = one.read(data)
    order = np.random.RandomState(0).permutation(len(frames.known))
    n_validation = round(one.validation * len(order))
    held_out, rest = order[:n_validation], order[n_validation:]
    files = {
        "train.xyz": [frames.known[k] for k in rest],
        "validation.xyz": [frames.known[k] for k in held_out],
        **{file_of(split): test for split, test in frames.tests.items()},
    }
    elements = elements_of(frames.known)
    source = frames.isolated or "least_squares"
    energies = atomic_energies(files["train.xyz"], elements, source)
    found = {
        "elements": elements,
        "atomic_energies": dict(zip(elements, energies, strict=True)),
        "n_train": len(files["train.xyz"][:most]),
        "r_max": one.r_max,
        "stress": one.stress,
        "splits": list(frames.tests),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        ase.io.write(folder / file, [labelled(atoms, one.stress) for atoms in content[:most]])
    about.write_text(json.dumps(found, indent=1) + "\n")
    return found


def labelled(atoms: ase.Atoms, stress: bool) -> ase.Atoms:
    """A bare structure with its labels under ASE's names and under MACE's."""
    # NequIP's compiled model divides by the volume of molecules, too
    cell = atoms.cell if atoms.pbc.any() else [BOX, BOX, BOX]
    out = ase.Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=atoms.pbc)
    labels = {"energy": float(atoms.info["energy"]), "forces": atoms.arrays["forces"]}
    out.info["REF_energy"], out.arrays["REF_forces"] = labels["energy"], labels["forces"]
    if stress:  # NequIP wants a stress in every frame and ignores NaN; the others want none
        labels["stress"] = np.full(6, np.nan)
        if "stress" in atoms.info:
            labels["stress"] = np.asarray(atoms.info["stress"])[list(SIX_TO_VOIGT)]
            out.info["REF_stress"] = labels["stress"]
    out.calc = SinglePointCalculator(out, **labels)
    return out
