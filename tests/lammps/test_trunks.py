"""Readouts on a shared trunk: what LAMMPS computes with them is what it computes with every
member in full.
"""

import numpy as np
import pytest

from race.deploy.artifact import read_metadata
from race.deploy.export import export_model
from tests.deploy.conftest import readouts_on, unshared

from .conftest import ELEMENTS, small_model
from .systems import b2o3


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Artifacts of one model of four members on one trunk, and with a trunk of each
    member's own.
    """
    folder, model = tmp_path_factory.mktemp("trunks"), readouts_on(small_model(n_members=1), 4)
    for name, each in (("shared", model), ("tiled", unshared(model))):
        export_model(each, folder / f"{name}.race.pt")
    assert [
        read_metadata(folder / f"{name}.race.pt")[0]["n_trunks"] for name in ("shared", "tiled")
    ] == [1, 4]
    return folder / "shared.race.pt", folder / "tiled.race.pt"


@pytest.mark.parametrize("ranks", [1, 2])
def test_shared_is_tiled(lammps_run, paths, ranks):
    shared, tiled = (
        lammps_run.single_point(b2o3(), f"{path}", ELEMENTS, ranks=ranks) for path in paths
    )
    for name in (
        "energy",
        "forces",
        "virial",
        "atom_energy",
        "atom_virial",
        "energy_std",
        "max_force_std",
        "stress_std",
    ):
        want = np.asarray(getattr(tiled, name))
        np.testing.assert_allclose(
            getattr(shared, name),
            want,
            rtol=0,
            atol=1e-10 * max(1.0, np.abs(want).max()),
            err_msg=name,
        )
    for name, want in tiled.columns.items():
        assert np.abs(want).max() > 0, name
        np.testing.assert_allclose(
            shared.columns[name],
            want,
            rtol=0,
            atol=1e-10 * max(1.0, np.abs(want).max()),
            err_msg=name,
        )
