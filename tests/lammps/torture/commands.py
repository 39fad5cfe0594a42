"""Wrong pair_style, pair_coeff, compute and fix lines: by hand, and by mutation of right ones.

A mutant may still be right (another dtype, another order of columns): then the energy
must be that of the elements it names.
"""

import random
from functools import lru_cache
from pathlib import Path

import ase

import race

from ..conftest import ELEMENTS
from .runner import Case, Outcome, refused

HEAD = """
units metal
atom_style atomic
read_data bn.data
plugin load {plugin}
"""
RIGHT = {
    "pair_style": "pair_style race {file} device cpu dtype float64 uq every 2 halo exchange",
    "pair_coeff": "pair_coeff * * B N O sha256 {sha}",
    "compute race/atom": "compute u all race/atom force/cov force/std energy/std bald interval 0.9 "
    "force/aleatoric force/epistemic",
    "compute race": "compute U all race energy/std bald max/bald max/force/std stress/std",
    "fix race/guard": "fix g all race/guard 1 stop overlap 0.1 unseen no density 9.0 force/std "
    "50.0 environment 6.0 file guard.extxyz",
    "fix pair": "fix p all pair 1 race f_cov 1 e_std 0",
}
TAIL = "thermo_style custom step pe\nrun 0"

# command that is replaced: (line, words of the message)
BY_HAND: list[tuple[str, str, tuple[str, ...]]] = [
    ("pair_style", "pair_style race", ("no model",)),
    ("pair_style", "pair_style race nowhere.race.pt", ("nowhere.race.pt", "cannot open")),
    ("pair_style", "pair_style race .", (".", "folder")),
    ("pair_style", "pair_style race bn.data", ("bn.data", "not a RACE artifact")),
    ("pair_style", "pair_style race {file} cpu", ("got cpu",)),
    ("pair_style", "pair_style race {file} device", ("device", "missing")),
    ("pair_style", "pair_style race {file} device gpu", ("device", "got gpu")),
    ("pair_style", "pair_style race {file} device cuda:", ("device", "got cuda:")),
    ("pair_style", "pair_style race {file} device cuda:-1", ("device", "got cuda:-1")),
    ("pair_style", "pair_style race {file} device cuda:99999999999999999999", ("cuda",)),
    ("pair_style", "pair_style race {file} dtype", ("dtype", "missing")),
    ("pair_style", "pair_style race {file} dtype double", ("dtype", "got double")),
    ("pair_style", "pair_style race {file} dtype 64", ("dtype", "got 64")),
    ("pair_style", "pair_style race {file} uq", ("uq", "missing")),
    ("pair_style", "pair_style race {file} uq 10", ("uq", "got 10")),
    ("pair_style", "pair_style race {file} uq every", ("uq", "missing")),
    ("pair_style", "pair_style race {file} uq every x", ("integer", "x")),
    ("pair_style", "pair_style race {file} uq every -1", ("uq every", "-1")),
    ("pair_style", "pair_style race {file} uq every 1.5", ("integer", "1.5")),
    ("pair_style", "pair_style race {file} uq every 99999999999", ("99999999999",)),
    ("pair_style", "pair_style race {file} halo", ("halo", "missing")),
    ("pair_style", "pair_style race {file} halo 3", ("halo", "got 3")),
    ("pair_style", "pair_style race {file} sha256", ("sha256", "missing")),
    ("pair_style", "pair_style race {file} sha256 1234567", ("sha256", "8 to 64")),
    ("pair_style", "pair_style race {file} sha256 zzzzzzzzzz", ("sha256", "zzzzzzzzzz")),
    ("pair_style", "pair_style race {file} sha256 0000000000", ("sha256", "0000000000")),
    ("pair_style", "pair_style race {file} zbl", ("zbl", "missing")),
    ("pair_style", "pair_style race {file} zbl 1.0 1.6", ("zbl", "got 1.0")),
    ("pair_style", "pair_style race {file} core", ("core", "missing")),
    ("pair_style", "pair_style race {file} core 1.0 1.6", ("core", "got 1.0")),
    ("pair_style", "pair_style race {file} repulsion on", ("got repulsion",)),
    ("pair_style", "pair_style race {file} {file}", ("expected a keyword",)),
    ("pair_coeff", "pair_coeff * *", ("pair_coeff", "missing")),
    ("pair_coeff", "pair_coeff * * B", ("expected 3 element names", "got 1")),
    ("pair_coeff", "pair_coeff * * B N O O", ("expected 3 element names", "got 4")),
    ("pair_coeff", "pair_coeff * * B N Si", ("atom type 3", "got Si")),
    ("pair_coeff", "pair_coeff * * b N O", ("atom type 1", "got b")),
    ("pair_coeff", "pair_coeff * * B N 8", ("atom type 3", "got 8")),
    ("pair_coeff", "pair_coeff * * NULL NULL NULL", ("only NULL",)),
    ("pair_coeff", "pair_coeff * * B N NULL", ("pair coeffs",)),
    ("pair_coeff", "pair_coeff 1 1 B N O", ("* *",)),
    ("pair_coeff", "pair_coeff * 2 B N O", ("* *",)),
    ("pair_coeff", "pair_coeff * * {file} B N O", ("has read",)),
    ("pair_coeff", "pair_coeff * * other.race.pt B N O", ("has read", "other.race.pt")),
    ("pair_coeff", "pair_coeff * * B N O sha256", ("got 4",)),
    ("pair_coeff", "pair_coeff * * B N O sha256 00000000", ("sha256", "00000000")),
    ("pair_coeff", "pair_coeff * * B N O sha256 12", ("sha256", "12")),
    ("pair_coeff", "", ("pair coeffs",)),
    ("compute race/atom", "compute u all race/atom", ("missing",)),
    ("compute race/atom", "compute u all race/atom force", ("got force",)),
    ("compute race/atom", "compute u all race/atom force/std std", ("got std",)),
    ("compute race/atom", "compute u all race/atom interval", ("interval", "missing")),
    ("compute race/atom", "compute u all race/atom interval 1.0", ("interval", "1.0")),
    ("compute race/atom", "compute u all race/atom interval 0", ("interval", "0")),
    (
        "compute race/atom",
        "compute u all race/atom interval force/std",
        ("floating point", "force/std"),
    ),
    ("compute race/atom", "compute u nobody race/atom force/std", ("nobody",)),
    ("compute race", "compute U all race", ("missing",)),
    ("compute race", "compute U all race force/std", ("got force/std",)),
    ("compute race", "group b type 1\ncompute U b race energy/std", ("group all", "got b")),
    ("fix race/guard", "fix g all race/guard", ("missing",)),
    ("fix race/guard", "fix g all race/guard 0 stop", ("steps > 0",)),
    ("fix race/guard", "fix g all race/guard 1 halt", ("got halt",)),
    ("fix race/guard", "fix g all race/guard 1 stop overlap", ("overlap", "missing")),
    ("fix race/guard", "fix g all race/guard 1 stop overlap -0.1", ("overlap", "-0.1")),
    ("fix race/guard", "fix g all race/guard 1 stop density 0.2", ("density", "0.2")),
    ("fix race/guard", "fix g all race/guard 1 stop unseen perhaps", ("unseen", "perhaps")),
    ("fix race/guard", "fix g all race/guard 1 stop environment -6", ("environment", "-6")),
    ("pair_style", "pair_style race {file} memory", ("memory", "missing")),
    ("pair_style", "pair_style race {file} memory 0", ("memory", "got 0")),
    ("pair_style", "pair_style race {file} memory 0.001", ("memory", "expected at least")),
    ("fix race/guard", "fix g all race/guard 1 stop force/std many", ("floating point", "many")),
    ("fix pair", "fix p all pair 1 race f_what 1", ("f_what",)),
    ("fix pair", "fix p all pair 1 reax f_cov 1", ("reax",)),
]

JUNK = [
    "0",
    "-1",
    "1e308",
    "-0.0",
    "nan",
    "inf",
    "99999999999999999999",
    "''",
    "*",
    "NULL",
    "race",
    "sha256",
    "force/std",
    "interval",
    "every",
    "float32",
    "B",
    "Xx",
    "../../etc/passwd",
    "%s%s%n",
    "u_u",
    "a" * 3000,
    "1.5",
    "off",
    "yes",
    "1*2",
    "c_u",
    "v_x",
    "{file}",
]


class Bench:
    """Where the commands run: one structure and one model; the energies that each choice of
    elements must give.
    """

    def __init__(self, artifact: Path, plugin: Path, atoms: ase.Atoms):
        self.artifact, self.plugin, self.atoms = artifact, plugin, atoms
        calculator = race.Calculator(artifact)
        self.sha256 = race._race.read_artifact(str(artifact)).sha256

        @lru_cache
        def energy(first: str, second: str) -> float:
            changed = atoms.copy()
            changed.symbols = [{"B": first, "N": second}[symbol] for symbol in atoms.symbols]
            calculator.calculate(changed)
            return float(calculator.results["energy"])

        self.energy = energy

    def input(self, which: str, line: str) -> str:
        lines = {**RIGHT, which: line}
        return (
            "\n".join([HEAD, *lines.values(), TAIL])
            .replace("{plugin}", str(self.plugin))
            .replace("{file}", str(self.artifact))
            .replace("{sha}", self.sha256)
        )

    def judge(self, which: str, line: str, outcome: Outcome) -> str:
        """A refusal must speak of the command; what is taken must give the energy of the
        elements that it names.
        """
        if outcome.error is not None:
            words = {
                "pair_style": "pair_style race",
                "pair_coeff": "pair_coeff",
                "fix pair": "fix pair",
            }.get(which, which)
            # LAMMPS cuts long messages, and short words are in every one.
            told = [
                word[:60] if len(word) > 2 else f"'{word}'"
                for word in (*words.split(), *line.split()[1:])
            ]
            known = any(
                word.lower() in outcome.error.lower() for word in (*told, "pair coeffs", "command")
            )
            return (
                ""
                if outcome.error.startswith("ERROR") and known
                else f"{line}\n   does not name what is wrong: {outcome.error}"
            )
        elements = line.split()[3:5] if which == "pair_coeff" else ELEMENTS[:2]
        if elements and "race.pt" in elements[0]:
            elements = line.split()[4:6]
        expected = self.energy(*elements)
        if (
            outcome.energy is None or not abs(outcome.energy - expected) <= 1e-3
        ):  # eV; float32 is a right mutant
            return f"{line}\n   was taken; energy {outcome.energy}, expected {expected}"
        return ""


def by_hand(bench: Bench) -> list[Case]:
    return [
        Case(line or f"no {which}", bench.input(which, line), refused(*words))
        for which, line, words in BY_HAND
    ]


def generated(bench: Bench, n: int, seed: int = 0) -> list[Case]:
    draw, cases, seen = random.Random(seed), [], set()
    while len(cases) < n:
        which = draw.choice(list(RIGHT))
        line = mutate(RIGHT[which], draw)
        if line in seen or line == RIGHT[which]:
            continue
        seen.add(line)
        cases.append(
            Case(
                line[:200],
                bench.input(which, line),
                lambda outcome, a=which, b=line: bench.judge(a, b, outcome),
            )
        )
    return cases


def mutate(line: str, draw: random.Random) -> str:
    """One to three edits of the words after the command's name and the style's."""
    words = line.split()
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        k = draw.randrange(1, len(words))
        edit = draw.choice(
            ["drop", "double", "junk", "junk", "insert", "swap", "cut", "flip", "end"]
        )
        if edit == "drop" and len(words) > 2:
            del words[k]
        elif edit == "double":
            words.insert(k, words[k])
        elif edit == "junk":
            words[k] = draw.choice(JUNK)
        elif edit == "insert":
            words.insert(k, draw.choice(JUNK))
        elif edit == "swap":
            other = draw.randrange(1, len(words))
            words[k], words[other] = words[other], words[k]
        elif edit == "cut" and len(words[k]) > 1:
            words[k] = words[k][: draw.randrange(1, len(words[k]))]
        elif edit == "flip":
            at = draw.randrange(len(words[k]))
            words[k] = words[k][:at] + chr(draw.randrange(33, 127)) + words[k][at + 1 :]
        elif edit == "end":
            words = words[: k + 1]
    return " ".join(words)
