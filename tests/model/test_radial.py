"""Radial weights: the Bessel basis, the table against the MLP, its interpolation."""

import pytest
import torch

from race.model.conv import spline_aten
from race.model.radial import Radial, bessel_basis

from .conftest import graph_of, make_model


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


def test_knots_are_met_with_slope_and_curvature():
    torch.manual_seed(0)
    table = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    x = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None].requires_grad_()
    value = spline_aten(x, table)
    assert torch.allclose(value, table[:, :, 0], atol=1e-14)
    for k in range(3):
        (slope,) = torch.autograd.grad(value[0, :, k].sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x, retain_graph=True)
        inner = slice(1, -1)  # at the ends the clamp halves the derivative
        assert torch.allclose(slope[inner, 0], table[0, inner, 1, k], atol=1e-12)
        assert torch.allclose(curvature[inner, 0], table[0, inner, 2, k], atol=1e-10)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n_members, hidden", [(1, [16]), (3, [7, 16]), (2, [5, 6, 4])])
def test_compiled_table(n_members, hidden, dtype, tolerance):
    """race::radial_table against stock operations: values, and gradients of every matrix."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        radial = Radial([8, *hidden, 5], n_members, 40, 6)
    finally:
        torch.set_default_dtype(torch.float32)
    assert radial.fused
    weight = torch.randn(n_members, 40, 3, 5, dtype=dtype) * torch.tensor([1.0, 0.1, 0.01], dtype=dtype)[:, None]
    results = []
    for table in (radial.table(), radial.table_aten()):
        results.append([table, *torch.autograd.grad((table * weight).sum(), list(radial.weights))])
    for fused, plain in zip(*results, strict=True):
        assert (fused - plain).abs().max() < tolerance * plain.abs().max()


@pytest.mark.parametrize(
    "knots, weights, message",
    [
        (torch.zeros(2, 5, 8), [torch.zeros(1, 8, 3)], "knots: expected .3, n_knots, n_basis."),
        (torch.zeros(3, 5, 8), [], "weights: expected at least one matrix"),
        (torch.zeros(3, 5, 8), [torch.zeros(1, 8, 3), torch.zeros(1, 4, 3)], "weights: expected .n_members, 3, ..., got .1, 4, 3."),
        (torch.zeros(3, 5, 8), [torch.zeros(1, 8, 3).double()], "weights: expected Float on cpu, got Double"),
    ],
)
def test_bad_arguments_of_the_compiled_table(knots, weights, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.race.radial_table(knots, weights)


def test_table_holds_the_derivatives_of_the_mlp():
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        for p in (2, 6):
            radial = Radial([8, 16, 16, 5], 2, 9, p)
            x = torch.linspace(0, 1, 9).unsqueeze(1).requires_grad_()
            exact = radial.mlp(bessel_basis(x, 8, float(p))[0].unsqueeze(0))
            table = radial.table()
            for m in range(2):
                for k in range(5):
                    (slope,) = torch.autograd.grad(exact[m, :, k].sum(), x, create_graph=True)
                    (curvature,) = torch.autograd.grad(slope.sum(), x, retain_graph=True)
                    found = torch.stack([exact[m, :, k], slope[:, 0], curvature[:, 0]], 1)[1:]  # autograd is not finite at x = 0
                    assert torch.allclose(found, table[m, 1:, :, k], atol=1e-9, rtol=1e-9)
            near = radial.mlp(bessel_basis(torch.tensor([[1e-4]]), 8, float(p))[0].unsqueeze(0))
            start = table[:, 0]
            expected = start[:, 0] + 1e-4 * start[:, 1] + 0.5e-8 * start[:, 2]
            assert torch.allclose(near[:, 0], expected, rtol=1e-9, atol=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)


def test_table_error_falls_as_the_sixth_power():
    torch.manual_seed(0)
    x = torch.rand(500, 1, 1, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        errors = []
        for knots in (257, 513):
            torch.manual_seed(0)
            radial = Radial([8, 32, 32, 20], 2, knots, 6)
            exact = radial.mlp(bessel_basis(x[:, 0], 8, 6.0)[0].unsqueeze(0))
            errors.append(((spline_aten(*radial(x)) - exact).abs().max() / exact.abs().max()).item())
    finally:
        torch.set_default_dtype(torch.float32)
    assert 40 < errors[0] / errors[1] < 100


def test_tabulated_model_equals_the_exact_one(atoms):
    exact = make_model(radial_knots=0)
    a = exact(graph_of(atoms))["forces"]
    errors = []
    for knots in (128, 256, 512):
        table = make_model(radial_knots=knots)
        table.load_state_dict(exact.state_dict())
        errors.append(((table(graph_of(atoms))["forces"] - a).abs().max() / a.abs().max()).item())
    assert 1e-6 < errors[0] < 1e-4 and 0 < errors[2] < errors[1] < 1e-6
