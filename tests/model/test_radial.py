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


def test_knots_are_met_and_their_slopes():
    torch.manual_seed(0)
    table = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    x = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None].requires_grad_()
    value = spline_aten(x, table)
    assert torch.allclose(value, table[:, :, 0], atol=1e-14)
    for k in range(3):
        (slope,) = torch.autograd.grad(value[0, :, k].sum(), x, retain_graph=True)
        assert torch.allclose(slope[1:-1, 0], table[0, 1:-1, 1, k], atol=1e-12)


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
            errors.append(((spline_aten(*radial(x)) - exact).abs().max() / exact.abs().max()).item())
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
