"""Tiny trained runs and the posteriors fitted to them, each made once for the session.

A new posterior is one line of CASES: its name, its options, and how many members come of
it. Everything in test_contract.py then holds it to the contract.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import pytest
import torch

from race.config import Config
from race.posterior.fit import fit
from race.train.training import train
from tests.lammps.conftest import plugin  # noqa: F401  the fixture
from tests.train.conftest import labelled

ELEMENTS = ["Cu", "Au"]
R_MAX = 3.5
MODEL = dict(
    r_max=R_MAX,
    n_layers=2,
    irreps_hidden="4x0e+4x1o+3x1e+4x2e",
    n_features=4,
    radial_mlp=[8],
    readout_hidden=6,
)
LOSS = {
    "point": "mse",
    "energy": "nll_e",
    "cholesky": "nll_jef",
    "equivariant": "nll_jef",
    "evidential": "evidential",
    "eip": "eip",
}


@dataclass(frozen=True)
class Case:
    """A posterior, its options, and the members that come of it; several: it stacks runs of
    several seeds, whose model sections differ as `sizes` says.

    head, run_members: of the run that it is fitted to. n_trunks: of the artifact, where
    members differ in their last readout maps alone.
    """

    posterior: str
    options: dict[str, Any] = field(default_factory=dict)
    n_members: int = 3
    several: bool = False
    sizes: tuple[dict[str, Any], ...] = ({}, {}, {})
    head: str = "equivariant"
    run_members: int = 1
    n_trunks: int | None = None


SHORT = {"members": 3, "epochs": 3}
CASES = {
    "ensemble": Case("ensemble", several=True),
    "ensemble-sizes": Case(
        "ensemble",
        several=True,
        sizes=(
            {},
            {"n_layers": 3, "correlation": 2},
            {"irreps_hidden": "6x0e+2x1o+4x2e+2x3o", "lmax": 3, "readout_hidden": 5},
        ),
    ),
    "swag": Case("swag", SHORT | {"start": 0.5, "every": 0.5, "rank": 3}),
    "ivon": Case("ivon", SHORT),
    "laplace": Case("laplace", {"members": 3}, n_trunks=1),
    "laplace-diagonal": Case("laplace", {"members": 3, "structure": "diagonal", "probes": 1}),
    "llpr": Case("llpr", {"members": 3}, n_trunks=1),
    "llpr-forces": Case("llpr", {"members": 3, "forces": True}, n_trunks=1),
    "pops": Case("pops", {"members": 3}, n_trunks=1),
    "pops-hypercube": Case("pops", {"members": 3, "shape": "hypercube"}, n_trunks=1),
    "shallow": Case("shallow", SHORT, n_trunks=1),
    "sve": Case("sve", SHORT),
    "evidential": Case("evidential", n_members=1, head="evidential"),
    "evidential-eip": Case("evidential", n_members=1, head="eip"),
    "leverage": Case("leverage", n_members=1),
    "distill": Case("distill", {"epochs": 3}, n_members=1, run_members=3),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """extxyz of 12 frames."""
    path = tmp_path_factory.mktemp("data") / "cu3au.extxyz"
    ase.io.write(path, [labelled(seed) for seed in range(12)])
    return path


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory) -> Callable[..., Path]:
    """trained(head, n_members=1, seed=0, **of the model) -> folder of a run of some steps,
    float64.
    """
    folder = tmp_path_factory.mktemp("runs")

    def make(head: str = "equivariant", n_members: int = 1, seed: int = 0, **changes) -> Path:
        parts = [head, n_members, seed, *(f"{key}{value}" for key, value in changes.items())]
        run = folder / "-".join(map(str, parts))
        if not run.exists():
            options = {
                "epochs": 6,
                "batch_size": 3,
                "warmup_epochs": 1,
                "dtype": "float64",
                "n_threads": 1,
                "checkpoint_minutes": 0.0,
            }
            config = {
                "data": {"train": [str(data)], "validation_fraction": 0.25},
                "model": MODEL | {"head": head, "n_members": n_members} | changes,
                "train": options | {"loss": LOSS[head], "seed": seed},
            }
            train(Config.model_validate(config), run)
        return run

    return make


@pytest.fixture(scope="session")
def fitted(trained, tmp_path_factory) -> Callable[..., Path]:
    """fitted(case, head of the case, **changes of options) -> folder of the new run."""
    folder = tmp_path_factory.mktemp("fitted")

    def make(name: str, head: str | None = None, **changes) -> Path:
        head = head or CASES[name].head
        out = folder / "-".join([name, head, *(f"{key}{value}" for key, value in changes.items())])
        if not out.exists():
            case = CASES[name]
            runs = [
                trained(head, case.run_members, seed, **case.sizes[seed])
                for seed in range(case.n_members if case.several else 1)
            ]
            fit(case.posterior, runs, out, case.options | changes)
        return out

    return make
