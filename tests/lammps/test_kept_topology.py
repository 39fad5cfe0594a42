"""Edges that are kept as long as LAMMPS's neighbour list, as pair_style race keeps them on a
GPU: every step against the calculator, which makes its own at each.
"""

from pathlib import Path

import numpy as np
import pytest

from .harness import Lammps, thermo, write_data
from .systems import b2o3, boron_nitride, crystal, molecule, pore
from .trajectory import assert_right, trajectory

# Rebuilt every few steps of hot atoms, and not at most of them
HOT = "velocity all create 3000 11 loop geom\nneighbor 0.25 bin\nneigh_modify delay 0 every 1"


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    monkeypatch.setenv("RACE_KEEP_TOPOLOGY", "1")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("make", [b2o3, crystal, pore, molecule])
def test_dynamics(lammps_run, artifact, make, ranks):
    commands = f"{HOT}\nfix 1 all nve\nrun 24"
    frames = trajectory(lammps_run, artifact, make(), commands, ranks=ranks, every=3)
    assert_right(frames, artifact, 9)


def test_rebuilt_and_kept(lammps_run, artifact):
    """Of the dynamics above: some steps have a new list, most do not."""
    write_data(lammps_run.folder / "system.data", crystal(), ["B", "N", "O"])
    finished = lammps_run.run(
        f"units metal\natom_style atomic\natom_modify map yes\nread_data system.data\n"
        f"plugin load {lammps_run.plugin}\npair_style race {artifact}\npair_coeff * * B N O\n"
        f"timestep 0.0005\n{HOT}\nfix 1 all nve\nrun 24"
    )
    (line,) = (x for x in finished.output.splitlines() if x.startswith("Neighbor list builds"))
    assert 2 <= int(line.split("=")[1]) <= 12, finished.output


def species_change(run: Lammps, artifact: Path) -> None:
    """`set` between parts of a run that no setup separates; without ghosts, which `set` does
    not tell.
    """
    commands = (
        "run 0\nfix 1 all nve\nneighbor 1.0 bin\nneigh_modify delay 1000\n"
        'run 4 pre no every 1 "set atom 3*5 type 3" "set atom 1 type 2"'
    )
    frames = trajectory(run, artifact, molecule(), commands, ranks=1, every=1)
    assert_right(frames, artifact, 5)
    kinds = [str(frame.atoms.symbols).count("O") for frame in frames]
    assert kinds[0] == kinds[1] == 0 < kinds[2]


def test_species_change_without_a_new_list(lammps_run, artifact):
    species_change(lammps_run, artifact)


def test_species_change_that_one_rank_sees(lammps_run, artifact):
    """Of a rod, one rank sees neither the changed atom nor a ghost of it. Yet both must find
    the readers of ghosts anew: they tell each other.
    """
    rod = boron_nitride((1, 1, 12), seed=5)
    rod.pbc = False
    height = rod.positions[:, 2] - rod.positions[:, 2].min()
    changed = 1 + int(np.argmin(abs(height - height.max() / 4)))
    commands = (
        "run 0\nfix 1 all nve\nneighbor 0.5 bin\nneigh_modify delay 1000\n"
        f'run 4 pre no every 1 "set atom {changed} type 3"'
    )
    frames = trajectory(lammps_run, artifact, rod, commands, ranks=2, every=1, grid="1 1 2")
    assert_right(frames, artifact, 5)
    assert frames[-1].atoms.get_chemical_symbols().count("O") == 1


def test_two_atoms_at_one_place(lammps_run, artifact):
    """Edges that are kept do not tell; the energy does."""
    x, y, z = molecule().positions[0]
    nearest = 1 + int(np.argsort(molecule().get_distances(0, slice(None)))[1])
    write_data(lammps_run.folder / "system.data", molecule(), ["B", "N", "O"])
    finished = lammps_run.run(
        f"units metal\natom_style atomic\natom_modify map yes\nboundary s s s\n"
        f"read_data system.data\nplugin load {lammps_run.plugin}\npair_style race {artifact}\n"
        f"pair_coeff * * B N O\nneighbor 1.0 bin\nneigh_modify delay 1000\nrun 1\n"
        f'run 2 pre no every 1 "set atom {nearest} x {x:.17g} y {y:.17g} z {z:.17g}"'
    )
    (line,) = finished.errors()
    assert "are at the same place" in line and f" {nearest} " in line, line


SWAPS = """
fix 1 all nve
fix 2 all atom/swap 4 6 29494 6000 ke no types 1 2
thermo_style custom step pe f_2[1] f_2[2]
thermo_modify format float %.17g
thermo 4
timestep 0.0005
run 16
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_swaps(lammps_run, artifact, ranks, monkeypatch):
    """Energies of trial structures decide: as many swaps are accepted."""
    write_data(lammps_run.folder / "system.data", boron_nitride(), ["B", "N", "O"])
    start = (
        "units metal\natom_style atomic\natom_modify map yes\nread_data system.data\n"
        f"plugin load {lammps_run.plugin}\npair_style race {artifact}\npair_coeff * * B N O\n{HOT}"
    )
    rows = []
    for kept in "10":
        monkeypatch.setenv("RACE_KEEP_TOPOLOGY", kept)
        finished = lammps_run.run(f"{start}{SWAPS}", ranks)
        assert finished.status == 0, finished.output
        rows.append([list(row.values()) for row in thermo(finished.output)])
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-9)
    assert 0 < rows[0][-1][3] < rows[0][-1][2]  # some are accepted, not all


@pytest.mark.parametrize("ranks", [1, 2])
def test_atoms_are_moved_between_runs(lammps_run, artifact, ranks):
    """Every run makes a new list, at the same step and with as many edges."""
    commands = "displace_atoms all random 0.3 0.3 0.3 8 units box\nrun 0 post no\n" * 3
    frames = trajectory(
        lammps_run,
        artifact,
        boron_nitride(),
        f"undump all\nrun 0\n{commands}dump all all custom 1 system.dump id type x y z fx fy fz "
        "c_cov[*]\ndump_modify all sort id format float %.17g\nfix 1 all nve\nrun 1",
        ranks=ranks,
        every=1,
    )
    assert_right(frames, artifact, 2)


def test_box_and_minimiser(lammps_run, artifact):
    commands = f"{HOT}\nfix 1 all npt temp 900 900 0.02 iso 0 0 0.2\nrun 12\nunfix 1"
    frames = trajectory(lammps_run, artifact, boron_nitride(), commands, every=4)
    assert_right(frames, artifact, 4)
