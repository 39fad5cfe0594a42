"""Stacking runs, and taking one member out."""

from pathlib import Path

import pytest
import torch

from race.config import Config, DataConfig
from race.errors import RaceError
from race.posterior.ensemble import EnsembleOptions, fit
from race.posterior.protocol import Run
from tests.deploy.conftest import graph_of, make_model, triclinic


def runs() -> list[Run]:
    models = [make_model(seed=0), make_model(seed=1, n_members=1)]
    return [Run(Path(f"run{k}"), model, Config(data=DataConfig(train=["x"]), model=model.config), {}) for k, model in enumerate(models)]


def test_members_in_order_and_one_alone():
    pair, graph = runs(), graph_of(triclinic())
    expected = torch.cat([run.model(graph)["forces"] for run in pair], dim=1)  # members 0, 1 of the first run, 2 of the second
    assert torch.allclose(fit(pair, EnsembleOptions(), Path()).model(graph)["forces"], expected, rtol=0, atol=1e-11)
    for member in range(3):
        alone = fit(pair, EnsembleOptions(take=member), Path()).model
        assert alone.n_members == 1
        assert torch.allclose(alone(graph)["forces"][:, 0], expected[:, member], rtol=0, atol=1e-11)


def test_a_member_that_is_not_there():
    with pytest.raises(RaceError, match="--take: no such member; expected 0 to 2; got 3"):
        fit(runs(), EnsembleOptions(take=3), Path())
