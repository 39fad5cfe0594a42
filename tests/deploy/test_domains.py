"""N domains that exchange one-cutoff halos = one domain, empty domains included."""

import numpy as np
import pytest
import race._race
import torch

from race.deploy.export import export_model
from tests.deploy.conftest import difference, domains_of, folded, graph_of, make_model, triclinic

REQUEST = dict(members=True, uncertainty=True, atom_virial=True)


@pytest.fixture(scope="module", params=[{}, {"correlation": 2, "gate": True}], ids=str)
def noisy(request, tmp_path_factory):
    """A runtime with noise of the stress, too."""
    path = tmp_path_factory.mktemp("noisy") / "x.race.pt"
    export_model(make_model(stress_head="equivariant", **request.param), path)
    return race._race.load(str(path))


def bricks(frame, grid):
    """Domain of each atom on a grid of bricks in fractional coordinates."""
    cell = np.floor(frame.get_scaled_positions() * grid).astype(np.int64)
    return np.ravel_multi_index(np.minimum(cell, np.array(grid) - 1).T, grid)


def run(runtime, frame, domain, n_domains, spoil=lambda domains: domains):
    """Predictions of all domains, put back in the frame's order."""
    domains, owned = domains_of(frame, domain, n_domains)
    parts = runtime.predict_domains(spoil(domains), **REQUEST)
    order = torch.from_numpy(np.argsort(np.concatenate(owned)))
    out = {}
    for name in ("node_energy", "forces", "atom_virial", "node_energy_var", "cov_aleatoric"):
        out[name] = torch.cat(
            [part[name][: len(rows)] for part, rows in zip(parts, owned, strict=True)]
        )[order]
    for name in ("virial", "virial_cov"):
        out[name] = torch.stack([part[name] for part in parts]).sum(0)
    return out


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 2, 2), (8, 1, 1)])
def test_domains_equal_one(grid, noisy):
    frame = triclinic((2, 2, 2))
    domain = bricks(frame, grid)
    want = noisy.predict(*folded(graph_of(frame)), **REQUEST)
    got = run(noisy, frame, domain, int(np.prod(grid)))
    assert got["virial_cov"].diagonal().min() > 0
    for name, value in got.items():
        assert difference(value, want[name]) < 1e-10, name


def test_empty_domains(runtime):
    """A slab in vacuum: six of eight domains own nothing, and enter every exchange."""
    frame = triclinic((2, 2, 2))
    frame.center(vacuum=10, axis=2)
    domain = bricks(frame, (1, 1, 8))
    assert 2 <= len(np.unique(domain)) <= 4
    want = runtime.predict(*folded(graph_of(frame)), **REQUEST)
    for name, value in run(runtime, frame, domain, 8).items():
        assert difference(value, want[name]) < 1e-10, name


def test_a_wrong_ghost_is_seen(runtime):
    frame = triclinic((2, 2, 2))
    want = runtime.predict(*folded(graph_of(frame)), **REQUEST)

    def spoil(domains):
        *rest, ghost_domain, ghost_row = domains[1]
        return [domains[0], (*rest, ghost_domain, ghost_row.roll(1))]

    got = run(runtime, frame, bricks(frame, (2, 1, 1)), 2, spoil)
    assert all(
        difference(got[name], want[name]) > 1e-6
        for name in ("node_energy", "forces", "cov_aleatoric")
    )


def test_a_failing_domain_does_not_hang_the_others(runtime):
    frame = triclinic((2, 2, 2))

    def spoil(domains):
        *rest, ghost_row = domains[1]
        return [domains[0], (*rest, ghost_row + 1000)]

    with pytest.raises(Exception, match="(?i)index"):
        run(runtime, frame, bricks(frame, (2, 1, 1)), 2, spoil)
