"""What the grade is fitted to (race.model.grade): features of the training set's atoms, by a
model as it is deployed.
"""

from collections.abc import Iterable

from torch import Tensor

from race.data.graph import Batch
from race.deploy.folded import FoldedRACE
from race.model.grade import Sample


def last_features(
    model: FoldedRACE, batches: Iterable[Batch], sample: Sample | None = None
) -> tuple[Tensor, Tensor] | None:
    """Features [n, W] and species [n] of a sample of the atoms (race.model.grade), from a model
    that is prepared; None of no atoms.
    """
    sample = sample or Sample()
    for batch in batches:
        keep = sample.wanted(batch.species)
        if not keep.any():
            continue
        dtype = model.g_rows.dtype
        sender, vector = batch.edge_index[0], batch.edge_vector.to(dtype)
        radial, sh, _, _ = model.edges(vector)
        radial, sh = radial.unsqueeze(1), sh.unsqueeze(1)
        g, h = model.embed(batch.species), vector.new_zeros((batch.n_atoms, 0))
        z = g
        for t in range(model.n_layers):
            h, g, _, z = model.layer(t, h, g, radial, sh, sender, batch.row_ptr, batch.species)
        sample.add(z[keep, : model.n_hidden], batch.species[keep])
    return sample.rows() if sample.features else None
