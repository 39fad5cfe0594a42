"""LAMMPS on the GPU, against the CPU: one rank, several on one GPU, a rank without atoms, NVE."""

import numpy as np
import pytest

from race.deploy.export import export_model
from tests.lammps.conftest import ELEMENTS, small_model
from tests.lammps.systems import b2o3, boron_nitride, slab, tiny
from tests.lammps.test_dynamics import drift

from .conftest import DEVICE
from .test_model import TOLERANCE, assert_close


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_lammps(dtype, lammps_run):
    export_model(small_model(), lammps_run.folder / "model.race.pt")
    systems = {"b2o3": b2o3(), "bn": boron_nitride(), "tiny": tiny(), "slab": slab()}
    expected = lammps_run.single_points(systems, "model.race.pt dtype float64", ELEMENTS)
    found = lammps_run.single_points(
        systems, f"model.race.pt device {DEVICE} dtype {dtype}", ELEMENTS
    )
    for name in systems:
        assert np.abs(expected[name].forces).max() > 0.5
        for field in (
            "energy",
            "forces",
            "virial",
            "atom_energy",
            "atom_virial",
        ):
            assert_close(
                getattr(found[name], field),
                getattr(expected[name], field),
                dtype,
                f"{name} {field}",
            )
        for field, values in expected[name].columns.items():
            assert_close(found[name].columns[field], values, dtype, f"{name} {field}")


def test_two_lammps_ranks_on_one_gpu(lammps_run):
    """Ghost features through the host: the exchange that several ranks use."""
    export_model(small_model(), lammps_run.folder / "model.race.pt")
    one = lammps_run.single_point(b2o3(), f"model.race.pt device {DEVICE} dtype float64", ELEMENTS)
    two = lammps_run.single_point(
        b2o3(), f"model.race.pt device {DEVICE} dtype float64", ELEMENTS, ranks=2, grid="2 1 1"
    )
    np.testing.assert_allclose(two.forces, one.forces, rtol=0, atol=1e-9)


def test_an_empty_rank(lammps_run):
    """Of eight slices of the slab and its vacuum, most hold no atom."""
    export_model(small_model(), lammps_run.folder / "model.race.pt")
    model = f"model.race.pt device {DEVICE} dtype float64"
    one = lammps_run.single_point(slab(), model, ELEMENTS)
    several = lammps_run.single_point(slab(), model, ELEMENTS, ranks=4, grid="4 1 1")
    assert np.abs(one.forces).max() > 0.5
    np.testing.assert_allclose(several.forces, one.forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(several.virial, one.virial, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype, most", [("float64", 0.01), ("float32", 0.05)])
def test_energy_is_conserved(dtype, most, lammps_run):
    """The drift of NVE, in meV/atom/ps, of a soft model."""
    soft = small_model(n_members=1, head="point", n_layers=2, scale=[0.02, 0.02, 0.02])
    export_model(soft, lammps_run.folder / "model.race.pt")
    model = f"model.race.pt device {DEVICE} dtype {dtype}"
    slope, _ = drift(lammps_run, model, steps=800, timestep=0.0005)
    assert slope <= most, f"{slope:.4f} meV/atom/ps"
