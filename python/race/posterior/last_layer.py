"""The energy as a linear function of the last layers' weights: E = sum_j f_j . w + sum_j
E0_j, and F = J w, for every member.

w are the energy columns of every layer's w_2, one after the other, as the model stores
them; f_j their features, all factors included (fan-in, scale of the element). Everything
else of a readout (the hidden map, the uncertainty channels) is left as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from race.data import Batch
from race.model.layer import Readout
from race.model.race import RACE
from race.posterior.protocol import model_of


def weights(model: RACE) -> Tensor:
    """w of every member, [M, D]; D = n_layers * readout_hidden."""
    return torch.cat([readout.w2[:, :, 0] for readout in _readouts(model)], dim=1)


def _readouts(model: RACE) -> list[Readout]:
    return [cast(Readout, layer.readout) for layer in model.layers]


@torch.no_grad()
def set_weights(model: RACE, w: Tensor) -> None:
    """The inverse of `weights`, in place; w [M, D]."""
    for readout, part in zip(
        _readouts(model), w.split(model.config.readout_hidden, dim=1), strict=True
    ):
        readout.w2[:, :, 0] = part


def features(model: RACE, batch: Batch) -> Tensor:
    """f [n_atoms, M, D] in eV, float64, without gradients: of one prediction."""
    hidden: list[Tensor] = []
    with _inputs_of_last_maps(model, hidden), torch.no_grad():
        model(batch, forces=False)
    norm, shape = (
        model.config.readout_hidden**-0.5,
        (batch.n_atoms, model.n_members, model.config.readout_hidden),
    )
    return (
        torch.cat([h.view(shape) for h in hidden], dim=2).double()
        * norm
        * model.scale[batch.species].view(-1, 1, 1)
    )


def frame_features(model: RACE, batch: Batch) -> Tensor:
    """dE / dw of every frame, [n_frames, M, D], float64."""
    f = features(model, batch)
    return model.pool(f.flatten(1), batch).unflatten(1, f.shape[1:])


@contextmanager
def _inputs_of_last_maps(model: RACE, into: list[Tensor]) -> Iterator[None]:
    """While it lasts, every forward pass appends silu(W_1 h) of each layer, [n_atoms, M *
    readout_hidden].
    """
    hooks = [
        readout.second.register_forward_pre_hook(lambda _, inputs: into.append(inputs[0]))
        for readout in _readouts(model)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def force_features(model: RACE, batch: Batch, chunk: int = 16) -> Tensor:
    """J [n_atoms, M, 3, D] in eV/Angstrom, float64: forces of D copies of each member, their
    w the unit vectors, `chunk` at a time.
    """
    n_features, n_members = weights(model).shape[1], model.n_members
    parts = []
    for first in range(0, n_features, chunk):
        n = min(chunk, n_features - first)
        copies = {name: p.detach().repeat_interleave(n, 0) for name, p in model.named_parameters()}
        # No backward through the radial weights
        unit = model_of(model, copies).to(model.embedding.device).requires_grad_(False)
        set_weights(unit, torch.eye(n_features)[first : first + n].repeat(n_members, 1))
        forces = unit(batch).forces.detach().double()
        parts.append(forces.unflatten(1, (n_members, n)).transpose(2, 3))
    return torch.cat(parts, dim=3)
