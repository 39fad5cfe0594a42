"""The grade by a Gaussian mixture (Zhu, Batzner, Musaelian and Kozinsky 2023, J. Chem. Phys.
158, 164111): how improbable an atom's features are among those of the training set.

The features, their projection and the division by elements are those of the Mahalanobis
distance (race.model.grade). The density p of an element's atoms is a sum of K Gaussians. With
their shares w_c in the sum of the peaks, sum_c w_c = 1, and the distances d_c from their means,

    grade = sqrt(-2 ln(p / p_0)) / quantile,    p / p_0 = sum_c w_c exp(-d_c^2 / 2),

which rises with the negative log likelihood, is not negative, and for one Gaussian is the
Mahalanobis distance. (The paper has one mixture for all elements, in all features, and the
likelihood itself.) K is one of COMPONENTS, chosen by the likelihood of atoms held out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from race.model.grade import QUANTILE, SHRINKAGE, projection_of

COMPONENTS = (1, 2, 4, 8)
HELD_OUT = 0.2  # of the atoms, the last: they choose K
MIN_ATOMS = 50  # for a component, on average
N_STEPS, TOLERANCE = 50, 1e-3  # of expectation and maximisation; nats an atom


class MixtureGrade(nn.Module):
    """Buffers in float64; there are none before `fit`. Components that an element does not have
    have a share of zero; an element that was never seen has none.
    """

    projection: Tensor  # [W, D]
    mean: Tensor  # [S, K, D]
    whiten: Tensor  # [S, K, D, D]
    log_share: Tensor  # [S, K]
    quantile: Tensor  # [S]

    def __init__(self) -> None:
        super().__init__()
        for name in ("projection", "mean", "whiten", "log_share", "quantile"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

    def forward(self, z: Tensor, species: Tensor) -> Tensor:
        """Features z [n, W] -> [n]; infinite for elements that the training set does not have."""
        x = z.to(self.projection.dtype) @ self.projection  # [n, D]
        grade = torch.full_like(x[:, 0], float("inf"))
        for k in range(self.whiten.shape[0]):
            logs: list[Tensor] = []
            for c in range(self.whiten.shape[1]):
                white = (x - self.mean[k, c]) @ self.whiten[k, c].t()
                logs.append(self.log_share[k, c] - 0.5 * white.square().sum(1))
            log_ratio = torch.logsumexp(torch.stack(logs), dim=0).clamp(max=0.0)
            of_k = torch.sqrt(-2.0 * log_ratio) / self.quantile[k]
            grade = torch.where(species == k, of_k, grade)
        return grade


@dataclass(frozen=True)
class Mixture:
    """weights [K], means [K, D] and the inverse Cholesky factors [K, D, D] of covariances."""

    weights: Tensor
    means: Tensor
    whiten: Tensor

    @property
    def log_peaks(self) -> Tensor:
        """ln of each weight times the density at its mean, without the factor of pi: [K]."""
        return self.weights.log() + self.whiten.diagonal(dim1=1, dim2=2).log().sum(1)

    def logs(self, x: Tensor) -> Tensor:
        """Of the components' densities times their weights at x [n, D]: [n, K]."""
        distances = torch.stack(
            [
                ((x - mean) @ whiten.t()).square().sum(1)
                for mean, whiten in zip(self.means, self.whiten, strict=True)
            ],
            dim=1,
        )
        return self.log_peaks - 0.5 * distances

    def log_density(self, x: Tensor) -> Tensor:
        """ln of the density at x [n, D], without the factor of pi: [n]."""
        return torch.logsumexp(self.logs(x), 1)


def fit(grade: MixtureGrade, features: Tensor, species: Tensor, n_species: int) -> dict[str, Any]:
    """As race.model.grade.fit, with the numbers of components by species."""
    features = features.to(torch.float64)
    projection = projection_of(features)
    D, found = projection.shape[1], {}
    for k in range(n_species):
        x = features[species == k] @ projection
        if len(x) > 0:
            found[k] = chosen(x)
    K = max(len(mixture.weights) for mixture in found.values())
    grade.projection = projection
    grade.mean = torch.zeros(n_species, K, D, dtype=torch.float64)
    grade.whiten = torch.zeros(n_species, K, D, D, dtype=torch.float64)
    grade.log_share = torch.full((n_species, K), -torch.inf, dtype=torch.float64)
    grade.quantile = torch.ones(n_species, dtype=torch.float64)
    for k, mixture in found.items():
        n = len(mixture.weights)
        grade.mean[k, :n], grade.whiten[k, :n] = mixture.means, mixture.whiten
        grade.log_share[k, :n] = torch.log_softmax(mixture.log_peaks, 0)
    own = grade(features, species)
    for k in found:
        # One atom, or atoms all alike, have no spread to measure by
        grade.quantile[k] = torch.quantile(own[species == k], QUANTILE).clamp_min(1e-6)
    components = [len(found[k].weights) if k in found else 0 for k in range(n_species)]
    return {
        "kind": "gmm",
        "n_atoms": len(features),
        "dimensions": D,
        "quantile": QUANTILE,
        "components": components,
    }


def chosen(x: Tensor) -> Mixture:
    """The mixture of x [n, D], with the smallest K whose likelihood of atoms held out is
    the best within one standard error.
    """
    first = int((1 - HELD_OUT) * len(x))
    tried = [K for K in COMPONENTS if K * MIN_ATOMS <= first]
    if len(tried) < 2:
        return maximised(x, 1)
    scores = [maximised(x[:first], K).log_density(x[first:]) for K in tried]
    best = max(scores, key=lambda score: float(score.mean()))
    worse = [best - score for score in scores]
    enough = [w.mean() <= w.std() / len(w) ** 0.5 for w in worse]
    return maximised(x, tried[enough.index(True)])


def maximised(x: Tensor, K: int) -> Mixture:
    """Expectation and maximisation from centres far apart. Covariances are shrunk to that of
    all, by as many atoms of it as there are dimensions.
    """
    n, D = x.shape
    mean = x.mean(0)
    covariance = (x - mean).t() @ (x - mean) / n
    floor = SHRINKAGE * covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(D).to(x)
    root = torch.linalg.inv(torch.linalg.cholesky(covariance + floor))
    shares = torch.zeros(n, K, dtype=x.dtype)
    shares[torch.arange(n), nearest_of_centres((x - mean) @ root.t(), K)] = 1.0
    last = -torch.inf
    for _ in range(N_STEPS if K > 1 else 1):
        counts = shares.sum(0).clamp_min(1e-9)
        means = shares.t() @ x / counts.unsqueeze(1)
        factors = []
        for c in range(K):
            deviation = x - means[c]
            scatter = (shares[:, c : c + 1] * deviation).t() @ deviation
            own = (scatter + D * covariance) / (counts[c] + D)
            factors.append(torch.linalg.inv(torch.linalg.cholesky(own + floor)))
        mixture = Mixture(counts / counts.sum(), means, torch.stack(factors))
        logs = mixture.logs(x)
        total = torch.logsumexp(logs, 1, keepdim=True)
        shares, likelihood = (logs - total).exp(), float(total.mean())
        if likelihood - last < TOLERANCE:
            break
        last = likelihood
    return mixture


def nearest_of_centres(x: Tensor, K: int) -> Tensor:
    """[n]: the nearest of K rows, which are drawn one after the other by the square of the
    distance from those before (k-means++).
    """
    generator = torch.Generator().manual_seed(0)
    first = int(torch.randint(len(x), (1,), generator=generator))
    square = [(x - x[first]).square().sum(1)]
    for _ in range(K - 1):
        nearest = torch.stack(square).amin(0).clamp_min(1e-300)
        drawn = int(torch.multinomial(nearest, 1, generator=generator))
        square.append((x - x[drawn]).square().sum(1))
    return torch.stack(square).argmin(0)
