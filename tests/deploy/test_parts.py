"""Receivers taken in parts: the same numbers from less memory, and what the memory is said
to be beforehand.
"""

import pytest
import race._race
import torch

from race.deploy.export import export_model
from tests.deploy.conftest import difference, domains_of, folded, graph_of, make_model, triclinic
from tests.deploy.test_domains import bricks

REQUESTS = {"mean": {}, "everything": dict(members=True, uncertainty=True, atom_virial=True)}
LARGE = (6, 6, 6)  # 432 atoms


@pytest.fixture(scope="module")
def frame():
    return triclinic((3, 3, 2))


@pytest.fixture(scope="module")
def large():
    return folded(graph_of(triclinic(LARGE)))


@pytest.mark.parametrize("request_name", REQUESTS)
# Up to one atom each, and more than there are
@pytest.mark.parametrize("n_parts", [2, 3, 7, 36, 1000])
def test_parts_equal_the_whole(runtime, frame, n_parts, request_name):
    arguments, request = folded(graph_of(frame)), REQUESTS[request_name]
    whole, parts = (runtime.predict(*arguments, **request, n_parts=n) for n in (1, n_parts))
    assert whole.keys() == parts.keys() and len(whole) >= 3
    for name, value in whole.items():
        assert difference(parts[name], value) < 1e-11, name


def test_ghosts(runtime, frame):
    """Parts send adjoints to ghosts as well: one of two domains, whose other rows are ghosts
    of its own.
    """
    domains, _ = domains_of(frame, bricks(frame, (2, 1, 1)), 2)
    *arguments, _, ghost_row = domains[0]
    owner = ghost_row % (len(arguments[3]) - 1)
    whole, parts = (
        runtime.predict(*arguments, owner, **REQUESTS["everything"], n_parts=n) for n in (1, 4)
    )
    for name, value in whole.items():
        assert difference(parts[name], value) < 1e-11, name
    assert (
        whole["forces"].shape[0] > len(arguments[3])
        and whole["forces"][len(arguments[3]) :].abs().max() > 1e-3
    )


@pytest.mark.parametrize("n_parts", [1, 5])
def test_no_atoms(runtime, n_parts):
    empty = torch.zeros(0, dtype=torch.long)
    arguments = (
        empty,
        torch.zeros(0, 3, dtype=torch.float64),
        empty,
        torch.zeros(1, dtype=torch.long),
    )
    out = runtime.predict(*arguments, **REQUESTS["everything"], n_parts=n_parts)
    assert out["node_energy"].shape == (0, 2) and out["virial"].abs().max() == 0


def test_float32(artifact, frame):
    model = race._race.load(str(artifact), dtype="float32")
    whole, parts = (model.predict(*folded(graph_of(frame)), n_parts=n) for n in (1, 5))
    assert difference(parts["forces"], whole["forces"]) < 5e-5


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("n_parts", [1, 2, 3, 10, 100])
def test_estimate(runtime, large, n_parts, request_name):
    """Not too low, which would end a run; nearly exact in one part, an upper bound in several."""
    estimated, measured = runtime.memory(*large, **REQUESTS[request_name], n_parts=n_parts)
    assert 0.98 * measured < estimated < (1.05 if n_parts == 1 else 1.35) * measured


@pytest.mark.parametrize(
    "changes",
    [dict(n_members=1, head="point", n_layers=2), dict(n_members=5, n_layers=2, radial_knots=0)],
)
def test_estimate_of_other_models(tmp_path, large, changes):
    export_model(make_model(**changes), tmp_path / "other.race.pt")
    model = race._race.load(str(tmp_path / "other.race.pt"))
    for n_parts in (1, 8):
        estimated, measured = model.memory(*large, members=True, n_parts=n_parts)
        assert 0.98 * measured < estimated < 1.4 * measured


def test_parts_take_less(runtime, large):
    peaks = [runtime.memory(*large, members=True, n_parts=n)[1] for n in (1, 2, 4, 16)]
    assert peaks == sorted(peaks, reverse=True) and peaks[3] < 0.6 * peaks[0]


def test_every_thread_but_the_first_has_a_copy(tmp_path, large):
    """Of the sums that the convolution scatters to senders. Of one member, since several threads
    share members without copies.
    """
    export_model(make_model(n_members=1, head="point"), tmp_path / "one.race.pt")
    model, before, peaks = (
        race._race.load(str(tmp_path / "one.race.pt")),
        torch.get_num_threads(),
        [],
    )
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            peaks.append(model.memory(*large)[1])
    finally:
        torch.set_num_threads(before)
    copy = peaks[1] - peaks[0]
    assert copy > 0.1 * peaks[0] and peaks[2] - peaks[0] == pytest.approx(3 * copy, rel=0.02)
