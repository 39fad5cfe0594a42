"""Runs of random weights and pools to choose from."""

from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from race.config import DataConfig, ModelConfig, ModelConstants, RunConfig, TrainConfig
from race.model.race import RACE
from race.train.run import write_config, write_summary


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def boron_nitride(seed: int, amplitude: float = 0.1) -> ase.Atoms:
    atoms = ase.build.bulk("BN", "zincblende", a=3.6, cubic=True)
    atoms.rattle(amplitude, seed=seed)
    return atoms


def write_run(run: Path, **changes) -> Path:
    """A folder as `race train` leaves it, with random weights."""
    options = dict(
        elements=["B", "N"],
        r_max=3.0,
        n_layers=2,
        irreps_hidden="4x0e+4x1o+4x2e",
        n_features=4,
        radial_mlp=[8],
        readout_hidden=8,
        n_members=3,
        sigma0=0.3,
        avg_num_neighbors=8.0,
        atomic_energies=[-3.0, -4.0],
        scale=[0.5, 0.4],
    )
    model = ModelConfig(**{**options, **changes})
    run.mkdir()
    write_config(
        run,
        RunConfig(
            data=DataConfig(train=[Path("none.extxyz")]),
            model=model,
            constants=ModelConstants.given(model),
            train=TrainConfig(loss="mse", dtype="float64"),
        ),
    )
    torch.manual_seed(5)
    save_file(
        {
            name: p.detach().contiguous()
            for name, p in RACE.untrained(model, torch.float64).named_parameters()
        },
        run / "model.safetensors",
    )
    write_summary(run, {})
    return run


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """Three members with the head `equivariant`."""
    return write_run(tmp_path_factory.mktemp("runs") / "ensemble")


@pytest.fixture(scope="session")
def pool(tmp_path_factory) -> Path:
    """Twelve cells, ever more rattled; labelled, with info of their own; frame 7 is a
    copy of frame 3.
    """
    path = tmp_path_factory.mktemp("pool") / "pool.extxyz"
    frames = [boron_nitride(k, 0.03 * (k + 1)) for k in range(12)]
    frames[7] = frames[3].copy()
    rng = np.random.default_rng(0)
    for k, atoms in enumerate(frames):
        atoms.info |= {"origin": f"run {k}", "temperature": 300.0 + k}
        atoms.arrays["site_value"] = rng.normal(size=len(atoms)).round(6)
        atoms.info["energy"] = float(k)
        atoms.arrays["forces"] = rng.normal(size=(len(atoms), 3)).round(6)
    ase.io.write(path, frames)
    return path
