"""Weights of many members from the weights of few: the member axis comes first in every
parameter.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from race.config import OPEN, ModelConfig, ModelConstants
from race.errors import RaceError
from race.model.race import RACE
from race.predict.moments import spread_of_independent
from race.train.pad import SIZES, containing, fill


def stack_members(models: Sequence[RACE], names: Sequence[str] | None = None) -> RACE:
    """One model whose members are those of `models`, in order, padded with zeros to one size
    where they differ in size (race.train.pad).

    All must share the rest of their architecture and what members share: elements, E0,
    sigma0, the scale up to a factor. The factors on noise and spread (race.train.noise)
    belong to each model by itself: of the stack they are those of members trained apart.

    Raises:
        RaceError: two models differ in more than weights and size; names the first option
            that does.
    """
    names = names or [f"model {k}" for k in range(len(models))]
    first = _shared(models[0])
    for model, name in zip(models[1:], names[1:], strict=True):
        for key, value in _shared(model).items():
            if value != first[key]:
                option = "atomic_energies" if key == "energy_shift" else key
                raise RaceError(
                    f"model.{key} differs, so the models cannot share one ensemble",
                    where=name,
                    expected=f"{first[key]} as in {names[0]}",
                    got=str(value),
                    remedy="train the members on the same data and split, or set "
                    f"model.{option} in their configs",
                )
    n_members = sum(model.config.n_members for model in models)
    size = containing([model.config for model in models])
    constants = models[0].constants.as_trained().with_spread(spread_of_independent(n_members))
    stacked = RACE(
        size.model_copy(update={"n_members": n_members}),
        constants,
        next(models[0].parameters()).dtype,
    )
    fill(stacked, models)
    return stacked


def _shared(model: RACE) -> dict[str, object]:
    """The options and constants that all members of an ensemble share."""
    options = model.config.model_dump(exclude={"n_members", *OPEN, *SIZES})
    constants = model.constants.as_trained().model_dump(exclude={"avg_num_neighbors"})
    scale = model.constants.scale
    return (
        options
        | {"radial_mlp": f"{len(model.config.radial_mlp)} hidden layers"}
        | constants
        | {"scale": [float(f"{value / scale[0]:.12g}") for value in scale]}  # but for a factor
    )


def initial_model(
    config: ModelConfig, constants: ModelConstants, seed: int, dtype: torch.dtype
) -> RACE:
    """M independent initialisations: member m is what a single model with seed + m starts from."""
    single = config.model_copy(update={"n_members": 1})
    models = []
    with torch.random.fork_rng(devices=[]):
        for member in range(config.n_members):
            torch.manual_seed(seed + member)
            models.append(RACE(single, constants, dtype))
    return stack_members(models)


def bootstrap_draws(n_frames: int, n_members: int, seed: int) -> Tensor:
    """int64 [n_frames, n_members]: how often each member has drawn each frame, of n_frames draws
    with replacement. Member m's are those of a single model with seed + m.
    """
    even = np.full(n_frames, 1.0 / n_frames)
    columns = [
        # RandomState's stream is frozen; the 1 tells it from the order of the first epochs
        np.random.RandomState([seed + member, 0, 1]).multinomial(n_frames, even)
        for member in range(n_members)
    ]
    return torch.from_numpy(np.stack(columns, axis=1))


def best_rows(new: dict[str, Tensor], old: dict[str, Tensor], better: Tensor) -> dict[str, Tensor]:
    """Takes the rows `better` [n_members] of `new`, the others of `old`."""
    return {
        name: torch.where(better.view(-1, *[1] * (tensor.dim() - 1)), tensor, old[name])
        for name, tensor in new.items()
    }
