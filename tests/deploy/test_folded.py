"""The deployed form against the trained model, and its written-out transposes against autograd."""

import pytest
import torch

from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.deploy.export import fold
from race.deploy.selftest import make_selftest, predict
from race.errors import RaceError
from race.heads import HEADS
from race.model.conv import conv_aten, conv_vjp_aten, conv_vjp_fused, spline_aten, spline_slope_aten
from tests.deploy.conftest import graph_of, make_model, triclinic

SHAPES = [
    *({"head": head} for head in HEADS),
    *({"head": head, "stress_head": "equivariant"} for head in HEADS),
    {"radial_knots": 0, "bessel_decay": 1.5, "radial_scale": 0.2, "angular_decay": 0.5},
    {"n_members": 1},
    {"n_layers": 1},
    # The readout of the last layer folded into the convolution's maps
    {
        "n_layers": 2,
        "readout_hidden": 4,
    },
    {"readout_hidden": 200},  # and kept apart
    {"irreps_hidden": "4x0e+2x0o+3x1o+3x1e+5x2e+4x2o"},
    {"gate": True},
    {"gate": True, "n_layers": 1, "head": "point"},
    {
        "gate": True,
        "correlation": 2,
        "bessel_decay": 1.0,
        "radial_scale": 0.1,
        "angular_decay": 1.0,
    },
    {"gate": True, "correlation": 2, "radial_knots": 0},
    {"gate": True, "correlation": 3},
    {"correlation": 3, "n_members": 1},
]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_deployed_is_trained(changes, fused):
    model, graph = make_model(**changes).eval(), graph_of(triclinic())
    trained = model(graph)
    deployed, _ = fold(model, torch.float64, portable=not fused)
    deployed.prepare()
    with torch.no_grad():
        result = predict(deployed, graph)
    assert torch.allclose(result["node_energy"], trained.node_energy, rtol=0, atol=1e-11)
    assert torch.allclose(result["forces"], trained.forces, rtol=0, atol=1e-11)
    stress = -result["virial"].flatten(1)[:, [0, 4, 8, 1, 2, 5]] / graph.volume
    assert torch.allclose(stress, trained.stress[0], rtol=0, atol=1e-11)
    if model.has_forces_cov:
        aleatoric = model.forces_cov(trained.raw)[..., list(SIX_ROWS), list(SIX_COLUMNS)]
        assert torch.allclose(result["cov_aleatoric"], aleatoric.mean(1), rtol=0, atol=1e-11)
    if model.has_stress_cov:
        assert torch.allclose(
            result["virial_cov"], trained.virial_cov[0].mean(0), rtol=0, atol=1e-11
        )
    if model.has_energy_var:
        assert torch.allclose(
            result["node_energy_var"].sum(0), trained.energy_var[0], rtol=0, atol=1e-11
        )


def test_a_wrong_fold_is_not_exported():
    model = make_model()
    deployed, _ = fold(model, torch.float64)
    make_selftest(deployed, model)
    deployed.layers[1].chain.weight[:, :1] += 1e-5
    with pytest.raises(RaceError, match="not the trained one"):
        make_selftest(deployed, model)


def test_fold_leaves_the_model_alone():
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model, torch.float32)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_slope_of_the_spline_is_its_derivative():
    table = torch.randn(2, 9, 4, dtype=torch.float64)
    x = torch.cat(
        [torch.rand(20, 1, dtype=torch.float64), torch.tensor([[1.1], [1.3]], dtype=torch.float64)]
    ).requires_grad_()
    (slope,) = torch.autograd.grad(spline_aten(x, table)[1, :, 2].sum(), x)
    assert torch.allclose(spline_slope_aten(x, table)[1, :, 2], slope[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("transpose", [conv_vjp_fused, conv_vjp_aten])
@pytest.mark.parametrize("knots", [0, 16])
@pytest.mark.parametrize("groups", [1, 2])
def test_transpose_of_the_convolution(groups, knots, transpose):
    model, graph = make_model(radial_knots=knots), graph_of(triclinic())
    layer, M, E = model.layers[1], 2, graph.edge_index.shape[1]
    g = torch.randn(graph.n_atoms, model.g_dims[1], dtype=torch.float64, requires_grad=True)
    sh = torch.randn(E, 1, 9, dtype=torch.float64).expand(-1, groups, -1).requires_grad_()
    table = None
    if knots:
        table, radial = (
            layer.radial.table().detach(),
            torch.rand(E, 1, dtype=torch.float64).expand(-1, groups).requires_grad_(),
        )
    else:
        radial = torch.randn(
            M, E, layer.radial.weights[-1].shape[2], dtype=torch.float64, requires_grad=True
        )
    rest = (graph.edge_index[0], graph.row_ptr, layer.path_rows, layer.cg)
    out = conv_aten(g, radial, table, sh, *rest, layer.dim_mid)
    bar = torch.randn_like(out)
    expected = torch.autograd.grad(out, [g, radial, sh], bar)
    for a, b in zip(
        expected,
        transpose(bar, g.detach(), radial.detach(), table, sh.detach(), *rest, True),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-11 * float(a.abs().max()))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("t", range(3))
def test_transpose_of_a_chain(t, fused):
    """<A x, y> = <x, A^T y>, from the tensors that a layer reads to those it makes, with
    several species.
    """
    model = make_model(n_layers=3)
    deployed, _ = fold(model, torch.float64, portable=not fused)
    deployed.prepare()
    layer, species = deployed.layers[t], torch.tensor([0, 1, 1, 0, 1, 0, 0])
    x = [torch.randn(7, width, dtype=torch.float64) for width in (layer.dim_mid, layer.dim_h)]
    made = layer.chain([each.clone() for each in x], None, species)[:3]
    y = [torch.randn_like(each) for each in made]
    back = layer.back([each.clone() for each in y], None, species)
    forward, transposed = (
        sum((a * b).sum() for a, b in zip(*pair, strict=True)) for pair in ((made, y), (x, back))
    )
    assert torch.allclose(forward, transposed, rtol=1e-12)
    other = layer.chain([each.clone() for each in x], None, 1 - species)[:3]
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(made, other, strict=True))
