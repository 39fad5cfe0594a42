"""The algebra of uncertainty: from M members to mean, covariance and information.

Members m = 1..M are weight samples. By the law of total variance

    mean      = <mean_m>
    aleatoric = <cov_m>
    epistemic = <(mean_m - mean)(mean_m - mean)^T> (+ <epistemic_m>),

<.> being the average over members (so the variance is the population one, 1/M); the last
term is the evidential head's own. The compiled twin of this file is the runtime's, which
LAMMPS uses; the tests compare them.

The spread of few members is not the error of their mean. A model's constants have two
factors on the standard deviation of the spread (`spread_of_independent`): one for energies,
one for forces and stress. A factor of 1 is the law of total variance as it stands above.

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
        """Aleatoric and epistemic together."""
        return self.aleatoric + self.epistemic


def spread_of_independent(n_members: int) -> float:
    """The factor that makes of the members' spread the deviation of the truth from their mean.

    Members that were trained apart, each from its own random start, are independent draws
    f_m ~ N(mu, s^2) with unknown mu and s^2. The truth y is another such draw. The mean
    <f> and y are independent, so

        var(y - <f>) = s^2 + s^2 / M = s^2 (M + 1) / M.

    The spread with 1/M, v = <(f_m - <f>)^2>, has the expectation s^2 (M - 1) / M. Hence

        var(y - <f>) = E[v] (M + 1) / (M - 1),

    3 for two members, 9/7 for eight. It is the factor on the variance; returned is its root,
    on the standard deviation. In three dimensions it is the same for every direction. Members
    that share something err together: no such factor can see it, the errors on held out
    frames can (race.train.noise). One member has no spread: 1.

    Samples drawn around a known mean are another case: `normal_draws` centres and widens them,
    so that the mean is exact and the factor 1.
    """
    return ((n_members + 1) / (n_members - 1)) ** 0.5 if n_members > 1 else 1.0


def centred(members: Tensor, spread: float = 1.0) -> Tensor:
    """Deviations from the members' mean, [n, M, ...], times the factor on the spread."""
    return spread * (members - members.mean(1, keepdim=True))


def total_variance(
    members: Tensor,
    aleatoric: Tensor | None = None,
    epistemic: Tensor | None = None,
    spread: float = 1.0,
) -> Moments:
    """The law of total variance.

    Args:
        members: [n, M] or [n, M, d], each member's mean.
        aleatoric: [n] or [n, d, d], the members' own (co)variances, averaged over them;
            None for zero.
        epistemic: likewise, what the members themselves hold to be epistemic.
        spread: factor on the standard deviation of the members about their mean.
    """
    mean, deviation = members.mean(1), centred(members, spread)
    if members.dim() == 2:
        between = (deviation * deviation).mean(1)
    else:
        between = torch.einsum("nma,nmb->nab", deviation, deviation) / members.shape[1]
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


def joint_information(
    energy: Moments, energies: Tensor, forces: Moments, of_members: Tensor, frame: Tensor
) -> Tensor:
    """Information of all labels of a frame together about the members: G [n_frames, M, M], with
    which the mutual information of energy, every force component and the member is

        1/2 ln det(I + G),      G = D^T R^-1 D / M

    D [1 + 3 n_atoms, M]: the members' deviations from their mean; R: the noise,
    independent from atom to atom. By Sylvester's identity it is 1/2 ln det(D D^T / M + R)
    - 1/2 ln det R: the two determinants of `bald` for all labels at once, with the
    members' correlations between atoms. G adds up over frames; their information does
    not.

    Args:
        energy, forces: of n_frames and n_atoms; the noise is their aleatoric part.
        energies: [n_frames, M] deviations, with the factor on the spread.
        of_members: [n_atoms, M, 3] likewise, of the forces.
        frame: [n_atoms] frame of each atom.
    """
    white = torch.linalg.solve_triangular(
        _cholesky(forces.aleatoric), of_members.transpose(1, 2), upper=False
    )  # [n_atoms, 3, M]
    of_atoms = torch.einsum("nam,nak->nmk", white, white)
    by_energy = energies / energy.aleatoric.sqrt().unsqueeze(1)
    total = torch.einsum("fm,fk->fmk", by_energy, by_energy).index_add(0, frame, of_atoms)
    return total / energies.shape[1]
