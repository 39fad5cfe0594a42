"""Members that differ in their last readout maps alone run on a shared trunk: the function
of the replicated form, at less work.
"""

import numpy as np
import pytest
import race._race
import torch

import race
from race.deploy.artifact import read_metadata
from race.deploy.command_info import describe
from race.deploy.export import export_model
from race.deploy.folded import count_trunks
from race.model.race import RACE
from tests.deploy.conftest import (
    difference,
    domains_of,
    eager,
    folded,
    graph_of,
    make_model,
    readouts_on,
    triclinic,
    unshared,
)
from tests.deploy.test_domains import bricks

REQUESTS = [{}, {"members": True, "uncertainty": True, "atom_virial": True}, {"uncertainty": True}]


def exported(model: RACE, path, **options):
    export_model(model, path, **options)
    return race._race.load(str(path))


@pytest.mark.parametrize(
    "n_trunks, n_members, changes",
    [
        (1, 4, {}),
        (2, 4, {}),
        (1, 3, {"head": "evidential", "n_layers": 2, "stress_head": "equivariant"}),
        (1, 2, {"head": "eip", "stress_head": "equivariant"}),
        (1, 3, {"head": "cholesky", "radial_knots": 0}),
        (2, 4, {"head": "point", "radial_knots": 0, "stress_head": "equivariant"}),
        (1, 2, {"n_layers": 1, "readout_hidden": 200}),
    ],
    ids=str,
)
def test_shared_is_tiled(n_trunks, n_members, changes, atoms, tmp_path):
    model = readouts_on(make_model(n_members=n_trunks, **changes), n_members)
    assert (count_trunks(model), count_trunks(unshared(model))) == (n_trunks, n_members)
    shared, fully = (
        exported(each, tmp_path / f"{k}.race.pt") for k, each in enumerate((model, unshared(model)))
    )
    graph = graph_of(atoms)
    for request in REQUESTS:
        got, want = (each.predict(*folded(graph), **request) for each in (shared, fully))
        assert got.keys() == want.keys()
        for name in want:
            assert difference(got[name], want[name]) < 1e-10, (name, request)
    got, want = shared.predict(*folded(graph), members=True), eager(model, graph)
    assert difference(got["forces"], want["forces"]) < 1e-10  # each member in its own place
    assert difference(got["forces"].roll(1, 1), want["forces"]) > 1e-3
    widths = [read_metadata(tmp_path / f"{k}.race.pt")[0]["halo_widths"] for k in range(2)]
    assert [w * n_members for w in widths[0]] == [w * n_trunks for w in widths[1]]


def test_portable_and_float32(atoms, tmp_path):
    model = readouts_on(make_model(n_members=1), 3)
    want, graph = eager(model, graph_of(atoms)), graph_of(atoms)
    for options, allowed in (({"portable": True}, 1e-10), ({"dtype": "float32"}, 5e-5)):
        got = exported(model, tmp_path / "x.race.pt", **options).predict(
            *folded(graph), members=True, uncertainty=True
        )
        for name in ("node_energy", "forces", "cov_aleatoric"):
            assert difference(got[name], want[name]) < allowed, name


@pytest.mark.parametrize("n_trunks", [1, 2])
def test_domains(n_trunks, tmp_path):
    """Each transpose has its own reverse exchanges, in every domain alike."""
    runtime = exported(readouts_on(make_model(n_members=n_trunks), 4), tmp_path / "x.race.pt")
    frame = triclinic((2, 2, 2))
    want = runtime.predict(*folded(graph_of(frame)), **REQUESTS[1])
    domains, owned = domains_of(frame, bricks(frame, (2, 1, 1)), 2)
    parts = runtime.predict_domains(domains, **REQUESTS[1])
    order = torch.from_numpy(np.argsort(np.concatenate(owned)))
    for name in ("node_energy", "forces", "atom_virial", "cov_aleatoric"):
        got = torch.cat([part[name][: len(rows)] for part, rows in zip(parts, owned, strict=True)])[
            order
        ]
        assert difference(got, want[name]) < 1e-10, name
    assert difference(sum(part["virial"] for part in parts), want["virial"]) < 1e-10


def test_calculator(atoms, tmp_path):
    model = readouts_on(make_model(n_members=1), 3)
    results = []
    for k, each in enumerate((model, unshared(model))):
        export_model(each, tmp_path / f"{k}.race.pt")
        calculator = race.Calculator(tmp_path / f"{k}.race.pt", uncertainty=True)
        calculator.calculate(atoms)
        results.append(calculator.results)
    assert results[0].keys() == results[1].keys() and results[0]["stress_std"].min() > 1e-6
    for name, value in results[1].items():
        np.testing.assert_allclose(
            results[0][name],
            value,
            rtol=0,
            atol=1e-10 * max(1.0, np.abs(value).max()),
            err_msg=name,
        )


def test_what_shares_nothing():
    assert count_trunks(make_model(n_members=1)) == 1 and count_trunks(make_model(n_members=3)) == 3
    # Dealt 0, 1, 0: no T divides it
    assert count_trunks(readouts_on(make_model(n_members=2), 3)) == 3
    assert count_trunks(readouts_on(make_model(n_members=2), 6)) == 2


def test_info_says_so(tmp_path):
    lines = []
    for k, each in enumerate((readouts_on(make_model(n_members=1), 3), make_model(n_members=3))):
        export_model(each, tmp_path / f"{k}.race.pt", summary={"posterior": {"name": "llpr"}})
        lines.append(
            next(
                line
                for line in describe(*read_metadata(tmp_path / f"{k}.race.pt"))
                if line.startswith("members")
            )
        )
    assert lines[0].endswith(
        "3 (llpr, readouts on 1 trunk: mean forces cost one member)"
    ) and lines[1].endswith("3 (llpr)")
