"""Exponentials of symmetric matrices against torch.linalg.matrix_exp, and their derivatives."""

import pytest
import torch

from race.model.expm import expm_traceless, inverse_quadratic


def traceless(n: int, norm: float, dtype=torch.float64) -> torch.Tensor:
    """Random symmetric traceless matrices of one Frobenius norm, with degenerate and zero
    ones among them.
    """
    gen = torch.Generator().manual_seed(0)
    a = torch.randn(n, 3, 3, dtype=dtype, generator=gen)
    a[0] = torch.diag(torch.tensor([1.0, 1.0, -2.0], dtype=dtype))
    a[1] = torch.diag(torch.tensor([1.0, -1.0, 0.0], dtype=dtype))
    a = a + a.mT
    a = a - a.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(3, dtype=dtype)
    a = norm * a / a.norm(dim=(-2, -1), keepdim=True)
    a[2] = 0.0
    return a


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 2e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize("norm", [1e-6, 0.5, 5.0])
def test_equals_matrix_exp(norm, dtype, tolerance):
    q = traceless(200, norm, dtype)
    found, expected = expm_traceless(q), torch.linalg.matrix_exp(q.double())
    error = (found - expected).abs().amax((-2, -1)) / expected.abs().amax((-2, -1))
    assert error.max() < tolerance
    wrong = (expm_traceless(q * (1 + 1e3 * tolerance)) - expected).abs().amax(
        (-2, -1)
    ) / expected.abs().amax((-2, -1))
    assert norm < 0.1 or wrong[3:].max() > tolerance
    assert torch.equal(found[2], torch.eye(3, dtype=dtype))


def test_derivatives():
    """Along symmetric traceless directions, where it is defined; degenerate eigenvalues
    included.
    """
    q = traceless(5, 2.0)[:3]
    basis = traceless(8, 1.0)[3:]

    def function(c):
        return expm_traceless(q + torch.einsum("nk,kab->nab", c, basis))

    c = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, c)
    assert torch.autograd.gradgradcheck(function, c)
    (found,) = torch.autograd.grad((function(c) * basis[0]).sum(), c)
    (expected,) = torch.autograd.grad(
        (torch.linalg.matrix_exp(q + torch.einsum("nk,kab->nab", c, basis)) * basis[0]).sum(), c
    )
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_quadratic_form():
    """Value and gradients of e^T expm(-Q) e against those through expm_traceless, with equal
    and nearly equal eigenvalues, and several e for each Q.
    """
    q = traceless(40, 3.0)
    q[3] = q[0] + 1e-5 * q[4]
    gen = torch.Generator().manual_seed(1)
    error = torch.randn(40, 4, 3, dtype=torch.float64, generator=gen)
    weights = torch.randn(40, 4, dtype=torch.float64, generator=gen)

    def through_series(q, error):
        return (error.unsqueeze(-2) @ expm_traceless(-q) @ error.unsqueeze(-1))[..., 0, 0]

    results = []
    for form in (inverse_quadratic, through_series):
        leaves = [q.clone().requires_grad_(), error.clone().requires_grad_()]
        value = form(leaves[0].unsqueeze(1), leaves[1])
        dq, de = torch.autograd.grad((value * weights).sum(), leaves)
        # Where Q is symmetric and traceless; only there do the two agree
        dq = 0.5 * (dq + dq.mT)
        dq = dq - dq.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(3)
        results.append((value, dq, de))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() < 1e-11 * expected.abs().max()
