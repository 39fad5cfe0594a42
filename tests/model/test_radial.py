"""Radial weights: the Bessel basis, the table against the MLP, race::radial_spline against stock operations."""

import pytest
import torch

from race.model.radial import Radial, bessel_basis, spline_aten

from .conftest import graph_of, make_model


def spline(x, table):
    return torch.ops.race.radial_spline(x, table)


def test_basis_derivative_and_ends():
    x = torch.linspace(0.01, 0.99, 37, dtype=torch.float64).unsqueeze(1).requires_grad_()
    for p in (2.0, 5.0, 6.0):
        value, slope = bessel_basis(x, 8, p)
        for n in range(8):
            (numeric,) = torch.autograd.grad(value[:, n].sum(), x, retain_graph=True)
            assert torch.allclose(numeric[:, 0], slope[:, n], rtol=1e-10, atol=1e-10)
        ends, slopes = bessel_basis(torch.tensor([[0.0], [1.0]], dtype=torch.float64), 8, p)
        near, _ = bessel_basis(torch.tensor([[1e-5]], dtype=torch.float64), 8, p)
        assert torch.allclose(ends[0], near[0], rtol=1e-4)
        assert ends[1].abs().max() < 1e-12 and slopes.abs().max() < 1e-10


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_spline_equals_stock_operations(groups, dtype, tolerance):
    torch.manual_seed(0)
    x = torch.cat([torch.rand(40, 1, dtype=dtype), torch.tensor([[0.0], [1.0], [1.3]], dtype=dtype)])
    table = torch.randn(3, 9, 2, 70, dtype=dtype)
    grad, bar = torch.randn(3, 43, 70, dtype=dtype), torch.randn(43, groups, dtype=dtype)
    bar[40:] = 0  # at the ends the stock clamp has another one-sided derivative; the basis is flat there
    found = []
    for function in (spline, spline_aten):
        a, b, g = x.expand(-1, groups).detach().requires_grad_(), table.clone().requires_grad_(), grad.clone().requires_grad_()
        value = function(a, b)
        dx, dtable = torch.autograd.grad(value, [a, b], g, create_graph=True)
        # what training on forces asks: a functional of dx, and of the table's adjoint, back to table and grad
        second = torch.autograd.grad((dx * bar).sum() + (dtable**2).sum(), [b, g])
        found.append([value, dx[:40], dtable, *second])
    # at x = 0 and beyond 1 the stock clamp has another one-sided derivative; there the basis is flat
    for ours, theirs in zip(*found, strict=True):
        scale = theirs.abs().max()
        assert (ours - theirs).abs().max() < tolerance * scale


def test_spline_gradients():
    torch.manual_seed(1)
    x = (0.1 + 0.8 * torch.rand(5, 1, dtype=torch.float64)).requires_grad_()
    table = torch.randn(2, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spline, (x, table))
    assert torch.autograd.gradgradcheck(lambda t: spline(x.detach(), t), (table,))
    # mixed second derivatives d2/(dx dtable): first derivative in x as a function of the table
    grad = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)

    def slope(t, g):
        return torch.autograd.grad(spline(x, t), x, g, create_graph=True)[0]

    assert torch.autograd.gradcheck(slope, (table, grad))


def test_spline_without_edges():
    assert spline(torch.zeros(0, 1), torch.randn(2, 5, 2, 7)).shape == (2, 0, 7)


def test_arguments_are_checked():
    with pytest.raises(RuntimeError, match="expected \\[E, 1\\] or \\[E, 2\\], got"):
        spline(torch.zeros(4, 3), torch.randn(2, 5, 2, 7))


def test_table_error_falls_as_the_fourth_power():
    torch.manual_seed(0)
    x = torch.rand(500, 1, 1, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        errors = []
        for knots in (128, 256):
            torch.manual_seed(0)
            radial = Radial([8, 32, 32, 20], 2, knots, 6)
            exact = radial.mlp(bessel_basis(x[:, 0], 8, 6.0)[0].unsqueeze(0))
            errors.append(((radial(x) - exact).abs().max() / exact.abs().max()).item())
    finally:
        torch.set_default_dtype(torch.float32)
    assert 10 < errors[0] / errors[1] < 22


def test_tabulated_model_equals_the_exact_one(atoms):
    exact = make_model(radial_knots=0)
    a = exact(graph_of(atoms))["forces"]
    errors = []
    for knots in (1024, 2048):
        table = make_model(radial_knots=knots)
        table.load_state_dict(exact.state_dict())
        errors.append(((table(graph_of(atoms))["forces"] - a).abs().max() / a.abs().max()).item())
    assert 1e-6 < errors[0] < 1e-5 and 0 < errors[1] < 1e-6  # forces converge as the third power of the spacing
