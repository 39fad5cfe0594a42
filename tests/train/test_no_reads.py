"""A step of training reads nothing back from the device and sends it nothing: else the host
would wait for the device, several times a step.

The test runs on the CPU, where every operator is seen by its name. A read is an operator
whose result's shape depends on numbers, or one that gives a number to Python.
"""

from dataclasses import replace

import ase.io
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from race.train.members import initial_model
from race.train.prepare import prepare
from race.train.trainer import Trainer
from tests.train.conftest import MODEL, labelled, make_config
from tests.train.test_missing_labels import CASES

READS = {"nonzero", "_local_scalar_dense", "is_nonzero", "masked_select", "unique_dim", "_unique2"}
SENDS = {"lift_fresh", "lift_fresh_copy"}  # a tensor made of Python's numbers


class Refused(TorchDispatchMode):
    """Refuses what a device would be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in READS | SENDS:
            raise AssertionError(f"{name}: a device would be waited for")
        if name.startswith(("index", "_index_put")) and any(
            each.dtype == torch.bool
            for part in args
            if isinstance(part, (list, tuple))
            for each in part
            if isinstance(each, torch.Tensor)
        ):
            raise AssertionError(f"{name} by bools: a device would be waited for")
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def holed(tmp_path_factory):
    """Frames of which one has no energy, one no stress, and one atom no force; all have noise of
    their labels.
    """
    frames = [labelled(seed) for seed in range(8)]
    for k, atoms in enumerate(frames):
        results = dict(atoms.calc.results)
        if k == 1:
            del results["energy"]
        if k == 2:
            del results["stress"]
        if k == 3:
            results["forces"] = results["forces"].copy()
            results["forces"][2] = float("nan")
        atoms.calc.results = results
    path = tmp_path_factory.mktemp("holed") / "holed.extxyz"
    ase.io.write(path, frames)
    return path


def trainer_of(path, run, kind, head, **model):
    options = dict(loss=kind, batch_size=6, stress_weight=0.5)
    config = make_config(path, model=dict(MODEL, head=head, n_members=2, **model), train=options)
    ready = prepare(config)
    model = initial_model(ready.config.model, ready.config.constants, 0, torch.float64)
    run.mkdir()
    return Trainer(ready.config, model, ready.train, ready.validation, run)


def batches(trainer):
    return trainer._shares(trainer.train_set, trainer.train_set.plan(6, shuffle=False))


@pytest.mark.parametrize("gate", [dict(), dict(gate=True, correlation=2)], ids=["plain", "gated"])
@pytest.mark.parametrize(("kind", "head"), CASES)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "holed"])
def test_a_step_reads_nothing(whole, kind, head, gate, copper, holed, tmp_path):
    trainer = trainer_of(copper if whole else holed, tmp_path / "run", kind, head, **gate)
    for batch in batches(trainer):
        with Refused():
            trainer.step(batch)


def test_rows_that_are_found_on_the_device_are_seen(holed, tmp_path):
    """A batch that did not come by `to` looks for its labels when they are asked for."""
    trainer = trainer_of(holed, tmp_path / "run", "mse", "point")
    batch = next(batches(trainer))
    with Refused(), pytest.raises(AssertionError, match="would be waited for"):
        trainer.step(replace(batch))


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t[t > 0],
        lambda t: t.sum().item(),
        lambda t: t[:, [0, 1]],
        lambda t: bool((t > 0).any()),
    ],
)
def test_a_read_is_seen(read):
    with Refused(), pytest.raises(AssertionError, match="would be waited for"):
        read(torch.ones(3, 3))
