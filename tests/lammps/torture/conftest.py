"""A model that loads and runs as fast as one can: cases are many."""

from pathlib import Path

import pytest

SMALL = dict(
    n_layers=2,
    n_members=2,
    irreps_hidden="4x0e+2x1o+2x2e",
    n_features=4,
    radial_mlp=[8],
    readout_hidden=4,
    radial_knots=16,
)
TRAINING = {
    "cutoff": 3.2,
    "min_distance": {"B-B": 2.0, "B-N": 1.2, "N-N": 2.0},
    "n_neighbors": {"B": [8, 40], "N": [8, 40]},
}


@pytest.fixture(scope="session")
def small_artifact(artifacts) -> Path:
    return artifacts("small", calibration={"force_std_scale": 1.3}, training=TRAINING, **SMALL)
