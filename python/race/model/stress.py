"""Noise of the stress: a 6x6 covariance that rotates as the covariance of a stress does.

A stress is a virial over a volume, and the virial a sum over atoms. As for the energy, the
noise is taken to be independent from atom to atom: variances of the virial add up. k copies
of a cell then have k times the variance of the virial, and 1/k of that of the stress.

    cov(stress) = sum_i P C_i P^T / volume^2,        C_i = (sigma0 * 1 Angstrom)^2 expm(a_i I + S_i)

C_i acts on the coefficients of a symmetric matrix in the orthonormal basis I / 3^1/2, B_1
.. B_5 (race.model.heads.quadrupole_basis); P makes the six columns of them. In this basis
rotations are orthogonal, and a symmetric 6x6 matrix is 2 x 0e + 2 x 2e + 4e:

    a I + S,    S = [ 5 b   t^T                    ]
                    [ t     -b I + W(u) + (v w)_4  ] / norms

with a, b: 0e; t, u: 2e; and (v w)_4 the 4e part of the product of v and w, both 2e.

Models of lmax <= 3 have no features of l = 4. They need none: every harmonic polynomial
of degree 4 is the harmonic part of a product of two of degree 2 (Sylvester 1876: of four
vectors), so (v w)_4 reaches every 4e. But at sites of cubic symmetry v and w vanish, and so
does (v w)_4. Only products of 3o, at sites without inversion, would not.
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.heads import HEADS, NOISE_BOUND
from race.model.expm import expm_symmetric
from race.model.heads import quadrupole_basis, soft_bound, soft_bound_norm

# Angstrom, of the unit sigma0 * UNIT_LENGTH of the virial's noise. The weights of a model
# mean multiples of it: another value would change the predictions of every run.
UNIT_LENGTH = 1.0
STRESS_SCALARS = 2  # a, b
STRESS_TENSORS = 4  # t, u, v, w


def readout_channels(head: str, stress_head: str) -> tuple[int, int]:
    """Scalars and l=2 tensors that a readout gives: scalars of the head, then of the stress;
    tensors of the stress, then of the head.

    So a head finds its own channels at the beginning and at the end of a row, whether
    there are others or not.
    """
    scalars, tensors = HEADS[head].scalars, HEADS[head].tensors
    return (
        (scalars, tensors)
        if stress_head == "none"
        else (scalars + STRESS_SCALARS, tensors + STRESS_TENSORS)
    )


def blocks(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How b, t, u and the coefficients v_m w_n enter S: [36], [5, 36], [5, 36], [25, 36];
    each is an isometry on its irrep.
    """
    of_b = torch.diag(torch.tensor([5.0] + [-1.0] * 5, dtype=torch.float64)) / 30**0.5
    of_t, of_u, of_vw = (torch.zeros(n, 6, 6, dtype=torch.float64) for n in (5, 5, 25))
    for m in range(5):
        of_t[m, 0, m + 1] = of_t[m, m + 1, 0] = 0.5**0.5
    of_u[:, 1:, 1:] = 5**0.5 * o3.wigner_3j(2, 2, 2, dtype=torch.float64).permute(2, 0, 1)
    four = 3.0 * o3.wigner_3j(2, 2, 4, dtype=torch.float64)  # [5, 5, 9], symmetric in the first two
    of_vw[:, 1:, 1:] = torch.einsum("abk,cdk->abcd", four, four).flatten(0, 1)
    return (
        of_b.flatten().to(dtype),
        of_t.flatten(1).to(dtype),
        of_u.flatten(1).to(dtype),
        of_vw.flatten(1).to(dtype),
    )


class StressCovariance(nn.Module):
    """Covariance of each atom's virial, from the raw channels of a readout."""

    of_b: Tensor
    of_t: Tensor
    of_u: Tensor
    of_vw: Tensor
    columns: Tensor
    identity: Tensor

    def __init__(
        self,
        head: str,
        sigma0: float,
        dtype: torch.dtype,
        extra: int = 0,
        noise_bound: float = NOISE_BOUND,
    ):
        """extra: channels between the scalars of the head and those of the stress; noise_bound: of
        the trace over 6.
        """
        super().__init__()
        self.noise_bound = noise_bound
        self.first = HEADS[head].scalars + extra  # of the stress channels in a row
        self.unit = (float(sigma0) * UNIT_LENGTH) ** 2
        for name, tensor in zip(("of_b", "of_t", "of_u", "of_vw"), blocks(dtype), strict=True):
            self.register_buffer(name, tensor, persistent=False)
        basis = torch.cat(
            [
                torch.eye(3, dtype=torch.float64).flatten()[None] / 3**0.5,
                quadrupole_basis(torch.float64),
            ]
        )
        columns = basis.unflatten(1, (3, 3))[
            :, SIX_ROWS, SIX_COLUMNS
        ].T  # P [6, 6]: coefficients -> SIX_ORDER
        self.register_buffer("columns", columns.to(dtype), persistent=False)
        self.register_buffer("identity", torch.eye(6, dtype=dtype), persistent=False)

    def generator(self, raw: Tensor) -> Tensor:
        """a I + S [..., 6, 6], a and the norm of S smoothly bounded."""
        channels = raw[..., self.first :]
        a, b = soft_bound(channels[..., 0], self.noise_bound), channels[..., 1:2]
        t, u, v, w = (
            channels[..., 2:7],
            channels[..., 7:12],
            channels[..., 12:17],
            channels[..., 17:22],
        )
        products = (v.unsqueeze(-1) * w.unsqueeze(-2)).flatten(-2)
        s = soft_bound_norm(b * self.of_b + t @ self.of_t + u @ self.of_u + products @ self.of_vw)
        return a[..., None, None] * self.identity + s.unflatten(-1, (6, 6))

    def forward(self, raw: Tensor) -> Tensor:
        """raw [..., n_out] -> [..., 6, 6] eV^2 in SIX_ORDER: covariance of one atom's part
        of the virial.
        """
        cov = self.unit * expm_symmetric(self.generator(raw))
        return self.columns @ cov @ self.columns.transpose(0, 1)
