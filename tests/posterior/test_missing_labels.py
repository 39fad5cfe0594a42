"""Frames with energies only, with forces only, and atoms without a force: no posterior fails on
them, and none has NaN from them.
"""

import ase.io
import numpy as np
import pytest
import torch

from race.config import Config
from race.posterior.fit import fit
from race.train.run import load_run
from race.train.training import train
from tests.posterior.conftest import CASES, LOSS, MODEL
from tests.train.conftest import labelled


def holed(seed):
    """Of four frames one has no energy, one no forces, and one a force less."""
    atoms = labelled(seed)
    results = atoms.calc.results
    if seed % 4 == 1:
        del results["energy"]
        results.pop("free_energy", None)
    elif seed % 4 == 2:
        del results["forces"]
    elif seed % 4 == 3:
        results["forces"] = results["forces"].copy()
        results["forces"][1] = np.nan
    return atoms


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("holed")
    ase.io.write(folder / "a.extxyz", [holed(seed) for seed in range(16)])

    def make(head, n_members, seed, batch_size):
        run = folder / f"{head}-{n_members}-{seed}-{batch_size}"
        if not run.exists():
            options = {"epochs": 2, "batch_size": batch_size, "dtype": "float64", "n_threads": 1}
            config = {
                "data": {"train": [str(folder / "a.extxyz")], "validation_fraction": 0.25},
                "model": MODEL | {"head": head, "n_members": n_members},
                "train": options | {"loss": LOSS[head], "seed": seed},
            }
            train(Config.model_validate(config), run)
        return run

    return make


# One frame: some batches without any energy, some without any force; four: holes in both
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_no_posterior_minds(runs, name, batch_size, tmp_path):
    case = CASES[name]
    of = [
        runs(case.head, case.run_members, seed, batch_size)
        for seed in range(case.n_members if case.several else 1)
    ]
    fit(case.posterior, of, tmp_path / "out", case.options)
    model, config, summary = load_run(tmp_path / "out")
    for parameter, p in model.named_parameters():
        assert torch.isfinite(p).all(), parameter
    constants = config.constants
    assert np.isfinite([constants.sigma0, constants.sigma0_energy]).all()
    for key in ("energy_rmse", "forces_rmse"):
        assert np.isfinite(summary["validation"][f"validation/{key}"]), key
