"""Channels that a readout predicts beside the energy, and how they become variances and
3x3 covariances.

Raw channels per atom and member, in this order (uncertainty channels are averaged over
layers, energies summed):

    point        E
    energy       E, s
    cholesky     E, s, c0..c5          paper eqs. 18-21
    equivariant  E, s, a, t0..t4       log-Euclidean: Sigma = sigma0^2 expm(a I + Q(t))
    evidential   E, s, a, nu, kappa, t0..t4      e2IP (arXiv:2602.10419), normal-inverse-Wishart
    eip          E, s, nu, alpha, beta, t0..t4 of each      eIP, normal-inverse-gamma

With a stress_head its channels (race.model.stress) follow the scalars, before t0..t4.

`eip` (Xu et al., Nat. Commun. 17, 937, 2026) gives each Cartesian component of a force a
normal-inverse-gamma evidence of its own. A parameter of component k is softplus(x_k),
x_k = s + Q_kk(t), the value in the direction k of a function of directions, s + n^T Q n.
The published model applies its softplus layers to the components of vectors. That too is a
function of the direction, but may differ in n and -n, which no variance does.
The covariance is diagonal in whatever frame the atoms are given: it does not rotate.

Energy noise: sigma_E^2 = sum_i sigma0_E^2 exp(s_i) (extensive), s_i softly bounded; or the
paper's exp(mean_i s_i).
"""

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.heads import HEADS, NOISE_BOUND
from race.model.expm import expm_traceless, inverse_quadratic

# Bound of |s| of energies: far from the data s is large, and exp(s) would be infinite. Up to here
# s is as it is; an atom's deviation is then e^5 = 148 times sigma0_E. That of forces is one of the
# model's constants.
ENERGY_BOUND = 10.0

CHOLESKY_JITTER = (
    1e-6  # (eV/A)^2; the paper's code has 1e-3, a floor of 31.6 meV/A above the errors it models
)
EVIDENTIAL_REGULARISER = 0.1  # lambda_reg
EIP_FLOOR = 1e-6  # of nu, alpha - 1 and beta / sigma0^2
EIP_REGULARISER = 0.1  # lambda of eIP, of an error in units of sigma0


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
    six_rows: Tensor
    six_columns: Tensor

    def __init__(
        self, head: str, sigma0: float, dtype: torch.dtype, noise_bound: float = NOISE_BOUND
    ):
        """noise_bound: of |a|."""
        super().__init__()
        self.head = head  # the operator's argument
        form = HEADS[head].covariance
        self.cholesky, self.log_euclidean = form == "cholesky", form == "log-Euclidean"
        self.diagonal = form == "diagonal"
        self.own_epistemic = HEADS[head].own_epistemic
        self.fused = (
            False  # `columns` by the compiled operator, which has no derivative: in deployed models
        )
        self.sigma0_squared = float(sigma0) ** 2
        self.jitter, self.floor = CHOLESKY_JITTER, EIP_FLOOR
        self.noise_bound = noise_bound
        self.register_buffer("basis", quadrupole_basis(dtype), persistent=False)
        self.register_buffer("identity", torch.eye(3, dtype=dtype), persistent=False)
        self.register_buffer(
            "six",
            torch.tensor([3 * a + b for a, b in zip(SIX_ROWS, SIX_COLUMNS, strict=True)]),
            persistent=False,
        )
        self.register_buffer("six_rows", torch.tensor(SIX_ROWS), persistent=False)
        self.register_buffer("six_columns", torch.tensor(SIX_COLUMNS), persistent=False)

    def log_parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """a [...], Q [..., 3, 3] of S = a I + Q."""
        t = soft_bound_norm(raw[..., -5:])
        a = soft_bound(raw[..., 2], self.noise_bound)
        return a, (t @ self.basis).unflatten(-1, (3, 3))

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

    def gamma_evidence(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """nu, alpha - 1, beta (eV/A)^2 of the head `eip`, all above 0, each [..., 3]. alpha itself
        would round off what makes the variance where it is near 1.
        """
        q = raw[..., -15:].unflatten(-1, (3, 5)) @ self.basis
        x = raw[..., 2:5].unsqueeze(-1) + q[..., ::4]  # Q_kk; [..., parameter, component]
        nu, excess, beta = (torch.nn.functional.softplus(x) + self.floor).unbind(-2)
        return nu, excess, beta * self.sigma0_squared

    def variances(self, raw: Tensor) -> Tensor:
        """Of the head `eip`: aleatoric, beta / (alpha - 1), [..., 3] in (eV/A)^2."""
        _, excess, beta = self.gamma_evidence(raw)
        return beta / excess

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
        if self.diagonal:
            return torch.diag_embed(self.variances(raw))
        return torch.zeros_like(raw[..., :1])[..., None] * self.identity

    def columns(self, raw: Tensor) -> Tensor:
        """Sigma as six columns in SIX_ORDER: raw [n, M, n_out] -> [n, M, 6]"""
        if self.fused:
            return torch.ops.race.force_covariance(
                raw,
                self.basis,
                self.head,
                self.sigma0_squared**0.5,
                self.jitter,
                self.noise_bound,
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
        if self.diagonal:
            variances = self.variances(raw)
            return (error * error / variances).sum(-1), variances.log().sum(-1)
        raise ValueError(f"head {self.head} predicts no force covariance")

    def pseudo_observations(self, raw: Tensor) -> Tensor:
        """By which a head that tells both parts divides the aleatoric variance of each component
        of the force to get the epistemic one: [..., 3].
        """
        if self.diagonal:
            return self.gamma_evidence(raw)[0]
        return evidential_kappa(raw).unsqueeze(-1).expand_as(raw[..., :3])

    def epistemic(self, aleatoric: Tensor, raw: Tensor) -> Tensor:
        """D^-1/2 aleatoric D^-1/2 with D = diag(pseudo_observations), of covariances
        [..., 3, 3] or columns [..., 6]; raw channels [..., C].
        """
        root = self.pseudo_observations(raw).rsqrt()
        if aleatoric.dim() > raw.dim():
            return aleatoric * root.unsqueeze(-1) * root.unsqueeze(-2)
        pairs = root.index_select(-1, self.six_rows) * root.index_select(-1, self.six_columns)
        return aleatoric * pairs

    def total_logdet(self, raw: Tensor, logdet: Tensor) -> Tensor:
        """ln det of aleatoric and epistemic covariance together, [...], from ln det of
        `mahalanobis_logdet`.
        """
        if not self.own_epistemic:
            return logdet
        logdet = logdet + torch.log1p(1.0 / self.pseudo_observations(raw)).sum(-1)
        if self.log_euclidean:  # that was of Sigma0
            nu = evidential_nu(raw)
            logdet = logdet + 3.0 * torch.log(nu / (nu - 4.0))
        return logdet

    def evidence_nll(self, raw: Tensor, error: Tensor) -> Tensor:
        """Per-atom loss of the heads that tell both parts, [...]; error [..., 3] in eV/A."""
        if self.diagonal:
            return eip_nll(self, raw, error)
        return evidential_nll(self, raw, error)


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


def eip_nll(
    covariance: ForceCovariance,
    raw: Tensor,
    error: Tensor,
    regulariser: float = EIP_REGULARISER,
) -> Tensor:
    """Per-atom loss of eIP, summed over components: Student-t likelihood of the
    normal-inverse-gamma evidence plus (2 nu + alpha) |e| (Amini et al., arXiv:1910.02600,
    eqs. 8, 9), this e in units of sigma0.

    raw [..., 20], error [..., 3] eV/A -> [...].
    """
    nu, excess, beta = covariance.gamma_evidence(raw)
    alpha, omega = 1.0 + excess, 2.0 * beta * (1.0 + nu)
    nll = (
        torch.lgamma(alpha)
        - torch.lgamma(alpha + 0.5)
        + 0.5 * torch.log(torch.pi * omega / nu)
        + (alpha + 0.5) * torch.log1p(nu * error * error / omega)
    )
    size = error.abs() / covariance.sigma0_squared**0.5
    return (nll + regulariser * (2.0 * nu + alpha) * size).sum(-1)
