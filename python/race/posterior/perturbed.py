"""Members that begin about as far apart as they err."""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from race.data import Batch
from race.model.race import RACE


def as_wide_as_errors(moved: Callable[[float], RACE], batch: Batch, start: float = 1.0) -> RACE:
    """The model `moved(factor)` whose members' forces (without any, energies) spread on a batch
    as their mean errs. The spread is taken to be linear from the factor `start` on.
    """
    model = moved(start)
    batch = batch.to(model.embedding.device)
    with_forces = batch.forces is not None
    quantity, reference = ("forces", batch.forces) if with_forces else ("energy", batch.energy)
    values = getattr(model(batch, forces=with_forces), quantity).detach()
    error, spread = values.mean(1) - cast(Tensor, reference), values.std(1, unbiased=False)
    labelled = torch.isfinite(error)
    ratio = float((error[labelled] ** 2).mean() / (spread[labelled] ** 2).mean())
    return moved(start * math.sqrt(ratio))
