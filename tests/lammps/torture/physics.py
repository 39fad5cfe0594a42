"""What a potential must be, whatever it was trained on: smooth pairs, symmetries, and memory
that a long run does not take (after OpenKIM's verification checks; forces and stress
against finite differences of the energy are in tests/model and tests/deploy).
"""

import itertools
import json
import sys
from pathlib import Path

import ase
import numpy as np

from ..conftest import ELEMENTS
from ..harness import Lammps, Snapshot, write_data
from ..systems import boron_nitride, molecule
from .runner import Outcome, Tally

CUTOFF = 3.2  # of the models, Angstrom
H = 1e-5  # Angstrom
STEPS = 100_000
LEAK = 1.0  # MiB that so many steps may take
HEAD = """
units metal
atom_style atomic
boundary {boundary}
read_data {data}
plugin load {plugin}
pair_style race {model}
pair_coeff * * B N O
thermo_modify format float %.17g
"""

# Energy, and the force on the second atom along the bond, of two atoms at each distance.
DIMERS = """
import json, sys
import numpy as np
from lammps import lammps
distances = json.load(open("distances.json"))
lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
lmp.commands_string(sys.argv[1])
along = np.array([2.0, -1.0, 2.0]) / 3
for a, b in json.loads(sys.argv[2]):
    rows = []
    lmp.commands_string(f"set atom 1 type {a}\\nset atom 2 type {b}")
    for r in distances:
        x, y, z = np.array([5.0, 5.0, 5.0]) + r * along
        lmp.commands_string(f"set atom 2 x {x:.17g} y {y:.17g} z {z:.17g}\\nrun 0 post no")
        tag, f = lmp.numpy.extract_atom("id")[:2], lmp.numpy.extract_atom("f")[:2]
        rows.append((lmp.get_thermo("pe"), float(f[tag == 2][0] @ along)))
    print("ROWS", json.dumps(rows), flush=True)
"""

# Resident memory in MiB after each tenth of a run.
LONG = """
import json, sys
from lammps import lammps
lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
lmp.commands_string(sys.argv[1])
resident = []
for _ in range(10):
    lmp.command(f"run {int(sys.argv[2]) // 10}")
    resident.append(int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20)
print("ROWS", json.dumps(resident), flush=True)
"""


def run(lammps: Lammps, model: Path, small: Path, n_steps: int = STEPS) -> Tally:
    """model: float64, of B N O with the cutoff above; small: one that runs fast."""
    tally = Tally("physics")
    for name, verdict in [
        *dimers(lammps, model),
        *symmetries(lammps, model),
        ("memory", memory(lammps, small, n_steps)),
    ]:
        tally.count(name, Outcome(energy=0.0), verdict)
    return tally


def rows_of(lammps: Lammps, script: str, *arguments: str, timeout: float) -> list:
    finished = lammps.execute([sys.executable, "-c", script, *arguments], timeout)
    assert finished.status == 0, finished.output[-2000:]
    return [
        json.loads(line.removeprefix("ROWS "))
        for line in finished.output.splitlines()
        if line.startswith("ROWS ")
    ]


def dimers(lammps: Lammps, model: Path) -> list[tuple[str, str]]:
    """Every pair, from deep inside the core to beyond the cutoff: the force is the energy's
    derivative, never jumps, and ends there.
    """
    atoms = ase.Atoms("BN", positions=[[5, 5, 5], [6, 5, 5]], cell=[12, 12, 12])
    write_data(lammps.folder / "dimer.data", atoms, ELEMENTS)
    points = np.append(np.arange(0.6, CUTOFF + 0.1, 0.05), [CUTOFF, CUTOFF - H / 2])
    (lammps.folder / "distances.json").write_text(
        json.dumps((points[:, None] + [-H, 0, H]).ravel().tolist())
    )
    pairs = list(itertools.combinations_with_replacement(range(1, len(ELEMENTS) + 1), 2))
    head = HEAD.format(boundary="f f f", data="dimer.data", plugin=lammps.plugin, model=model)
    tables = rows_of(lammps, DIMERS, head, json.dumps(pairs), timeout=300.0)
    assert len(tables) == len(pairs)
    return [
        (f"dimer {ELEMENTS[a - 1]}-{ELEMENTS[b - 1]}", judge_dimer(points, np.array(table)))
        for (a, b), table in zip(pairs, tables, strict=True)
    ]


def judge_dimer(points: np.ndarray, table: np.ndarray) -> str:
    """table [3 n, 2]: energies and forces at each of n points less H, there, and plus H."""
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


def symmetries(lammps: Lammps, model: Path) -> list[tuple[str, str]]:
    """A molecule turned and moved, mirrored, and with its atoms in another order."""
    atoms, rng = molecule(), np.random.default_rng(0)
    turn, order = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.permutation(len(atoms))
    turn *= np.sign(np.linalg.det(turn))
    middle = atoms.positions.mean(0)
    turned, mirrored, permuted = atoms.copy(), atoms.copy(), atoms[order]
    turned.positions = (atoms.positions - middle) @ turn.T + middle + [0.3, -0.2, 0.1]
    mirrored.positions = 2 * middle - atoms.positions
    systems = {"molecule": atoms, "turned": turned, "mirrored": mirrored, "permuted": permuted}
    found = lammps.single_points(systems, str(model), ELEMENTS)
    base, back = found["molecule"], np.argsort(order)
    same = np.arange(len(atoms))
    return [
        ("objectivity", judge_symmetry(base, found["turned"], turn, same)),
        ("inversion", judge_symmetry(base, found["mirrored"], -np.eye(3), same)),
        ("permutation", judge_symmetry(base, found["permuted"], np.eye(3), back)),
    ]


def judge_symmetry(base: Snapshot, other: Snapshot, turn: np.ndarray, rows: np.ndarray) -> str:
    """rows: those of `other` in the order of `base`, whose vectors `turn` takes to those
    of `other`.
    """
    energy = abs(other.energy - base.energy) / max(1.0, abs(base.energy))
    forces = np.abs(other.forces[rows] - base.forces @ turn.T).max() / np.abs(base.forces).max()
    std = (
        np.abs(other.columns["f_std"][rows] - base.columns["f_std"]).max()
        / base.columns["f_std"].max()
    )
    return (
        ""
        if max(energy, forces, std) < 1e-9
        else f"energy off by {energy:.1e}, forces {forces:.1e}, their uncertainty {std:.1e}"
    )


def memory(lammps: Lammps, model: Path, n_steps: int) -> str:
    """Dynamics with uncertainties on every tenth step takes no more memory at its end than
    after a tenth of it.
    """
    write_data(lammps.folder / "long.data", boron_nitride((1, 1, 1)), ELEMENTS)
    head = HEAD.format(boundary="p p p", data="long.data", plugin=lammps.plugin, model=model)
    head += (
        "compute u all race/atom force/cov\ncompute s all reduce max c_u[1]\nthermo_style "
        "custom step pe c_s\nthermo 10\n"
    )
    head += "velocity all create 50 3\ntimestep 0.0001\nfix n all nvt temp 50 50 0.01\n"
    (resident,) = rows_of(lammps, LONG, head, str(n_steps), timeout=900.0)
    taken = resident[-1] - resident[0]
    return "" if taken < LEAK else f"{taken:.2f} MiB in {n_steps * 9 // 10} steps: {resident}"
