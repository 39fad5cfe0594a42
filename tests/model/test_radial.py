"""Radial weights: the Bessel basis, the table against the MLP, its interpolation."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from race.model.conv import spline_aten, spline_slope_aten
from race.model.radial import Radial, bessel_basis, spline_through

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


def test_splines_are_those_of_scipy():
    """Values and all derivatives that are continuous, of random coefficients."""
    torch.manual_seed(0)
    table = torch.randn(2, 12, 3, dtype=torch.float64)
    x = torch.linspace(0, 0.999, 57, dtype=torch.float64)[:, None].requires_grad_()
    for m in range(2):
        oracle = BSpline(np.arange(-5, 13) / 7, table[m].numpy(), 5)
        for k in range(3):
            value = spline_aten(x, table)[m, :, k]
            for order in range(5):
                expected = torch.from_numpy(
                    oracle.derivative(order)(x.detach()[:, 0].numpy())[:, k]
                )
                assert torch.allclose(value, expected, rtol=1e-9, atol=1e-9 * 7**order)
                if order == 1:
                    assert torch.allclose(
                        spline_slope_aten(x, table)[m, :, k], expected, rtol=1e-12, atol=1e-11
                    )
                value = torch.autograd.grad(value.sum(), x, create_graph=True)[0][:, 0]


def test_table_meets_the_mlp_at_the_knots_and_ends_smoothly():
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        for p, hidden in ((2, [16, 16]), (6, [16]), (6, [5, 6, 4])):
            radial = Radial([8, *hidden, 5], 2, 40, p)
            table, x = radial.table(), torch.linspace(0, 1, 40)[:, None]
            exact = radial.mlp(bessel_basis(x, 8, float(p))[0].unsqueeze(0))
            assert torch.allclose(spline_aten(x, table), exact, atol=1e-12)
            oracle = BSpline(np.arange(-5, 45) / 39, table[0].detach().numpy(), 5)
            scale = exact.abs().max().item()
            for order in range(3):
                assert abs(oracle.derivative(order)(1.0)).max() < 1e-11 * scale * 39**order
            for order in (1, 3):
                assert abs(oracle.derivative(order)(0.0)).max() < 1e-11 * scale * 39**order
    finally:
        torch.set_default_dtype(torch.float32)


def test_decay_scales_the_basis_and_learns_smooth_weights_first():
    """The plain MLP of scaled Bessel functions; of no decay to the last bit. A gradient step moves
    what low functions give more than what high ones give.
    """
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        decayed, plain = Radial([4, 16, 5], 1, 40, 6, 1.5), Radial([4, 16, 5], 1, 40, 6)
        plain.load_state_dict(decayed.state_dict())
        x = torch.rand(1, 30, 4)
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0]) ** -1.5
        scale = scale * 2 / scale.norm()
        assert torch.allclose(decayed.mlp(x), plain.mlp(x * scale), rtol=1e-12, atol=1e-14)
        assert torch.equal(Radial([4, 16, 5], 1, 40, 6, 0.0).basis_scale, torch.ones(4, 1))
        bar = torch.randn(1, 30, 5)
        want = plain.mlp_vjp(x * scale, bar) * scale
        assert torch.allclose(decayed.mlp_vjp(x, bar), want, rtol=1e-12, atol=1e-13)
        dx = torch.randn(1, 30, 4)
        want = plain.mlp_jvp(x * scale, dx * scale)
        assert torch.allclose(decayed.mlp_jvp(x, dx), want, rtol=1e-12, atol=1e-13)
        decayed.mlp(torch.eye(4).unsqueeze(0)).square().sum().backward()
        rows = decayed.weights[0].grad[0].norm(dim=1)
        assert (rows[:-1] > rows[1:]).all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_small_scale_makes_the_mlp_nearly_linear():
    """R is MLP(s x) / s, in the MLP and in the table; what is not linear in x shrinks with s."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        small, plain = Radial([4, 16, 5], 1, 40, 6, 1.5, 1e-3), Radial([4, 16, 5], 1, 40, 6, 1.5)
        plain.load_state_dict(small.state_dict())
        x = 5 * torch.rand(1, 30, 4)
        assert torch.allclose(small.mlp(x), plain.mlp(1e-3 * x) / 1e-3, rtol=1e-12, atol=1e-12)
        R = small.mlp(small.knots.unsqueeze(0) / small.basis_scale.T)
        assert torch.allclose(spline_through(R), small.table(), rtol=1e-10, atol=1e-10)
        curved = [(r.mlp(x) - r.mlp(2 * x) / 2).norm() / r.mlp(x).norm() for r in (small, plain)]
        assert curved[0] < 0.1 * curved[1]
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n_members, n_knots, width", [(1, 4, 3), (2, 5, 1), (3, 40, 17)])
def test_compiled_spline(n_members, n_knots, width, dtype, tolerance):
    """race::spline against the dense solution: coefficients, and the adjoint of the values."""
    torch.manual_seed(0)
    values = torch.randn(n_members, n_knots, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(n_members, n_knots + 4, width, dtype=dtype)
    results = [
        [c, *torch.autograd.grad((c * weight).sum(), values)]
        for c in (torch.ops.race.spline(values), spline_through(values))
    ]
    for fused, plain in zip(*results, strict=True):
        assert (fused - plain).abs().max() < tolerance * plain.abs().max()
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(torch.ops.race.spline, values)


def test_bad_arguments_of_the_compiled_spline():
    with pytest.raises(
        ValueError, match=r"values: expected .n_members, n_knots >= 4, width., got .1, 3, 2."
    ):
        torch.ops.race.spline(torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="values: expected float32 or float64, got Half"):
        torch.ops.race.spline(torch.zeros(1, 4, 2).half())
    with pytest.raises(NotImplementedError, match="differentiable once"):
        values = torch.zeros(1, 4, 2, requires_grad=True)
        torch.autograd.grad(torch.ops.race.spline(values).square().sum(), values, create_graph=True)


def test_table_error_falls_as_the_sixth_power():
    torch.manual_seed(0)
    x = torch.rand(500, 1, 1, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        errors = []
        for knots in (769, 1537):
            torch.manual_seed(0)
            radial = Radial([8, 32, 32, 20], 2, knots, 6)
            exact = radial.mlp(bessel_basis(x[:, 0], 8, 6.0)[0].unsqueeze(0))
            errors.append(
                ((spline_aten(*radial(x)) - exact).abs().max() / exact.abs().max()).item()
            )
    finally:
        torch.set_default_dtype(torch.float32)
    assert 40 < errors[0] / errors[1] < 100


def test_tabulated_model_equals_the_exact_one(atoms):
    exact = make_model(radial_knots=0)
    a = exact(graph_of(atoms)).forces
    errors = []
    for knots in (128, 384, 512):
        table = make_model(radial_knots=knots)
        table.load_state_dict(exact.state_dict())
        errors.append(((table(graph_of(atoms)).forces - a).abs().max() / a.abs().max()).item())
    assert 1e-6 < errors[0] < 1e-3 and 0 < errors[2] < errors[1] < 1e-6
