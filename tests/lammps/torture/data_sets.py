"""Bad data sets, each spoiled in a way drawn from a seed: all of it is read as it was meant, or
said, or refused in one line; never a traceback, never silence.
"""

import io
import logging
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from race.data import Dataset, read_frames
from race.data.plausibility import GPA, check
from race.errors import RaceError
from tests.data.test_plausibility import copper

from .runner import SECONDS, Outcome, Tally

LABELS = ("energy", "forces", "stress")
N_FRAMES = 12
CASES = 144  # every fault four times
VALIDATION = copper(3, "v.xyz", seed=9)
# Told by pairs of frames, which are looked at where they have one cell
OF_ONE_CELL = ("gradients", "forces in Ha/Bohr", "energy of an atom")


def text_of(frames):
    stream = io.StringIO()
    for atoms in frames:
        plain = atoms.copy()
        six = plain.info.pop("stress")
        voigt = six[[0, 1, 2, 5, 4, 3]]
        energy, forces = plain.info.pop("energy"), plain.arrays.pop("forces")
        plain.info.clear()
        plain.calc = SinglePointCalculator(plain, energy=energy, forces=forces, stress=voigt)
        ase.io.write(stream, plain, format="extxyz")
    return stream.getvalue()


# Changes of the text that mean the same, and may be said.
def harmless(random):
    return random.choice(
        [
            lambda t: re.sub(r"\r?\n", "\r\n", t),
            lambda t: "\ufeff" + t,
            lambda t: t.replace("\n8\n", "\n\n8\n"),
            lambda t: t + "\n\n",
            lambda t: t.replace("Lattice=", random.choice(["lattice=", "LATTICE="])),
            lambda t: t.replace("pbc=", random.choice(["PBC=", "Pbc="])),
            lambda t: t.replace("Properties=", "properties="),
            lambda t: t.replace(" pbc=", " charge=nan DFT_virial=nan pbc="),
            lambda t: t.replace(
                '"T T T"', random.choice(['"1 1 1"', "TTT", '"p p p"', "T", "xyz"])
            ),
        ]
    )


def one_place(text, pattern, new, random):
    """`new` in place of one match of the pattern."""
    matches = list(re.finditer(pattern, text))
    match = matches[random.randint(len(matches))]
    return text[: match.start()] + new + text[match.end() :]


# Changes that must be refused or said: kind -> what does it.
FAULTS = {
    "cut short": lambda t, r: t[: -r.randint(75, len(t) // 2)],
    "a line lost": lambda t, r: one_place(t, r"\nCu [^\n]*(?=\n)", "", r),
    "a line twice": lambda t, r: one_place(t, r"\n8(?=\n)", "\nCu 0 0 0 0 0 0\n8", r),
    "garbage": lambda t, r: one_place(t, r"\n8(?=\n)", "\n%&!\n8", r),
    "misspelt": lambda t, r: t.replace("Lattice=", r.choice(["Latice=", "cell=", "Box="])),
    "other pbc": lambda t, r: t.replace('pbc="T T T"', r.choice(['periodic="F F F"', "pbc=maybe"])),
    "other forces": lambda t, r: t.replace(":forces:", r.choice([":force:", ":DFT_forces:"])),
    "other energy": lambda t, r: t.replace(" energy=", r.choice([" Energy=", " REF_energy="])),
    "other stress": lambda t, r: t.replace(" stress=", r.choice([" virial=", " virials="])),
    "infinite": lambda t, r: one_place(t, r"energy=\S+", "energy=inf", r),
    "text": lambda t, r: one_place(t, r"energy=\S+", "energy=n/a", r),
    "nan": lambda t, r: one_place(t, r"energy=\S+", "energy=nan", r),
    "nan position": lambda t, r: one_place(t, r"\nCu +\S+", "\nCu nan", r),
    "runaway": lambda t, r: t.replace('"T T T"', '"F F F"').replace("\nCu  ", "\nCu 1e9", 1),
    "no element": lambda t, r: one_place(t, r"\nCu ", "\nCq ", r),
    "infinite cell": lambda t, r: one_place(t, r'Lattice="\S+', 'Lattice="inf', r),
    "flat": lambda t, r: one_place(t, r'Lattice="[^"]*"', 'Lattice="5 0 0 0 5 0 5 5 1e-9"', r),
    "kB": lambda t, r: rescaled(t, -10 * GPA),
    "GPa": lambda t, r: rescaled(t, GPA),
    "gradients": lambda t, r: other_forces(t, -1.0),
    "forces in Ha/Bohr": lambda t, r: other_forces(t, 1 / 51.42),
    "energy of an atom": lambda t, r: re.sub(r"energy=(\S+)", of_an_atom, t),
    "huge force": lambda t, r: one_place(t, r"\S+(?=\n8\n)", "3e5", r),
    "copies": lambda t, r: t + t[: len(t) // 2],
    "another energy": lambda t, r: one_place(t, r"energy=\S+", "energy=77", r),
    "no cell": lambda t, r: re.sub(r'(Lattice|pbc|stress)="[^"]*"', "", t),
    "units": lambda t, r: t.replace(" pbc=", " energy_unit=Hartree pbc="),
    "weight": lambda t, r: one_place(t, " pbc=", f" weight={r.choice(['-1', 'nan', 'x'])} pbc=", r),
    "no weights": lambda t, r: t.replace(" pbc=", " weight=0 pbc="),
    "axes interchanged": lambda t, r: of_forces(t, lambda f: [f[1], f[2], f[0]]),
    "one energy": lambda t, r: re.sub(r"energy=\S+", f"energy={r.choice(['0.0', '-3.7'])}", t),
    "no stress": lambda t, r: rescaled(t, 0.0),
    "unconverged": lambda t, r: one_place(t, " pbc=", " scf_converged=F pbc=", r),
    "frozen atoms": lambda t, r: frozen(t, r.randint(2, 7)),
    "nan stress": lambda t, r: one_place(t, r'stress="[^"]*"', 'stress="' + "nan " * 9 + '"', r),
    "validation trained on": lambda t, r: t + text_of(VALIDATION),
}  # fmt: skip


def other_forces(text, factor):
    return of_forces(text, lambda force: [f"{factor * float(x):.8f}" for x in force])


def of_forces(text, change):
    def times(match):
        return " ".join([match[1], *change(match[2].split())])

    return re.sub(r"(?m)^(Cu(?: +\S+){3})((?: +\S+){3})$", times, text)


def frozen(text, n):
    """Forces of zero on the first n atoms of each frame, as a relaxation with fixed ones has."""
    lines = text.split("\n")
    for start in [k for k, line in enumerate(lines) if line == "8"]:
        for k in range(start + 2, start + 2 + n):
            lines[k] = " ".join([*lines[k].split()[:4], "0", "0", "0"])
    return "\n".join(lines)


def of_an_atom(match):
    return f"energy={float(match[1]) / 8}"


def rescaled(text, factor):
    def times(match):
        return 'stress="' + " ".join(str(factor * float(x)) for x in match[1].split()) + '"'

    return re.sub(r'stress="([^"]*)"', times, text)


class Said(logging.Handler):
    """Counts warnings."""

    n = 0

    def emit(self, record):
        self.n += record.levelno >= logging.WARNING


def outcome(path, text):
    """("refused" or "said" or "silent", frames); a refusal of several lines is an exception."""
    path.write_bytes(text.encode())
    said, log = Said(), logging.getLogger("race.data")
    log.addHandler(said)
    try:
        frames = read_frames(path, require=(), wanted=LABELS, weight_key="weight")
        data = Dataset(frames, ["Cu"], 4.0, torch.float64)
        report = check(data, VALIDATION, LABELS)
    except RaceError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, error
        return "refused", None
    finally:
        log.removeHandler(said)
    return ("said" if said.n or report.findings else "silent"), frames


def verdict(folder: Path, seed: int) -> str:
    """What is wrong with case `seed`; empty: nothing."""
    random = np.random.RandomState(seed)
    kind = sorted(FAULTS)[seed % len(FAULTS)]
    meant = copper(N_FRAMES, seed=seed % 7, strained=kind not in OF_ONE_CELL)
    good = text_of(meant)
    mild = good
    for _ in range(random.randint(3)):
        mild = harmless(random)(mild)
    spoiled = FAULTS[kind](good, random)
    assert spoiled != good
    if random.rand() < 0.5:
        spoiled = "\n" + spoiled.replace("\n", "\r\n")
    try:
        what, frames = outcome(folder / "a.xyz", mild)
        if what == "refused":
            return "another spelling of the same is refused"
        if not equal(frames, meant):
            return "another spelling of the same is read as something else"
        what, _ = outcome(folder / "a.xyz", spoiled)
    except Exception as error:
        return f"{kind}: {type(error).__name__} {error}"
    return f"{kind}: not a word" if what == "silent" else ""


def equal(frames, meant):
    return len(frames) == len(meant) and all(
        np.allclose(a.cell.array, b.cell.array, atol=1e-6)
        and np.allclose(a.positions, b.positions, atol=1e-6)
        and np.allclose(a.info["stress"], b.info["stress"], atol=1e-6)
        and np.allclose(a.arrays["forces"], b.arrays["forces"], atol=1e-6)
        and abs(a.info["energy"] - b.info["energy"]) < 1e-6
        and a.pbc.all()
        for a, b in zip(frames, meant, strict=True)
    )


def run(folder: Path, n_cases: int = CASES, judge=verdict) -> Tally:
    """In a process of its own, which may crash or hang."""
    tally = Tally("data sets")
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, spawn)
    for seed in range(n_cases):
        found, wrong = Outcome(), ""
        future = pool.submit(judge, folder, seed)
        try:
            if wait([future], SECONDS).done:
                wrong = future.result()
            else:
                found = Outcome(hang=True)
        except BrokenProcessPool as error:
            found = Outcome(crash=str(error))
        if found.crash or found.hang:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False)
            pool = ProcessPoolExecutor(1, spawn)
        tally.count(f"seed {seed}", found, wrong)
    pool.shutdown()
    return tally
