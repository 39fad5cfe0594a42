"""Stacking runs, and taking one member out."""

import shutil
from pathlib import Path

import ase.io
import pytest
import torch
import yaml

from race.config import Config, DataConfig, RunConfig, TrainConfig
from race.errors import RaceError
from race.evaluate.evaluated import evaluated_run
from race.posterior import fit as posterior_fit
from race.posterior.ensemble import EnsembleOptions, fit, shared_starts
from race.posterior.protocol import Run
from race.train.files import sha256
from race.train.members import initial_model
from race.train.training import train
from tests.deploy.conftest import graph_of, make_model, triclinic
from tests.train.conftest import labelled


def runs(seed: int = 2) -> list[Run]:
    """Two members and one; seed: train.seed of the second run."""
    models = [make_model(seed=0), make_model(seed=1, n_members=1)]
    configs = [
        RunConfig(
            data=DataConfig(train=["x"]),
            model=models[k].config,
            train=TrainConfig(seed=k * seed),
            constants=models[k].constants,
        )
        for k in range(2)
    ]
    return [Run(Path(f"run{k}"), models[k], configs[k], {}) for k in range(2)]


def test_members_in_order_and_one_alone():
    pair, graph = runs(), graph_of(triclinic())
    # Members 0, 1 of the first run, 2 of the second
    expected = torch.cat([run.model(graph).forces for run in pair], dim=1)
    assert torch.allclose(
        fit(pair, EnsembleOptions(), Path()).model(graph).forces, expected, rtol=0, atol=1e-11
    )
    for member in range(3):
        alone = fit(pair, EnsembleOptions(take=member), Path()).model
        assert alone.n_members == 1
        assert torch.allclose(alone(graph).forces[:, 0], expected[:, member], rtol=0, atol=1e-11)


def test_members_of_several_sizes(trained, caplog):
    """Padded together, as they were alone; what is wrong with that is not said."""
    caplog.set_level("INFO")
    small = Run.load(trained())
    large = Run.load(trained(n_layers=3, correlation=2))  # whose energy scale is another
    assert small.model.constants.scale != large.model.constants.scale
    both = fit([small, large], EnsembleOptions(), Path()).model
    assert both.config.n_layers == 3 and both.config.correlation == 2
    assert (
        "runs of several sizes: every member is padded with zeros to n_layers 3, correlation 2,"
        in caplog.text
    )
    assert "in common" not in caplog.text
    for member, run in enumerate((small, large)):
        alone = fit([small, large], EnsembleOptions(take=member), Path()).model
        assert alone.config == run.model.config


@pytest.mark.parametrize(
    "change, shared",
    [({"n_layers": 3}, 1), ({"readout_hidden": 7}, 1), ({"irreps_hidden": "5x0e+4x1o+4x2e"}, 0)],
)
def test_first_layers_of_one_seed_begin_alike_where_their_size_is_one(trained, change, shared):
    pair = Run.load(trained()), Run.load(trained(**change))
    firsts = [
        initial_model(run.config.model, run.config.constants, 0, torch.float64)
        .layers[0]
        .radial.weights[-1]
        for run in pair
    ]
    assert torch.equal(*firsts) == bool(shared)
    assert shared_starts(*pair) == shared


def test_a_member_that_is_not_there():
    with pytest.raises(RaceError, match="--take: no such member; expected 0 to 2; got 3"):
        fit(runs(), EnsembleOptions(take=3), Path())


def test_members_that_began_alike_are_pointed_out(trained, caplog):
    """Seeds of runs count on by member: those of seed 1 begin as the second member of
    seed 0 did.
    """
    caplog.set_level("INFO")
    pair = Run.load(trained(n_members=3, seed=0)), Run.load(trained(n_members=1, seed=2))
    firsts = [
        initial_model(
            run.config.model, run.config.constants, run.config.train.seed, torch.float64
        ).embedding
        for run in pair
    ]
    assert torch.equal(firsts[0][2], firsts[1][0]) and shared_starts(*pair) == 1
    fit(pair, EnsembleOptions(), Path())
    assert (
        f"{pair[0].path} and {pair[1].path} have 1 initial weights in common (train.seed 0 and 2)"
        in caplog.text
    )
    caplog.clear()
    assert [shared_starts(*runs(seed)) for seed in (0, 1, 2)] == [1, 1, 0]
    fit(runs(), EnsembleOptions(), Path())
    assert "in common" not in caplog.text
    pair[1].summary["posterior"] = {"name": "swag"}
    assert shared_starts(*pair) == 0


def test_a_run_given_twice_is_refused(trained, tmp_path):
    """Under another name too: the copy would take part of the epistemic uncertainty away."""
    copied = shutil.copytree(trained(seed=1), tmp_path / "copy")
    paths = [trained(), trained(seed=1), copied]
    with pytest.raises(RaceError, match=f"copy: member 0 is member 0 of {paths[1]}; .*once"):
        posterior_fit.fit("ensemble", paths, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_what_any_run_was_trained_on_is_known(trained, data, tmp_path):
    """And not offered for a calibration of the stack."""
    other = tmp_path / "other.extxyz"
    ase.io.write(other, [labelled(seed) for seed in range(40, 52)])
    config = yaml.safe_load((trained() / "config.yaml").read_text())
    constants = config.pop("constants")
    config["data"]["train"] = [str(other)]
    config["train"]["seed"] = 1
    for name in ("avg_num_neighbors", "atomic_energies", "scale", "sigma0", "sigma0_energy"):
        config["model"][name] = constants[name]
    config["model"]["elements"] = constants["elements"]
    train(Config.model_validate(config), tmp_path / "second")
    posterior_fit.fit("ensemble", [trained(), tmp_path / "second"], tmp_path / "out", {})
    assert evaluated_run(tmp_path / "out").seen == {sha256(data), sha256(other)}
