"""The energy as a linear function of the last layers' weights: E = sum_j f_j . w + sum_j E0_j, and F = J w, for a model of one member.

w are the energy columns of every layer's w_2, one after the other, as the model stores them; f_j their features, all factors included
(fan-in, scale of the element). Everything else of a readout (the hidden map, the uncertainty channels) is left as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from race.data import Batch
from race.model.layer import Readout
from race.model.race import RACE
from race.posterior.protocol import tiled


def weights(model: RACE) -> Tensor:
    """w of every member, [M, D]; D = n_layers * readout_hidden."""
    return torch.cat([readout.w2[:, :, 0] for readout in _readouts(model)], dim=1)


def _readouts(model: RACE) -> list[Readout]:
    return [cast(Readout, layer.readout) for layer in model.layers]


@torch.no_grad()
def set_weights(model: RACE, w: Tensor) -> None:
    """The inverse of `weights`, in place; w [M, D]."""
    for readout, part in zip(_readouts(model), w.split(model.config.readout_hidden, dim=1), strict=True):
        readout.w2[:, :, 0] = part


def features(model: RACE, batch: Batch) -> Tensor:
    """f [n_atoms, D] in eV, float64, without gradients."""
    hidden: list[Tensor] = []
    with _inputs_of_last_maps(model, hidden), torch.no_grad():
        model(batch, forces=False)
    norm = model.config.readout_hidden**-0.5
    return torch.cat(hidden, dim=1).double() * norm * model.scale[batch.species].unsqueeze(1)


@contextmanager
def _inputs_of_last_maps(model: RACE, into: list[Tensor]) -> Iterator[None]:
    """While it lasts, every forward pass appends silu(W_1 h) of each layer, [n_atoms, readout_hidden]."""
    hooks = [readout.second.register_forward_pre_hook(lambda _, inputs: into.append(inputs[0])) for readout in _readouts(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def force_features(model: RACE, batch: Batch, chunk: int = 16) -> Tensor:
    """J [n_atoms, 3, D] in eV/Angstrom, float64: the forces of D members whose w are the unit vectors, `chunk` at a time."""
    n_features = weights(model).shape[1]
    parts = []
    for first in range(0, n_features, chunk):
        n = min(chunk, n_features - first)
        unit = tiled(model, n).to(model.embedding.device).requires_grad_(False)  # no backward through the radial weights
        set_weights(unit, torch.eye(n_features)[first : first + n])
        parts.append(unit(batch)["forces"].detach().double().transpose(1, 2))
    return torch.cat(parts, dim=2)
