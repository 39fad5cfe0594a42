"""What the grade is fitted to (race.model.grade): features of the training set's atoms, by a
model as it is deployed.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from race.data.graph import Batch
from race.deploy.folded import FoldedRACE


def last_features(
    model: FoldedRACE, batches: Iterable[Batch], n_atoms: int
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
