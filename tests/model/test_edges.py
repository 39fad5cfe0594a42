"""The edge basis against e3nn and against autograd."""

import torch
from e3nn import o3

from race.model.edges import EdgeBasis


def make(lmax=3, tabulated=False, dtype=torch.float64):
    return EdgeBasis(4.0, 8, 6, lmax, tabulated, dtype)


def test_harmonics_equal_e3nn():
    vector = torch.randn(50, 3, dtype=torch.float64)
    for lmax in range(4):
        _, sh, _, _ = make(lmax)(vector)
        assert (sh - o3.spherical_harmonics(list(range(lmax + 1)), vector, True, "component")).abs().max() < 1e-13


def test_vjp_equals_autograd():
    vector = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    for tabulated in (False, True):
        basis = make(tabulated=tabulated)
        radial, sh, radial_grad, sh_grad = basis(vector)
        bar_radial, bar_sh = torch.randn(20, 2, radial.shape[1], dtype=torch.float64), torch.randn(20, 2, 16, dtype=torch.float64)
        ours = basis.vjp(vector, radial_grad, sh_grad, bar_radial, bar_sh)
        for group in range(2):
            total = (radial * bar_radial[:, group]).sum() + (sh * bar_sh[:, group]).sum()
            (expected,) = torch.autograd.grad(total, vector, retain_graph=True)
            assert torch.allclose(ours[:, group], expected, rtol=0, atol=1e-10)
        assert not torch.allclose(ours[:, 0], expected)  # groups have their own adjoints


def test_every_construction_is_the_same_bit_for_bit():
    one, other = make(), make()
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, dict(other.named_buffers())[name])
