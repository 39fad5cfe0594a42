"""`newton off`: forces and virials that stand on ghosts are the pair style's to bring home,
and those of `newton on`.
"""

import pytest

from .compare import as_dict, assert_close, from_python
from .conftest import ELEMENTS
from .harness import Lammps
from .systems import b2o3, slab, tiny
from .test_features import NVE, VELOCITIES
from .trajectory import assert_right, trajectory

SYSTEMS = {"b2o3": b2o3, "tiny": tiny, "slab": slab}
GRIDS = {1: "1 1 1", 2: "1 2 1", 4: "4 1 1"}  # the slab leaves two of four ranks empty


@pytest.fixture(scope="module")
def newton_on(plugin, artifact, tmp_path_factory):
    run = Lammps(plugin, tmp_path_factory.mktemp("newton_on"))
    found = run.single_points(
        {name: make() for name, make in SYSTEMS.items()}, f"{artifact}", ELEMENTS
    )
    return {name: as_dict(snapshot) for name, snapshot in found.items()}


@pytest.mark.parametrize("ranks", GRIDS)
@pytest.mark.parametrize("newton", ["off", "off on", "on off"])
def test_newton_settings_agree(lammps_run, artifact, newton_on, newton, ranks):
    """Pairs and bonds apart: with `off on` LAMMPS sends forces on ghosts home, with `off`
    it does not.
    """
    systems = {name: make() for name, make in SYSTEMS.items()}
    found = lammps_run.single_points(
        systems, f"{artifact}", ELEMENTS, ranks=ranks, grid=GRIDS[ranks], setup=f"newton {newton}"
    )
    for name in systems:
        assert_close(
            as_dict(found[name]), newton_on[name], 1e-10, f"{name}, newton {newton}, {ranks} ranks"
        )


def test_newton_off_in_float32(lammps_run, artifact, newton_on):
    """Features travel as float32, forces as float64: their messages differ in width."""
    found = lammps_run.single_point(
        b2o3(), f"{artifact} dtype float32", ELEMENTS, ranks=2, setup="newton off"
    )
    assert_close(as_dict(found), newton_on["b2o3"], 5e-4, "b2o3")


def test_newton_off_with_one_layer(lammps_run, artifacts):
    """No features are exchanged: the forces' own exchange is the only one."""
    model = artifacts("newton_one_layer", n_members=2, n_layers=1)
    found = lammps_run.single_point(b2o3(), f"{model}", ELEMENTS, ranks=2, setup="newton off")
    assert_close(as_dict(found), from_python(b2o3(), model, "float64"), 1e-9, "b2o3")


CASES = {
    "nve": (b2o3, NVE, {"ranks": 1}),
    "npt": (
        b2o3,
        VELOCITIES + "fix npt all npt temp 600 600 0.05 tri 0 20000 0.1\nrun 10",
        {"ranks": 4},
    ),
    "balance rcb": (
        slab,
        VELOCITIES + "fix nve all nve\nfix b all balance 2 1.0 rcb\nrun 10",
        {"ranks": 4, "setup": "comm_style tiled"},
    ),
    "respa": (b2o3, VELOCITIES + "fix nve all nve\nrun_style respa 2 2 bond 1 pair 2\nrun 10", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_dynamics(lammps_run, artifact, name):
    make, commands, options = CASES[name]
    setup = "newton off\n" + options.pop("setup", "")
    frames = trajectory(lammps_run, artifact, make(), commands, setup=setup, **options)
    assert_right(frames, artifact, 3)


def test_held_uncertainty(lammps_run, artifact):
    frames = trajectory(
        lammps_run, artifact, b2o3(), NVE, setup="newton off", model="uq every 5", ranks=2
    )
    assert_right(frames, artifact, 3)
