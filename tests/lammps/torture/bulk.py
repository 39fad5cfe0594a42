"""A molecule and a crystal in LAMMPS: symmetries, sums, derivatives by finite differences, Python,
and dynamics that conserves its energy.
"""

from collections.abc import Iterator

import ase
import numpy as np

import race
from race.conventions import SIX_COLUMNS, SIX_ROWS, SIX_TO_VOIGT

from ..conftest import ELEMENTS
from ..harness import Lammps, Snapshot, thermo, write_data
from ..systems import boron_nitride, molecule
from .pairs import HEAD
from .subjects import Kind, Subject

COLUMNS = ("force/std", "energy/std")  # what every model has
H = 1e-5  # Angstrom, and of a strain
REPEATS = (2, 1, 1)
MD = """
variable soft equal 0.05
fix soft all adapt 0 pair race scale * * v_soft
velocity all create 30 7 loop geom
fix nve all nve
timestep {timestep}
thermo_style custom step time etotal
thermo {every}
run {steps}
"""
STEP = 0.0005  # ps
N_STEPS = 800


def names(kind: Kind) -> list[str]:
    derivatives = ["gradient", "stress"] if kind.exact else []
    return [
        *("objectivity", "inversion", "permutation", "translation", "supercell", "sums", "Python"),
        *derivatives,
        *("drift", "order of the integrator"),
    ]


def checks(lammps: Lammps, model: Subject) -> Iterator[tuple[str, str]]:
    """Names and verdicts."""
    exact, tolerance = model.kind.exact, model.kind.tolerance
    cluster, crystal, rng = molecule(), boron_nitride((2, 1, 1)), np.random.default_rng(0)
    turn, order = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.permutation(len(cluster))
    turn *= np.sign(np.linalg.det(turn))
    middle = cluster.positions.mean(0)
    turned, mirrored, permuted = cluster.copy(), cluster.copy(), cluster[order]
    turned.positions = (cluster.positions - middle) @ turn.T + middle + [0.3, -0.2, 0.1]
    mirrored.positions = 2 * middle - cluster.positions
    moved = crystal.copy()
    moved.positions += [0.7, -1.1, 0.4]
    moved.wrap()
    directions = rng.normal(size=(3, len(crystal), 3))
    systems = {
        "molecule": cluster,
        "turned": turned,
        "mirrored": mirrored,
        "permuted": permuted,
        "crystal": crystal,
        "moved": moved,
        "supercell": crystal.repeat(REPEATS),
        **(dict(displaced(crystal, directions)) | dict(strained(crystal)) if exact else {}),
    }
    found = lammps.single_points(systems, model.pair, ELEMENTS, columns=COLUMNS)
    base, bulk, same = found["molecule"], found["crystal"], np.arange(len(cluster))
    still, everyone = np.eye(3), np.arange(len(crystal))
    yield (
        "objectivity",
        judge_symmetry(base, found["turned"], turn, same, tolerance, model.kind.turns),
    )
    yield "inversion", judge_symmetry(base, found["mirrored"], -still, same, tolerance)
    yield (
        "permutation",
        judge_symmetry(base, found["permuted"], still, np.argsort(order), tolerance),
    )
    yield "translation", judge_symmetry(bulk, found["moved"], still, everyone, tolerance)
    yield "supercell", judge_supercell(bulk, found["supercell"], np.prod(REPEATS), tolerance)
    yield "sums", judge_sums(bulk, base, cluster, tolerance)
    yield "Python", judge_python(bulk, crystal, model.calculator(), tolerance)
    if exact:
        yield "gradient", judge_gradient(bulk, found, directions)
        yield "stress", judge_stress(bulk, found)
    yield from dynamics(lammps, model.pair, crystal)


def dynamics(lammps: Lammps, pair: str, atoms: ase.Atoms) -> Iterator[tuple[str, str]]:
    fine, coarse = (energies(lammps, pair, atoms, factor) for factor in (1, 2))
    yield "drift", judge_drift(*fine)
    yield "order of the integrator", judge_order(fine, coarse)


def displaced(atoms: ase.Atoms, directions: np.ndarray) -> Iterator[tuple[str, ase.Atoms]]:
    for k, direction in enumerate(directions):
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions += sign * H * direction
            yield f"displaced_{k}_{sign}", moved


def strained(atoms: ase.Atoms) -> Iterator[tuple[str, ase.Atoms]]:
    """Along each component of the virial; cells stay lower triangular."""
    for k, (a, b) in enumerate(zip(SIX_ROWS, SIX_COLUMNS, strict=True)):
        for sign in (-1, 1):
            strain = np.eye(3)
            strain[max(a, b), min(a, b)] += sign * H
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            yield f"strained_{k}_{sign}", moved


def worst(**off: float) -> str:
    return ", ".join(f"{name} off by {value:.1e}" for name, value in off.items())


def largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def judge_symmetry(
    base: Snapshot,
    other: Snapshot,
    turn: np.ndarray,
    rows: np.ndarray,
    tolerance: float = 1e-9,
    uncertain: bool = True,
) -> str:
    """rows: those of `other` in the order of `base`, whose vectors `turn` takes to those
    of `other`.
    """
    off = {
        "energy": abs(other.energy - base.energy) / max(1.0, abs(base.energy)),
        "forces": largest(other.forces[rows] - base.forces @ turn.T) / largest(base.forces),
    }
    if uncertain:
        std = base.columns["f_std"]
        off["their uncertainty"] = largest(other.columns["f_std"][rows] - std) / largest(std)
    return "" if max(off.values()) < tolerance else worst(**off)


def judge_supercell(base: Snapshot, whole: Snapshot, n: int, tolerance: float) -> str:
    """n times the energy and the virial, and of each image the forces of its atom."""
    image = np.arange(n * len(base.forces)) % len(base.forces)
    off = {
        "energy": abs(whole.energy / n - base.energy) / max(1.0, abs(base.energy)),
        "forces": largest(whole.forces - base.forces[image]) / largest(base.forces),
        "virial": largest(whole.virial / n - base.virial) / largest(base.virial),
    }
    return "" if max(off.values()) < tolerance else worst(**off)


def judge_sums(bulk: Snapshot, base: Snapshot, cluster: ase.Atoms, tolerance: float) -> str:
    """Atoms' energies and virials add up to those of the system; forces to nothing, and in a
    cluster so do their moments.
    """
    scale = largest(base.forces)
    off = {
        "energy": abs(bulk.atom_energy.sum() - bulk.energy) / max(1.0, abs(bulk.energy)),
        "virial": largest(bulk.atom_virial.sum(0) - bulk.virial) / largest(bulk.virial),
        "force": max(largest(each.forces.sum(0)) for each in (bulk, base)) / scale,
        "moment": largest(np.cross(cluster.positions, base.forces).sum(0)) / scale,
    }
    return "" if max(off.values()) < 10 * tolerance else worst(**off)


def judge_python(
    found: Snapshot, atoms: ase.Atoms, calculator: race.Calculator, tolerance: float
) -> str:
    calculator.calculate(atoms, ("forces_std",))
    want = calculator.results
    virial = -want["stress"][list(SIX_TO_VOIGT)] * atoms.get_volume()
    pairs = {
        "energy": (found.energy, want["energy"]),
        "forces": (found.forces, want["forces"]),
        "virial": (found.virial, virial),
        "energies of atoms": (found.atom_energy, want["energies"]),
        "uncertainty": (found.columns["f_std"], np.sqrt((want["forces_std"] ** 2).mean(1))),
        "uncertainty of the energy": (found.energy_std, want["energy_std"]),
    }
    off = {
        name: largest(np.asarray(a - b)) / max(1.0, largest(np.asarray(b)))
        for name, (a, b) in pairs.items()
    }
    return "" if max(off.values()) < tolerance else worst(**off)


def slopes(found: dict[str, Snapshot], name: str, n: int) -> np.ndarray:
    energy = np.array([[found[f"{name}_{k}_{sign}"].energy for sign in (-1, 1)] for k in range(n)])
    return (energy[:, 1] - energy[:, 0]) / (2 * H)


def judge_gradient(base: Snapshot, found: dict[str, Snapshot], directions: np.ndarray) -> str:
    """Forces are minus the energy's derivative along each direction."""
    exact = -np.einsum("kna,na->k", directions, base.forces)
    off = largest(slopes(found, "displaced", len(directions)) - exact) / largest(exact)
    return "" if off < 1e-6 else worst(forces=off)


def judge_stress(base: Snapshot, found: dict[str, Snapshot]) -> str:
    """The virial is minus the energy's derivative along each strain."""
    off = largest(slopes(found, "strained", 6) + base.virial) / largest(base.virial)
    return "" if off < 1e-6 else worst(virial=off)


def energies(
    lammps: Lammps, pair: str, atoms: ase.Atoms, factor: int
) -> tuple[np.ndarray, np.ndarray]:
    """Times in ps and total energies in meV/atom of a crystal at 30 K, with `factor` times the
    step for the same time. The model is softened and the crystal cold: no atom leaves its site.
    """
    write_data(lammps.folder / "md.data", atoms, ELEMENTS)
    head = HEAD.format(boundary="p p p", data="md.data", plugin=lammps.plugin, pair=pair)
    steps = N_STEPS // factor
    script = head + MD.format(timestep=factor * STEP, steps=steps, every=steps // 80)
    finished = lammps.run(script, timeout=300.0)
    assert finished.status == 0 and not finished.hung, finished.output
    rows = thermo(finished.output)
    time, energy = (np.array([row[name] for row in rows]) for name in ("Time", "TotEng"))
    return time, 1000 * (energy - energy[0]) / len(atoms)


def trend(time: np.ndarray, energy: np.ndarray) -> tuple[float, float]:
    """Slope in meV/atom/ps, and root-mean-square fluctuation around it in meV/atom."""
    slope, offset = np.polyfit(time, energy, 1)
    return abs(float(slope)), float(np.std(energy - slope * time - offset))


def judge_drift(time: np.ndarray, energy: np.ndarray) -> str:
    slope, fluctuation = trend(time, energy)
    return "" if slope < 0.002 else f"drift of {slope:.1e} meV/atom/ps, around it {fluctuation:.1e}"


def judge_order(fine: tuple[np.ndarray, np.ndarray], coarse: tuple[np.ndarray, np.ndarray]) -> str:
    """Fluctuations fall with the square of the time step: nothing but the integrator makes them."""
    ratio = trend(*coarse)[1] / trend(*fine)[1]
    return "" if abs(ratio - 4) < 0.1 else f"twice the step, {ratio:.2f} times the fluctuation"
