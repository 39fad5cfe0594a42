"""Steps that a device records and replays.

No GPU is needed: the recorder here notes every operator with its tensors, and a replay runs
them again on the same tensors, as a CUDA graph does. A number that took a way around the
operators, or a tensor that was not there when the step was recorded, gives another result.
"""

import pytest
import race._race
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from race.deploy.export import export_model
from race.presets import preset

from .conftest import graph_of, triclinic
from .test_step import model_of, periodic, tensors_in

READS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal"}


class Graph(TorchDispatchMode):
    """A CUDA graph of operators."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.own, self.others = set(), set()  # memory that operators allocated, and all else
        self.done = []
        self.wrong = 0.0  # added to all that a replay writes

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.others |= {storage(tensor) for tensor in tensors_in(args)} - self.own
        result = function(*args, **(kwargs or {}))
        self.own |= {storage(tensor) for tensor in tensors_in([result])} - self.others
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def rehearse(self, work):
        self.done.append("rehearse")
        work()

    def record(self, work):
        self.done.append("record")
        with self:
            work()

    def replay(self, read):
        self.done.append("replay")
        for function, args, kwargs, result in self.calls:
            if function.is_view:
                continue
            again = function(*args, **kwargs)
            for place, value in zip(tensors_in([result]), tensors_in([again]), strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value + self.wrong if place.is_floating_point() else value)
        read()
        for *_, result in self.calls:  # another graph may have its results in this memory
            for place in tensors_in([result]):
                if place.is_floating_point() and storage(place) in self.own:
                    place.fill_(torch.nan)


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


@pytest.fixture
def graphs(monkeypatch):
    """The recorders that were made."""
    made = []

    def make(device):
        assert device == "cpu"
        made.append(Graph())
        return made[-1]

    race._race.record_with(make)
    yield made
    race._race.record_with(None)


@pytest.fixture(scope="module", params=["point", "members", "zbl"])
def prepared(request, tmp_path_factory):
    """A model with ghosts, and what a step is asked for."""
    path = tmp_path_factory.mktemp("recordings") / "model.race.pt"
    changes = dict(preset("small"), n_members=2, head="cholesky", correlation=2)
    model = model_of(**({} if request.param == "point" else changes))
    export_model(model, path, summary={"training": {"min_distance": {"B-N": 1.5, "B-B": 2.0}}})
    model = race._race.load(str(path), dtype="float64")
    wanted = {
        "point": {},
        "members": dict(members=True, uncertainty=True, atom_virial=True),
        "zbl": dict(zbl=race._race.Zbl(model, "test")),
    }[request.param]
    return model, wanted


def steps(vector, n):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((n, *vector.shape), dtype=vector.dtype, generator=generator)
    return [vector + 0.02 * shift for shift in noise]


def test_replays_are_the_steps(prepared, graphs):
    model, wanted = prepared
    species, vector, sender, row_ptr, owner = periodic(triclinic())
    topology = race._race.Topology(model, species, sender, row_ptr)
    found = [
        model.predict(topology, now, owner, on_device=True, **wanted) for now in steps(vector, 5)
    ]
    (graph,) = graphs
    assert graph.done == ["rehearse", "rehearse", "record", *4 * ["replay"]]
    assert len(graph.calls) > 20
    for now, step in zip(steps(vector, 5), found, strict=True):
        expected = model.predict(species, now, sender, row_ptr, owner, **wanted)
        assert step.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(step[name], values), name
    assert not torch.equal(found[3]["forces"], found[4]["forces"])


def test_each_kind_of_step_has_its_own(prepared, graphs):
    model, wanted = prepared
    species, vector, sender, row_ptr, owner = periodic(triclinic())
    topology = race._race.Topology(model, species, sender, row_ptr)
    kinds = [wanted, dict(forces=False), dict(atom_virial=True, members=True)]
    for now in steps(vector, 4):
        for kind in kinds:
            found = model.predict(topology, now, owner, on_device=True, **kind)
            expected = model.predict(species, now, sender, row_ptr, owner, **kind)
            for name, values in expected.items():
                assert torch.equal(found[name], values), name
    assert len(graphs) == len(kinds)
    assert all(graph.done[-2:] == ["replay", "replay"] for graph in graphs)


def test_a_replay_with_other_numbers_is_not_used(prepared, graphs):
    model, wanted = prepared
    species, vector, sender, row_ptr, owner = periodic(triclinic())
    topology = race._race.Topology(model, species, sender, row_ptr)
    for step, now in enumerate(steps(vector, 4)):
        found = model.predict(topology, now, owner, on_device=True, **wanted)
        if step == 0:
            graphs[0].wrong = 1e-3
        expected = model.predict(species, now, sender, row_ptr, owner, **wanted)
        for name, values in expected.items():
            assert torch.equal(found[name], values), name
    assert graphs[0].done == ["rehearse", "rehearse", "record", "replay"]


def test_a_step_that_cannot_be_recorded(prepared, graphs, monkeypatch):
    """It is made each time."""
    model, wanted = prepared
    monkeypatch.setattr(Graph, "record", lambda self, work: torch.empty(2).add_(torch.empty(3)))
    species, vector, sender, row_ptr, owner = periodic(triclinic())
    topology = race._race.Topology(model, species, sender, row_ptr)
    for now in steps(vector, 4):
        found = model.predict(topology, now, owner, on_device=True, **wanted)
        expected = model.predict(species, now, sender, row_ptr, owner, **wanted)
        assert torch.equal(found["forces"], expected["forces"])
    assert graphs[0].done == ["rehearse", "rehearse"]


def test_no_recorder(prepared, graphs):
    """A device that refuses to make one still makes the steps."""
    model, wanted = prepared

    def refuse(device):
        raise RuntimeError("no memory pool")

    race._race.record_with(refuse)
    species, vector, sender, row_ptr, owner = periodic(triclinic())
    topology = race._race.Topology(model, species, sender, row_ptr)
    for now in steps(vector, 3):
        found = model.predict(topology, now, owner, on_device=True, **wanted)
        expected = model.predict(species, now, sender, row_ptr, owner, **wanted)
        assert torch.equal(found["forces"], expected["forces"])
    assert graphs == []


def test_two_topologies_in_turn(prepared, graphs):
    """Each has a recording, whose results another's replay overwrites."""
    model, wanted = prepared
    species, vector, sender, row_ptr, owner = periodic(triclinic())
    topologies = [race._race.Topology(model, species, sender, row_ptr) for _ in range(2)]
    found = [
        [model.predict(topology, now, owner, on_device=True, **wanted) for topology in topologies]
        for now in steps(vector, 4)
    ]
    for now, both in zip(steps(vector, 4), found, strict=True):
        expected = model.predict(species, now, sender, row_ptr, owner, **wanted)
        for step in both:
            assert all(torch.equal(step[name], values) for name, values in expected.items())
    assert [graph.done[-1] for graph in graphs] == ["replay", "replay"]


def test_an_element_without_a_grade(graphs, tmp_path):
    """Its grade is infinite, and the step is replayed all the same."""
    atoms = triclinic()
    atoms.symbols = ["B"] * len(atoms)
    seen = [graph_of(atoms, torch.float32)]
    export_model(model_of(), tmp_path / "model.race.pt", training_set=seen)
    model = race._race.load(str(tmp_path / "model.race.pt"), dtype="float64")
    species, vector, sender, row_ptr, owner = periodic(triclinic())
    topology = race._race.Topology(model, species, sender, row_ptr)
    for now in steps(vector, 3):
        found = model.predict(topology, now, owner, on_device=True, uncertainty=True)
    assert found["grade"].isinf().any() and found["grade"].isfinite().any()
    assert graphs[0].done[-2:] == ["replay", "replay"]


def test_what_is_not_recorded(prepared, graphs, monkeypatch):
    """Other ghosts at each step, none but once; and nothing if the user does not want it."""
    model, wanted = prepared
    species, vector, sender, row_ptr, owner = periodic(triclinic())
    topology = race._race.Topology(model, species, sender, row_ptr)
    for now in steps(vector, 4):
        model.predict(topology, now, owner.clone(), on_device=True, **wanted)
    assert all(graph.done == ["rehearse"] for graph in graphs)
    monkeypatch.setenv("RACE_CUDA_GRAPH", "0")
    n_made = len(graphs)
    other = race._race.Topology(model, species, sender, row_ptr)
    for now in steps(vector, 3):
        model.predict(other, now, owner, on_device=True, **wanted)
    assert len(graphs) == n_made


def test_without_ghosts(graphs, tmp_path):
    """A molecule: no tensor says where its images are."""
    export_model(model_of(), tmp_path / "model.race.pt")
    model = race._race.load(str(tmp_path / "model.race.pt"), dtype="float64")
    species, sender = torch.tensor([0, 1]), torch.tensor([1, 0])
    row_ptr = torch.tensor([0, 1, 2])
    topology = race._race.Topology(model, species, sender, row_ptr)
    for step in range(4):
        vector = torch.tensor([[1.0 + 0.1 * step, 0.2, 0.0], [-1.0 - 0.1 * step, -0.2, 0.0]])
        found = model.predict(topology, vector.double(), on_device=True)
        expected = model.predict(species, vector.double(), sender, row_ptr)
        assert torch.equal(found["forces"], expected["forces"])
    assert graphs[0].done[-2:] == ["replay", "replay"]
