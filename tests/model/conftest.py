import ase.build
import numpy as np
import pytest
import torch

from race.config import ModelConfig
from race.data.graph import build_graph
from race.model.race import RACE

ELEMENTS = ["B", "N"]


def small_config(**changes) -> ModelConfig:
    options = dict(
        elements=ELEMENTS,
        r_max=3.2,
        n_layers=3,
        irreps_hidden="8x0e+4x0o+8x1o+4x1e+6x2e",
        lmax=2,
        n_features=8,
        n_members=2,
        avg_num_neighbors=12.0,
        readout_hidden=16,
        radial_mlp=[16],
        atomic_energies=[-3.0, 2.0],
        scale=[0.7, 1.3],
    )
    return ModelConfig(**{**options, **changes})


@pytest.fixture
def atoms():
    frame = ase.build.bulk("BN", "zincblende", a=3.6).repeat((2, 2, 1))
    frame.set_cell(
        frame.cell @ (np.eye(3) + 0.05 * np.array([[0, 1, 0], [0, 0, 0.5], [0.3, 0, 0]])),
        scale_atoms=True,
    )
    frame.rattle(0.1, seed=1)
    return frame


def graph_of(frame, dtype=torch.float64, r_max=3.2):
    return build_graph(frame, ELEMENTS, r_max, dtype)


def make_model(dtype=torch.float64, seed=0, **changes) -> RACE:
    torch.manual_seed(seed)
    return RACE.untrained(small_config(**changes), dtype)
