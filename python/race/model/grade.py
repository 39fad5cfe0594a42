"""The grade of an atom: how unlike the training set's its features are, by one pass of
any model.

The grade is a Mahalanobis distance, in a fixed random projection: from an atom's last
invariant features to those of the training set's atoms of the same element. These
features are the arguments of the activation in the last layer's readout. 1 is the
training set's 99.9 % quantile. The grade says *unlike the training set*, not how wrong.
Another is that of a Gaussian mixture (race.model.mixture).
"""

import torch
from torch import Tensor, nn

N_DIMENSIONS = 32  # of the projection: what a few hundred atoms of an element determine
N_ATOMS = 20_000  # of the training set, to fit to
N_RARE = 500  # of an element that has fewer among those, from what follows
QUANTILE = 0.999
SHRINKAGE = 1e-3  # of a covariance towards its mean variance: directions that hardly vary


class Grade(nn.Module):
    """Buffers in float64; there are none before `fit`, or zeros for W = `width` features of
    `n_species` elements, which tensors that a run keeps may fill.
    """

    projection: Tensor  # [W, D]
    mean: Tensor  # [S, D]
    whiten: Tensor  # [S, D, D], in units of the quantile; zero of an element never seen

    def __init__(self, width: int = 0, n_species: int = 0) -> None:
        super().__init__()
        D = min(N_DIMENSIONS, width)
        shapes = {"projection": (width, D), "mean": (n_species, D), "whiten": (n_species, D, D)}
        for name, shape in shapes.items():
            empty = torch.zeros(shape if width > 0 else 0, dtype=torch.float64)
            self.register_buffer(name, empty)

    def forward(self, z: Tensor, species: Tensor) -> Tensor:
        """Features z [n, W] -> [n]; infinite for elements that the training set does not have."""
        x = z.to(self.projection.dtype) @ self.projection  # [n, D]
        distance = torch.full_like(x[:, 0], float("inf"))
        # Element by element: a matrix for each atom would be eight kilobytes of each
        for k in range(self.whiten.shape[0]):
            of_k = torch.linalg.vector_norm((x - self.mean[k]) @ self.whiten[k].t(), dim=1)
            seen = torch.logical_and(species == k, self.whiten[k].any())
            distance = torch.where(seen, of_k, distance)
        return distance


class Sample:
    """The atoms that a grade is fitted to, of batches in random order: the first n_atoms, and of
    each element those that follow up to n_rare. An element is seen wherever it occurs, and no
    more than these are kept.
    """

    def __init__(self, n_atoms: int = N_ATOMS, n_rare: int = N_RARE) -> None:
        self.n_atoms, self.n_rare = n_atoms, n_rare
        self.n_seen = 0
        self.n_of: dict[int, int] = {}  # atoms kept, by species
        self.features: list[Tensor] = []
        self.species: list[Tensor] = []

    def wanted(self, species: Tensor) -> Tensor:
        """Whether to keep each atom [n] of the next batch; then `add` those."""
        keep = torch.arange(self.n_seen, self.n_seen + len(species)) < self.n_atoms
        for k in species.unique().tolist():
            mine = species == k
            before = mine.cumsum(0) - 1 + self.n_of.get(k, 0)
            keep |= mine & (before < self.n_rare)
            self.n_of[k] = self.n_of.get(k, 0) + int((mine & keep).sum())
        self.n_seen += len(species)
        return keep

    def add(self, features: Tensor, species: Tensor) -> None:
        """Features [n, W] and species [n] of the atoms that are wanted."""
        self.features.append(features)
        self.species.append(species)

    def rows(self) -> tuple[Tensor, Tensor]:
        """All features and species."""
        return torch.cat(self.features), torch.cat(self.species)


def projection_of(features: Tensor) -> Tensor:
    """[W, D], of features [n, W] in float64."""
    generator = torch.Generator().manual_seed(0)
    D = min(N_DIMENSIONS, features.shape[1])
    projection = torch.randn(features.shape[1], D, generator=generator, dtype=torch.float64)
    # Features of one scale: else the projection would be that of the largest
    return projection / features.std(0).clamp_min(1e-12).unsqueeze(1)


def fit(grade: Grade, features: Tensor, species: Tensor, n_species: int) -> dict[str, float]:
    """Fills the buffers from features [n, W] of the training set's atoms.

    Returns:
        What metadata.json says of it.
    """
    features = features.to(torch.float64)
    projection = projection_of(features)
    D = projection.shape[1]
    mean = torch.zeros(n_species, D, dtype=torch.float64)
    whiten = torch.zeros(n_species, D, D, dtype=torch.float64)
    for k in range(n_species):
        x = features[species == k] @ projection
        if len(x) == 0:
            continue
        mean[k] = x.mean(0)
        deviation = x - mean[k]
        covariance = deviation.t() @ deviation / len(x)
        floor = SHRINKAGE * covariance.diagonal().mean().clamp_min(1e-12)
        root = torch.linalg.cholesky(covariance + floor * torch.eye(D, dtype=torch.float64))
        inverse = torch.linalg.inv(root)
        distance = (deviation @ inverse.t()).norm(dim=1)
        # One atom, or atoms all alike, have no spread to measure by
        whiten[k] = inverse / torch.quantile(distance, QUANTILE).clamp_min(1e-6)
    grade.projection, grade.mean, grade.whiten = projection, mean, whiten
    return {"n_atoms": len(features), "dimensions": D, "quantile": QUANTILE}
