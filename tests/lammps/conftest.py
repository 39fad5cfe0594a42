"""One plugin and one set of small untrained artifacts for the session; a folder and a runner
for each test.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import race._race
import torch

from race.config import ModelConfig
from race.data.graph import Batch
from race.deploy.export import alone, export_model
from race.model.race import RACE

from .harness import Lammps

ROOT = Path(__file__).parents[2]
ELEMENTS = ["B", "N", "O"]


@pytest.fixture(scope="session")
def plugin() -> Path:
    """RACE_PLUGIN, else the one installed beside race._race, else built from this tree."""
    if "RACE_PLUGIN" in os.environ:
        return Path(os.environ["RACE_PLUGIN"]).resolve()
    installed = Path(race._race.__file__).parent / "raceplugin.so"
    if installed.exists():
        return installed
    build = ROOT / "build" / "plugin"
    options = ["-DRACE_LAMMPS=ON", "-DRACE_PYTHON=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    build.mkdir(parents=True, exist_ok=True)
    with open(build / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of pytest-xdist start together
        subprocess.run(["cmake", "-S", ROOT, "-B", build, *options], check=True)
        subprocess.run(["cmake", "--build", build, "--target", "raceplugin", "-j", "2"], check=True)
    return build / "lammps_plugin" / "raceplugin.so"


@pytest.fixture
def lammps_run(plugin, tmp_path) -> Lammps:
    return Lammps(plugin, tmp_path)


def small_model(**changes) -> RACE:
    """Untrained: every sum a trained model has, in random proportion. Odd widths, so that
    float32 rows do not fill whole doubles.
    """
    options = dict(
        elements=ELEMENTS,
        r_max=3.2,
        n_layers=3,
        irreps_hidden="7x0e+3x0o+5x1o+3x1e+3x2e",
        lmax=2,
        n_features=8,
        radial_mlp=[16],
        radial_knots=384,
        readout_hidden=16,
        avg_num_neighbors=12.0,
        n_members=3,
        head="equivariant",
        sigma0=0.1,
        atomic_energies=[-3.0, 2.0, -1.0],
        scale=[0.3, 0.5, 0.4],
    )
    torch.manual_seed(7)
    return RACE.untrained(ModelConfig(**{**options, **changes}), torch.float64)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """artifacts(name, calibration=None, training=None, training_set=None, leaders=False,
    **changes of ModelConfig) -> path, exported once. training: what the summary says of the
    training set; training_set: its graphs, for the grade; leaders: each member alone, too.
    """
    folder = tmp_path_factory.mktemp("artifacts")

    def export(
        name: str,
        calibration: dict[str, float] | None = None,
        training: dict | None = None,
        training_set: Iterable[Batch] = (),
        leaders: bool = False,
        **changes,
    ) -> Path:
        path = folder / f"{name}.race.pt"
        if not path.exists():
            model = small_model(**changes)
            export_model(
                model,
                path,
                calibration=calibration,
                summary={"training": training or {}},
                training_set=training_set,
                leaders=alone(model) if leaders else None,
            )
        return path

    return export


@pytest.fixture(scope="session")
def artifact(artifacts) -> Path:
    """float64, three members, head equivariant, calibrated."""
    return artifacts("ensemble", calibration={"force_std_scale": 1.3})
