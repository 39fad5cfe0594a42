"""What a step costs a device beside arithmetic: how many operators it is told to run, and
how often it is waited for.

The runtime runs here on torch's meta device, whose tensors have shapes and no numbers:
whatever would read a value back to the host fails. tests/cpp counts what the operators
themselves launch.
"""

from collections import Counter

import numpy as np
import pytest
import race._race
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from race.deploy.export import export_model
from race.presets import SIZES, preset

from .conftest import domains_of, make_model, triclinic

# Operators of a step of 2 layers and 3 species, without uncertainties; 18 of them are RACE's
LIMIT = 28
# Of the shipped sizes, which differ in no operator: one member's forces; forces and covariances
# of eight members
LIMITS = {1: 48, 8: 72}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view"}


def model_of(**changes):
    options = dict(
        elements=["B", "N", "O"],
        n_layers=2,
        n_members=1,
        head="point",
        irreps_hidden="8x0e+8x1o+8x2e",
        atomic_energies=[-3.0, 2.0, 1.0],
        scale=[0.7, 1.3, 1.0],
    )
    return make_model(torch.float32, **{**options, **changes})


def periodic(atoms) -> tuple:
    """Arguments of predict() of a periodic structure whose images are ghosts."""
    ((*graph, _, owner),), _ = domains_of(atoms, np.zeros(len(atoms), dtype=np.int64), 1)
    return *graph, owner


def tensors_in(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


class Dispatched(TorchDispatchMode):
    """Counts operators that launch something on the device: not views, not allocations, nothing
    on tensors without elements, no uploads.
    """

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        given, made = list(tensors_in(args)), list(tensors_in([result]))
        upload = any(t.device.type == "cpu" for t in given)
        idle = (given or made) and not any(t.numel() for t in [*given, *made])
        if not (function.is_view or name in FREE or upload or idle or all_empty(made)):
            self.counts[name] += 1
        return result


def all_empty(tensors) -> bool:
    return bool(tensors) and not any(t.numel() for t in tensors)


def dispatched(path, **request) -> Counter:
    """Of the first step of an artifact. Another model of it has run before: seeds of transposes
    are made once for a process, by whatever asks first.
    """
    arguments = periodic(triclinic())
    before, model = (race._race.load(str(path), "meta", selftest=False) for _ in range(2))
    before.predict(*arguments, on_device=True, **request)
    with Dispatched() as mode:
        prediction = model.predict(*arguments, on_device=True, **request)
    assert all(t.device.type == "meta" for t in prediction.values())
    return mode.counts


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("step") / "three.race.pt"
    export_model(model_of(), path)
    return path


def test_operators_of_a_step(path):
    counts = dispatched(path)
    assert counts["conv"] == counts["conv_backward"] == 2 and counts["chain"] == 4
    assert counts.total() <= LIMIT, counts


@pytest.mark.parametrize("uncertainty", [False, True])
def test_energies_alone_are_a_forward_pass(path, uncertainty):
    alone = dispatched(path, forces=False, uncertainty=uncertainty)
    assert alone["conv"] == 2 and not any("backward" in name for name in alone)
    model, arguments = race._race.load(str(path)), periodic(triclinic())
    whole = model.predict(*arguments, uncertainty=uncertainty)
    found = model.predict(*arguments, uncertainty=uncertainty, forces=False)
    assert whole.keys() - found.keys() == {"forces", "virial"}
    for name, value in found.items():
        assert torch.equal(value, whole[name])


def of_size(size, n_members):
    return model_of(**preset(size), n_members=n_members, head="cholesky")


def request_of(n_members):
    """Of one member forces alone; of several what uncertainties need."""
    return dict(members=True, uncertainty=True) if n_members > 1 else dict()


@pytest.mark.parametrize("n_members", [1, 8])
@pytest.mark.parametrize("size", SIZES)
def test_operators_of_a_shipped_size(size, n_members, tmp_path):
    export_model(of_size(size, n_members), tmp_path / "m.race.pt")
    counts = dispatched(tmp_path / "m.race.pt", **request_of(n_members))
    assert counts["gate"] == counts["gate_backward"] == 2
    assert counts.total() <= LIMITS[n_members], counts


@pytest.mark.parametrize("head", ["cholesky", "equivariant", "evidential", "eip"])
@pytest.mark.parametrize("correlation", [1, 3])
def test_nothing_is_waited_for(head, correlation, tmp_path):
    """Whatever the model, with members and uncertainties too."""
    export_model(model_of(n_members=2, head=head, correlation=correlation), tmp_path / "m.race.pt")
    counts = dispatched(tmp_path / "m.race.pt", members=True, uncertainty=True, atom_virial=True)
    assert counts["force_covariance"] == counts["log_determinant"] == 1


def test_a_read_is_seen(path):
    """The portable artifact groups atoms by species on the host."""
    portable = path.with_name("portable.race.pt")
    export_model(model_of(), portable, portable=True)
    with pytest.raises(RuntimeError, match="bincount"):
        dispatched(portable)
