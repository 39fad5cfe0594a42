"""The exponential of symmetric matrices, and the quadratic form that it gives."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def expm_traceless(q: Tensor) -> Tensor:
    """expm(Q) of symmetric traceless Q [..., 3, 3], for spectral norms up to about 5;
    float64 to 1e-13, differentiable any number of times.

    By Cayley and Hamilton Q^3 = p Q + d with p = tr(Q^2) / 2, d = det Q: every power is x
    Q^2 + y Q + z with scalars x, y, z, and so are the scaled Taylor series and its
    squares. Some hundred operations on one number per matrix, which
    torch.linalg.matrix_exp exceeds tenfold, and its gradient, an exponential of 6x6
    matrices, by more.
    """
    # ||Q|| <= 5 (2/3)^1/2 in the heads: 0.26 after scaling, where the series' remainder
    # is 1e-14
    n_squarings, order = (
        4,
        10,
    )
    q = q * 0.5**n_squarings
    square = q @ q
    trace = square.diagonal(dim1=-2, dim2=-1).sum(-1)
    p, d = trace / 2.0, (square * q).sum((-2, -1)) / 3.0
    x, y, z = torch.zeros_like(p), torch.zeros_like(p), torch.ones_like(p)
    for k in range(order, 0, -1):  # E <- 1 + (q / k) E
        x, y, z = (
            y / k,
            torch.addcmul(z, x, p) / k,
            torch.addcmul(torch.ones_like(p), x, d, value=1.0 / k),
        )
    for _ in range(n_squarings):
        xx, xy = x * x, 2.0 * x * y
        x, y, z = (
            xx * p + 2.0 * x * z + y * y,
            xx * d + xy * p + 2.0 * y * z,
            torch.addcmul(xy * d, z, z),
        )
    identity = torch.eye(3, dtype=q.dtype, device=q.device)
    return x[..., None, None] * square + y[..., None, None] * q + z[..., None, None] * identity


def expm_symmetric(s: Tensor) -> Tensor:
    """expm(S) of symmetric S [..., n, n], for spectral norms up to about 10; float64 to
    1e-13 of the largest eigenvalue.

    Scaled Taylor series by Horner's rule, squared; differentiable any number of times.
    """
    # ||S|| <= 10: 0.31 after scaling, where the series' remainder is 6e-14
    n_squarings, order = (
        5,
        10,
    )
    s = s * 0.5**n_squarings
    identity = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    e = identity + s / order
    for k in range(order - 1, 0, -1):
        e = identity + (s @ e) / k
    for _ in range(n_squarings):
        e = e @ e
    return 0.5 * (e + e.transpose(-1, -2))


class InverseQuadratic(torch.autograd.Function):
    """`inverse_quadratic`: with the gradient in closed form a training step runs a dozen
    operations where it would run some three hundred through `expm_traceless`.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, error: Tensor) -> Tensor:
        """error^T exp(-Q) error by the eigenvalues of Q."""
        finite = q.isfinite().all(-1).all(-1, keepdim=True)  # LAPACK refuses what is not
        eigenvalues, vectors = torch.linalg.eigh(torch.where(finite.unsqueeze(-1), q, 0.0))
        eigenvalues = torch.where(finite, eigenvalues, torch.nan)
        along = (vectors.mT @ error.unsqueeze(-1)).squeeze(-1)  # components of e, [..., 3]
        weights = torch.exp(-eigenvalues)
        ctx.save_for_backward(eigenvalues, vectors, along, weights)
        return (weights * along * along).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Its gradients with respect to Q and error, in closed form."""
        eigenvalues, vectors, along, weights = ctx.saved_tensors
        grad_error = (vectors @ (2.0 * grad.unsqueeze(-1) * weights * along).unsqueeze(-1)).squeeze(
            -1
        )
        # Divided differences of exp(-x), -exp(-(a + b) / 2) sinh(d) / d with d = (a - b) / 2:
        # finite where eigenvalues meet
        a, b = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
        d = 0.5 * (a - b)
        near = d.abs() < 1e-3
        ratio = torch.where(near, 1.0 + d * d / 6.0, torch.sinh(d) / torch.where(near, 1.0, d))
        differences = -torch.exp(-0.5 * (a + b)) * ratio
        middle = grad[..., None, None] * differences * along.unsqueeze(-1) * along.unsqueeze(-2)
        grad_q = vectors @ middle @ vectors.mT
        return grad_q.sum_to_size(*eigenvalues.shape, 3), grad_error


def inverse_quadratic(q: Tensor, error: Tensor) -> Tensor:
    """e^T expm(-Q) e of symmetric Q [..., 3, 3] and e [..., 3], Q's leading axes broadcast:
    [...]. Differentiable once.
    """
    return InverseQuadratic.apply(q, error)
