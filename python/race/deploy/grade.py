"""The grade of an atom: how unlike the training set's its features are, by one pass of
any model.

The grade is a Mahalanobis distance, in a fixed random projection: from an atom's last
invariant features to those of the training set's atoms of the same element. These
features are the arguments of the activation in the last layer's readout. 1 is the
training set's 99.9 % quantile. The grade says *unlike the training set*, not how wrong.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from race.data.graph import Batch

if TYPE_CHECKING:
    from race.deploy.folded import FoldedRACE

N_DIMENSIONS = 32  # of the projection: what a few hundred atoms of an element determine
QUANTILE = 0.999
SHRINKAGE = 1e-3  # of a covariance towards its mean variance: directions that hardly vary


class Grade(nn.Module):
    """Buffers in float64; there are none before `fit`."""

    projection: Tensor  # [W, D]
    mean: Tensor  # [S, D]
    whiten: Tensor  # [S, D, D], in units of the quantile; zero of an element never seen

    def __init__(self) -> None:
        super().__init__()
        for name in ("projection", "mean", "whiten"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

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


def fit(grade: Grade, features: Tensor, species: Tensor, n_species: int) -> dict[str, float]:
    """Fills the buffers from features [n, W] of the training set's atoms.

    Returns:
        What metadata.json says of it.
    """
    features = features.to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    D = min(N_DIMENSIONS, features.shape[1])
    projection = torch.randn(features.shape[1], D, generator=generator, dtype=torch.float64)
    # Features of one scale: else the projection would be that of the largest
    projection = projection / features.std(0).clamp_min(1e-12).unsqueeze(1)
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


def last_features(
    model: "FoldedRACE", batches: Iterable[Batch], n_atoms: int
) -> tuple[Tensor, Tensor] | None:
    """Features [n, W] and species [n] of at least n_atoms atoms, or of all there are, from a
    model that is prepared; None of no atoms.
    """
    features, species, found = [], [], 0
    for batch in batches:
        dtype = model.g_rows.dtype
        sender, vector = batch.edge_index[0], batch.edge_vector.to(dtype)
        radial, sh, _, _ = model.edges(vector)
        radial, sh = radial.unsqueeze(1), sh.unsqueeze(1)
        g, h = model.embed(batch.species), vector.new_zeros((batch.n_atoms, 0))
        z = g
        for t in range(model.n_layers):
            h, g, _, z = model.layer(t, h, g, radial, sh, sender, batch.row_ptr, batch.species)
        features.append(z[:, : model.n_hidden])
        species.append(batch.species)
        found += batch.n_atoms
        if found >= n_atoms:
            break
    return (torch.cat(features), torch.cat(species)) if features else None
