"""The tangents of a deployed model's segments, and what its edges pass on: with them the heat
flux is the rate of change of sum_i r_i E_i, by central differences in time.
"""

import numpy as np
import pytest
import torch

from race.data.graph import build_graph
from race.deploy.folded import FoldedRACE
from tests.deploy.conftest import ELEMENTS, R_MAX, make_model, triclinic

CASES = {
    "one layer": dict(n_layers=1),
    "two layers": dict(n_layers=2),
    "three layers": {},
    "without a table": dict(n_layers=2, radial_knots=0),
    "products": dict(correlation=3),
    "gate": dict(gate=True),
    "products and a gate": dict(correlation=2, gate=True),
}


def flux(model, frame, velocity):
    """(E [n, M], forces [n, M, 3], heat flux [M, 3]) by the segments, as librace calls them."""
    graph = build_graph(frame, ELEMENTS, R_MAX, torch.float64)
    sender, receiver = graph.edge_index
    around = (sender, graph.row_ptr, graph.species)
    vector, n, T = graph.edge_vector, graph.n_atoms, model.n_trunks

    def grouped(rows):
        return rows.unsqueeze(1).expand(-1, T, -1)

    radial, sh, radial_grad, sh_grad = model.edges(vector)
    edges = (grouped(radial), grouped(sh))
    h, g, out = vector.new_zeros((n, 0)), model.embed(graph.species), torch.zeros(())
    features, kept = [], []
    for t in range(model.n_layers):
        features.append(g)
        h, g, extra, z = model.layer(t, h, g, *edges, *around)
        kept.append(z)
        out = out + extra
    rates = [
        grouped(rate) for rate in model.edges_jvp(vector, velocity[sender] - velocity[receiver])
    ]
    dh, dg = vector.new_zeros((n, 0)), [torch.zeros_like(features[0])]
    for t in range(model.n_layers - 1):
        dh, following = model.layer_jvp(t, dh, dg[t], *rates, features[t], *edges, *around, kept[t])
        dg.append(following)
    bar_energy = model.readout_vjp(graph.species, torch.ones(model.n_members, dtype=torch.float64))
    bar_h, bar_g = torch.zeros_like(h), torch.zeros_like(g)
    bar_radial, bar_sh, power = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for t in reversed(range(model.n_layers)):
        if t > 0:
            bars = (kept[t], bar_energy, bar_h, bar_g)
            power = power + model.layer_power(t, dg[t], *edges, *around, *bars)
        bar_h, bar_g, of_radial, of_sh = model.layer_vjp(
            t, features[t], *edges, *around, kept[t], bar_energy, bar_h, bar_g
        )
        bar_radial, bar_sh = bar_radial + of_radial, bar_sh + of_sh
    edge_grad = model.edges_vjp(vector, radial_grad, sh_grad, bar_radial, bar_sh)  # [E, M, 3]
    carried = (edge_grad * velocity[sender].unsqueeze(1)).sum(2) + power
    energy = model.readout(out, graph.species)
    forces = vector.new_zeros(n, model.n_members, 3).index_add(0, receiver, edge_grad)
    forces = forces.index_add(0, sender, edge_grad, alpha=-1)
    return energy, forces, energy.t() @ velocity - carried.t() @ vector


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_flux_is_the_rate_of_the_energy_moment(case, fused):
    model = FoldedRACE(make_model(**CASES[case])).set_fused(fused).eval().requires_grad_(False)
    model.prepare()
    frame = triclinic((2, 2, 1))
    frame.pbc = False
    velocity = torch.from_numpy(np.random.default_rng(3).normal(size=(len(frame), 3)))
    _, forces, got = flux(model, frame, velocity)
    h, moments = 1e-5, []
    for sign in (1, -1):
        moved = frame.copy()
        moved.positions += sign * h * velocity.numpy()
        moments.append(flux(model, moved, velocity)[0].t() @ torch.from_numpy(moved.positions))
    work = torch.einsum("nma,na->nm", forces, velocity).t() @ torch.from_numpy(frame.positions)
    want = (moments[0] - moments[1]) / (2 * h) + work
    scale = want.abs().max()
    assert (got - want).abs().max() < 1e-6 * scale
    # Without the features' part it is another flux
    if model.n_layers > 1:
        model.layer_power = lambda t, dg, *rest: torch.zeros((), dtype=torch.float64)
        assert (flux(model, frame, velocity)[2] - want).abs().max() > 1e-2 * scale
