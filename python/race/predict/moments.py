"""The algebra of uncertainty: from M members to mean, covariance and information.

Members m = 1..M are weight samples. By the law of total variance

    mean      = <mean_m>
    aleatoric = <cov_m>
    epistemic = <(mean_m - mean)(mean_m - mean)^T> (+ <epistemic_m>),

<.> being the average over members (so the variance is the population one, 1/M); the last
term is the evidential head's own. The compiled twin of this file is the runtime's, which
LAMMPS uses; the tests compare them.

A quantity of one number has means [n, M] and variances [n]; one of d numbers has means
[n, M, d] and covariances [n, d, d]. Everything is differentiable.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """mean [n] or [n, d]; aleatoric and epistemic: variances [n] or covariances [n, d, d]."""

    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor

    @property
    def total(self) -> Tensor:
        return self.aleatoric + self.epistemic


def total_variance(
    members: Tensor, aleatoric: Tensor | None = None, epistemic: Tensor | None = None
) -> Moments:
    """The law of total variance.

    Args:
        members: [n, M] or [n, M, d], each member's mean.
        aleatoric: [n] or [n, d, d], the members' own (co)variances, averaged over them;
            None for zero.
        epistemic: likewise, what the members themselves hold to be epistemic.
    """
    mean = members.mean(1)
    spread = members - mean.unsqueeze(1)
    if members.dim() == 2:
        between = (spread * spread).mean(1)
    else:
        between = torch.einsum("nma,nmb->nab", spread, spread) / members.shape[1]
    return Moments(
        mean,
        torch.zeros_like(between) if aleatoric is None else aleatoric,
        between if epistemic is None else between + epistemic,
    )


def _cholesky(cov: Tensor) -> Tensor:
    """Lower triangular factors; NaN where a matrix is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(cov)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def log_determinant(cov: Tensor) -> Tensor:
    """ln det of symmetric matrices, [..., d, d] -> [...]; NaN where one is not positive
    definite.

    By Cholesky: a determinant of variances underflows long before its logarithm does.
    """
    return 2.0 * _cholesky(cov).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def mahalanobis(error: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """e^T Sigma^-1 e and ln det Sigma, each [...], of errors [..., d] and covariances [...,
    d, d]; NaN where one is not positive definite.
    """
    factor = _cholesky(cov)
    white = torch.linalg.solve_triangular(factor, error.unsqueeze(-1), upper=False).squeeze(-1)
    return (white * white).sum(-1), 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def bald(total: Tensor, mean_logdet: Tensor) -> Tensor:
    """Mutual information of a label and the member that is right, nats (Houlsby et al. 2011,
    arXiv:1112.5745), with the mixture of the members' Gaussians replaced by the Gaussian
    of its moments:

        1/2 ln det Sigma_total - mean_m 1/2 ln det Sigma_m

    It is zero where members agree, however large the noise.

    Args:
        total: [n] variances or [n, d, d] covariances.
        mean_logdet: [n], ln det of what each member holds to be noise, averaged over members.
    """
    return 0.5 * ((total.log() if total.dim() == 1 else log_determinant(total)) - mean_logdet)
