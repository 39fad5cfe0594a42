"""Runs dynamics or minimisation in LAMMPS and holds every dumped frame against the ASE
calculator, whatever else the input does.
"""

from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np

import race
from race.conventions import SIX_TO_VOIGT, six_from_matrix

from .conftest import ELEMENTS
from .harness import NKTV2P, Lammps, boundary, read_dump, thermo, write_data

INPUT = """
units metal
atom_style {style}
atom_modify map yes
processors {grid}
{setup}
boundary {boundary}
{read}
plugin load {plugin}
{pair}
compute virial all pressure NULL virial
compute cov all race/atom force/cov
thermo_style custom step pe vol lx ly lz xy xz yz c_virial[*]
thermo_modify format float %.17g norm no lost error
thermo {every}
dump all all custom {every} {name}.dump id type x y z fx fy fz c_cov[*]
dump_modify all sort id format float %.17g
timestep 0.0005
{commands}
"""


@dataclass
class Frame:
    """What LAMMPS says of one step, in eV and Angstrom."""

    atoms: ase.Atoms
    energy: float
    forces: np.ndarray  # [n, 3]
    virial: np.ndarray  # [6]
    f_cov: np.ndarray  # [n, 6]


def trajectory(
    run: Lammps,
    artifact: Path,
    atoms: ase.Atoms,
    commands: str,
    *,
    ranks: int = 2,
    every: int = 5,
    types: list[str] = ELEMENTS,
    pair: str = "",
    setup: str = "",
    grid: str = "* * *",
    limits: str = "",
    style: str = "atomic",
    model: str = "",
    name: str = "system",
    read: str = "",
    timeout: float = 120.0,
) -> list[Frame]:
    """Frames of every `every`-th step of `commands` (which hold the run or minimize); those
    without periodicity have a vacuum cell.
    """
    read = read or f"read_data {name}.data"
    if read.startswith("read_data"):
        write_data(run.folder / f"{name}.data", atoms, types)
    pair = pair or f"pair_style race {artifact} {model}\npair_coeff * * {' '.join(types)}"
    limits = limits or boundary(atoms)
    text = INPUT.format(
        style=style,
        grid=grid,
        setup=setup,
        boundary=limits,
        read=read,
        plugin=run.plugin,
        pair=pair,
        every=every,
        name=name,
        commands=commands,
    )
    finished = run.run(text, ranks, timeout=timeout)
    assert finished.status == 0 and not finished.hung, finished.output
    # A second run repeats the last step of the first
    rows = list({row["Step"]: row for row in thermo(finished.output)}.values())
    frames = read_dump(run.folder / f"{name}.dump")
    assert len(rows) == len(frames), finished.output
    return [
        _frame(row, frame, types, "p" in limits) for row, frame in zip(rows, frames, strict=True)
    ]


def _frame(
    row: dict[str, float], frame: dict[str, np.ndarray], types: list[str], periodic: bool
) -> Frame:
    columns = {
        name: np.stack([frame[name.format(k)] for k in range(1, 7)], axis=1)
        for name in ("c_cov[{}]",)
    }
    cell = [[row["Lx"], 0, 0], [row["Xy"], row["Ly"], 0], [row["Xz"], row["Yz"], row["Lz"]]]
    atoms = ase.Atoms(
        [types[int(t) - 1] for t in frame["type"]],
        positions=np.stack([frame[a] for a in "xyz"], axis=1),
        cell=cell,
        pbc=periodic,
    )
    return Frame(
        atoms=atoms,
        energy=row["PotEng"],
        forces=np.stack([frame[a] for a in ("fx", "fy", "fz")], axis=1),
        virial=np.array([row[f"c_virial[{k}]"] for k in range(1, 7)]) * row["Volume"] / NKTV2P,
        f_cov=columns["c_cov[{}]"],
    )


def assert_right(
    frames: list[Frame], artifact: Path, n_frames: int, *, tolerance: float = 1e-9
) -> None:
    """Every frame has the calculator's energy, forces, virial and covariances: eV, eV/A,
    eV, (eV/A)^2.
    """
    assert len(frames) == n_frames
    calculator = race.Calculator(artifact, uncertainty=True)
    for k, frame in enumerate(frames):
        calculator.calculate(frame.atoms)
        found = calculator.results
        expected = {
            "energy": found["energy"],
            "forces": found["forces"],
            "f_cov": six_from_matrix(found["forces_cov"]),
        }
        if frame.atoms.pbc.all():
            expected["virial"] = -found["stress"][list(SIX_TO_VOIGT)] * frame.atoms.get_volume()
        assert np.abs(found["forces"]).max() > 0.05  # eV/A: there is something to compare
        for name, value in expected.items():
            difference = np.max(np.abs(getattr(frame, name) - value))
            assert difference <= tolerance, (
                f"frame {k}: {name} differs by {difference:.2e}, allowed {tolerance:.0e}"
            )
