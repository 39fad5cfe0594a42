"""Channels that a readout predicts beside the energy, and how they become variances and
3x3 covariances.

Raw channels per atom and member, in this order (uncertainty channels are averaged over
layers, energies summed):

    point        E
    energy       E, s
    cholesky     E, s, c0..c5          paper eqs. 18-21
    equivariant  E, s, a, t0..t4       log-Euclidean: Sigma = sigma0^2 expm(a I + Q(t))
    evidential   E, s, a, nu, kappa, t0..t4      e2IP (arXiv:2602.10419), normal-inverse-Wishart

With a stress_head its channels (race.model.stress) follow the scalars, before t0..t4.

Energy noise: sigma_E^2 = sum_i sigma0_E^2 exp(s_i) (extensive), s_i softly bounded; or the
paper's exp(mean_i s_i).
"""

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.heads import HEADS
from race.model.expm import expm_traceless, inverse_quadratic

# Bound of |s|: far from the data s is large, and exp(s) would be infinite. Up to here s is
# as it is; an atom's deviation is then e^5 = 148 times sigma0_E.
ENERGY_BOUND = 10.0

CHOLESKY_JITTER = (
    1e-6  # (eV/A)^2; the paper's code has 1e-3, a floor of 31.6 meV/A above the errors it models
)
EVIDENTIAL_REGULARISER = 0.1  # lambda_reg


def soft_bound(x: Tensor, limit: float = 4.0) -> Tensor:
    """Identity for |x| <= limit, saturating smoothly (C2) at limit + 1."""
    excess = torch.clamp(x.abs() - limit, min=0.0)
    return torch.where(x.abs() > limit, torch.sign(x) * (limit + torch.tanh(excess)), x)


def soft_bound_norm(t: Tensor) -> Tensor:
    """The same bound on the Euclidean norm of the last axis, so that rotations commute with it."""
    square = (t * t).sum(-1, keepdim=True)
    # Below 4 the factor is 1, whatever the norm: no sqrt(0) gradient
    norm = torch.sqrt(torch.clamp(square, min=1.0))
    return t * torch.where(norm > 4.0, (4.0 + torch.tanh(norm - 4.0)) / norm, torch.ones_like(norm))


def quadrupole_basis(dtype: torch.dtype) -> Tensor:
    """[5, 9]: orthonormal symmetric traceless matrices B_m with Y_2m(n) proportional to
    n^T B_m n.
    """
    w = o3.wigner_3j(1, 1, 2, dtype=torch.float64)  # [3, 3, 5], sum of squares 1
    basis = w.permute(2, 0, 1).reshape(5, 9) * 5**0.5
    n = torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64)
    sign = torch.sign(
        (o3.spherical_harmonics(2, n, False) * (basis @ torch.outer(n, n).flatten())).sum()
    )
    return (sign * basis).to(dtype)


class ForceCovariance(nn.Module):
    """Aleatoric covariance of the force on each atom, from raw head channels."""

    __constants__ = ["fused"]
    basis: Tensor
    identity: Tensor
    six: Tensor

    def __init__(self, head: str, sigma0: float, dtype: torch.dtype):
        super().__init__()
        self.head = head  # the operator's argument
        form = HEADS[head].covariance
        self.cholesky, self.log_euclidean = form == "cholesky", form == "log-Euclidean"
        self.own_epistemic = HEADS[head].own_epistemic
        self.fused = (
            False  # `columns` by the compiled operator, which has no derivative: in deployed models
        )
        self.sigma0_squared = float(sigma0) ** 2
        self.jitter = CHOLESKY_JITTER
        self.register_buffer("basis", quadrupole_basis(dtype), persistent=False)
        self.register_buffer("identity", torch.eye(3, dtype=dtype), persistent=False)
        self.register_buffer(
            "six",
            torch.tensor([3 * a + b for a, b in zip(SIX_ROWS, SIX_COLUMNS, strict=True)]),
            persistent=False,
        )

    def log_parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """a [...], Q [..., 3, 3] of S = a I + Q."""
        t = soft_bound_norm(raw[..., -5:])
        return soft_bound(raw[..., 2]), (t @ self.basis).unflatten(-1, (3, 3))

    def cholesky_factor(self, raw: Tensor) -> Tensor:
        """Lower triangular L [..., 3, 3] (paper eq. 19)."""
        c = raw[..., 2:8]
        diagonal = torch.exp(soft_bound(c[..., 0:3])) * self.sigma0_squared**0.5
        low = c[..., 3:6] * self.sigma0_squared**0.5  # L32, L31, L21
        zero = torch.zeros_like(low[..., 0])
        rows = [
            diagonal[..., 0],
            zero,
            zero,
            low[..., 2],
            diagonal[..., 1],
            zero,
            low[..., 1],
            low[..., 0],
            diagonal[..., 2],
        ]
        return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))

    def matrix(self, raw: Tensor) -> Tensor:
        """Sigma [..., 3, 3] in (eV/A)^2; for `evidential` its nu/(nu-4) Sigma0."""
        if self.cholesky:
            factor = self.cholesky_factor(raw)
            return factor @ factor.transpose(-1, -2) + self.jitter * self.identity
        if self.log_euclidean:
            a, q = self.log_parts(raw)
            sigma = self.sigma0_squared * torch.exp(a)[..., None, None] * expm_traceless(q)
            if self.own_epistemic:
                nu = evidential_nu(raw)
                sigma = sigma * (nu / (nu - 4.0))[..., None, None]
            return sigma
        return torch.zeros_like(raw[..., :1])[..., None] * self.identity

    def columns(self, raw: Tensor) -> Tensor:
        """Sigma as six columns in SIX_ORDER: raw [n, M, n_out] -> [n, M, 6]"""
        if self.fused:
            return torch.ops.race.force_covariance(
                raw, self.basis, self.head, self.sigma0_squared**0.5, self.jitter
            )
        else:
            return self.matrix(raw).flatten(-2).index_select(-1, self.six)

    def mahalanobis_logdet(self, raw: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """e^T Sigma^-1 e and ln det Sigma, each [...], for errors [..., 3] in eV/A."""
        if self.cholesky:
            factor = torch.linalg.cholesky(self.matrix(raw))
            white = torch.linalg.solve_triangular(factor, error.unsqueeze(-1), upper=False).squeeze(
                -1
            )
            return (white * white).sum(-1), 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if self.log_euclidean:
            a, q = self.log_parts(raw)
            quadratic = inverse_quadratic(q, error)
            scale = torch.exp(-a) / self.sigma0_squared
            # Q is traceless, so ln det Sigma = 3 a + 6 ln sigma0, without a factorisation
            return quadratic * scale, 3.0 * a + 3.0 * math.log(self.sigma0_squared)
        raise ValueError(f"head {self.head} predicts no force covariance")


def evidential_nu(raw: Tensor) -> Tensor:
    """Degrees of freedom, above 5: the covariances of the mean and of the noise then exist.
    Raw channels [..., C] -> [...].
    """
    return torch.nn.functional.softplus(raw[..., 3]) + 5.0


def evidential_kappa(raw: Tensor) -> Tensor:
    """Pseudo-observations of the mean, above 0: epistemic = aleatoric / kappa. Raw channels
    [..., C] -> [...].
    """
    return torch.nn.functional.softplus(raw[..., 4]) + 1e-6


def evidential_epistemic(aleatoric: Tensor, raw: Tensor) -> Tensor:
    """aleatoric / kappa, of covariances [..., 3, 3] or columns [..., 6]; raw channels [..., C]."""
    kappa = evidential_kappa(raw)
    for _ in range(aleatoric.dim() - kappa.dim()):
        kappa = kappa.unsqueeze(-1)
    return aleatoric / kappa


def evidential_spread(raw: Tensor) -> Tensor:
    """nu/(nu-4) (1 + 1/kappa), [...]: the total predictive covariance in units of Sigma0."""
    nu = evidential_nu(raw)
    return nu / (nu - 4.0) * (1.0 + 1.0 / evidential_kappa(raw))


def evidential_nll(
    covariance: ForceCovariance,
    raw: Tensor,
    error: Tensor,
    regulariser: float = EVIDENTIAL_REGULARISER,
) -> Tensor:
    """Per-atom loss of e2IP: Student-t likelihood of the normal-inverse-Wishart evidence
    plus (nu + kappa) |e|^2.

    raw [..., 10], error [..., 3] eV/A -> [...].
    """
    nu, kappa = evidential_nu(raw), evidential_kappa(raw)
    # mahalanobis_logdet is that of Sigma0 itself: `matrix` carries the factor nu/(nu-4),
    # the log parts do not
    quadratic, logdet = covariance.mahalanobis_logdet(raw, error)
    spread = (1.0 + kappa) / kappa
    return (
        torch.lgamma((nu - 2.0) / 2.0)
        - torch.lgamma((nu + 1.0) / 2.0)
        + 1.5 * torch.log(torch.pi * nu * spread)
        + 0.5 * logdet
        + (nu + 1.0) / 2.0 * torch.log1p(quadratic / (nu * spread))
        + regulariser * (nu + kappa) * (error * error).sum(-1)
    )
