"""Two atoms, from deep inside the core to beyond the cutoff: each pair of elements in LAMMPS, what
the ASE calculator says of it, and the core that `core on` adds.
"""

import itertools
import json
import sys
from collections.abc import Iterator

import ase
import numpy as np

import race

from ..conftest import ELEMENTS
from ..harness import Lammps, write_data
from .subjects import CUTOFF, Kind, Subject

H = 1e-5  # Angstrom
PAIRS = list(itertools.combinations_with_replacement(ELEMENTS, 2))
ALONG = np.array([2.0, -1.0, 2.0]) / 3
POINTS = np.append(np.arange(0.6, CUTOFF + 0.1, 0.05), [CUTOFF, CUTOFF - H / 2])
CLOSE = np.geomspace(0.01, 0.4, 12)  # where the core outweighs any model
HEAD = """
units metal
atom_style atomic
boundary {boundary}
read_data {data}
plugin load {plugin}
pair_style race {pair}
pair_coeff * * B N O
thermo_modify format float %.17g
"""

# Energy, and the force on the second atom along the bond, of two atoms at each distance.
DIMERS = """
import json, sys
import numpy as np
from lammps import lammps
along = np.array([2.0, -1.0, 2.0]) / 3
lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
for head, distances in json.load(open("dimers.json")):
    lmp.command("clear")
    lmp.commands_string(head)
    for a, b in json.loads(sys.argv[1]):
        rows = []
        lmp.commands_string(f"set atom 1 type {a}\\nset atom 2 type {b}")
        for r in distances:
            x, y, z = np.array([5.0, 5.0, 5.0]) + r * along
            lmp.commands_string(f"set atom 2 x {x:.17g} y {y:.17g} z {z:.17g}\\nrun 0 post no")
            tag, f = lmp.numpy.extract_atom("id")[:2], lmp.numpy.extract_atom("f")[:2]
            rows.append((lmp.get_thermo("pe"), float(f[tag == 2][0] @ along)))
        print("ROWS", json.dumps(rows), flush=True)
"""


def rows_of(lammps: Lammps, script: str, *arguments: str, timeout: float) -> list:
    finished = lammps.execute([sys.executable, "-c", script, *arguments], timeout)
    assert finished.status == 0, finished.output[-2000:]
    return [
        json.loads(line.removeprefix("ROWS "))
        for line in finished.output.splitlines()
        if line.startswith("ROWS ")
    ]


def names(kind: Kind) -> list[str]:
    of = ["Python of dimer", *(["dimer", "core"] if kind.exact else [])]
    return [f"{what} {a}-{b}" for a, b in PAIRS for what in of]


def checks(lammps: Lammps, model: Subject) -> Iterator[tuple[str, str]]:
    """Names and verdicts."""
    kind, asked = model.kind, [(model.pair, POINTS), (f"{model.pair} core on", CLOSE)]
    tables = measured(lammps, asked if kind.exact else asked[:1])
    calculator = model.calculator()
    for k, (a, b) in enumerate(PAIRS):
        expected = calculated(calculator, a, b, POINTS)
        yield f"Python of dimer {a}-{b}", judge_same(tables[k][1::3], expected, kind.tolerance)
        if kind.exact:
            yield f"dimer {a}-{b}", judge_dimer(POINTS, tables[k])
            yield f"core {a}-{b}", judge_core(CLOSE, tables[len(PAIRS) + k])


def measured(lammps: Lammps, asked: list[tuple[str, np.ndarray]]) -> list[np.ndarray]:
    """asked: arguments of pair_style race, and n points. Of each, and of each pair, [3 n, 2]:
    energies and forces at each point less H, there, and plus H.
    """
    atoms = ase.Atoms("BN", positions=[[5, 5, 5], [6, 5, 5]], cell=[12, 12, 12])
    write_data(lammps.folder / "dimer.data", atoms, ELEMENTS)
    heads = [
        HEAD.format(boundary="f f f", data="dimer.data", plugin=lammps.plugin, pair=pair)
        for pair, _ in asked
    ]
    distances = [(points[:, None] + [-H, 0, H]).ravel().tolist() for _, points in asked]
    (lammps.folder / "dimers.json").write_text(json.dumps(list(zip(heads, distances, strict=True))))
    types = [[ELEMENTS.index(element) + 1 for element in each] for each in PAIRS]
    tables = rows_of(lammps, DIMERS, json.dumps(types), timeout=300.0)
    assert len(tables) == len(asked) * len(PAIRS)
    return [np.array(table) for table in tables]


def calculated(calculator: race.Calculator, a: str, b: str, points: np.ndarray) -> np.ndarray:
    """[n, 2] as in LAMMPS, from Python."""
    rows = []
    for r in points:
        calculator.calculate(ase.Atoms([a, b], positions=[[0, 0, 0], r * ALONG]))
        rows.append((calculator.results["energy"], calculator.results["forces"][1] @ ALONG))
    return np.array(rows)


def judge_same(found: np.ndarray, expected: np.ndarray, tolerance: float) -> str:
    """Within `tolerance` of the largest value, or of 1."""
    off = np.abs(found - expected).max(0) / np.maximum(1.0, np.abs(expected).max(0))
    return "" if off.max() < tolerance else f"energy off by {off[0]:.1e}, force {off[1]:.1e}"


def judge_dimer(points: np.ndarray, table: np.ndarray) -> str:
    """The force is the energy's derivative, never jumps, and ends at the cutoff."""
    energy, force = table.reshape(-1, 3, 2).transpose(2, 0, 1)
    scale = np.abs(force).max()
    if not np.isfinite(table).all() or scale < 1e-3:
        return f"no interaction, or none that is finite: {scale:.2e} eV/A"
    slope = np.abs((energy[:, 2] - energy[:, 0]) / (2 * H) + force[:, 1]).max() / scale
    jump = np.abs(force[:, 2] - force[:, 0]).max() / scale
    beyond = np.abs(force[points > CUTOFF + H]).max() / scale
    if slope > 1e-6 or jump > 1e-3 or beyond > 0:
        return (
            f"slope of the energy off by {slope:.1e}, jump of {jump:.1e}, {beyond:.1e} beyond "
            f"the cutoff, of {scale:.2e} eV/A"
        )
    return ""


def judge_core(points: np.ndarray, table: np.ndarray) -> str:
    """The closer, the more energy, which no distance of nuclei bounds; the force is its
    derivative.
    """
    energy, force = table.reshape(-1, 3, 2).transpose(2, 0, 1)
    if not np.isfinite(table).all():
        return "not finite"
    if not ((np.diff(energy[:, 1]) < 0).all() and (force[:, 1] > 0).all()):
        return f"does not repel at {points[force[:, 1] <= 0]} Angstrom"
    if energy[0, 1] < 1000:  # eV; bare nuclei of boron, at 0.01 Angstrom, have 36,000
        return f"only {energy[0, 1]:.3g} eV at {points[0]} Angstrom"
    numeric = -(energy[:, 2] - energy[:, 0]) / (2 * H)
    off = np.abs(numeric / force[:, 1] - 1).max()
    return "" if off < 1e-5 else f"the force is off by {off:.1e} of the energy's derivative"
