"""Devices by name."""

import torch

from race.errors import RaceError


def available(name: str, where: str) -> torch.device:
    """Raises RaceError: there is no such device, or torch cannot use it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RaceError(
            "device is not available", where=where, got=name, remedy=str(error).splitlines()[0][:90]
        ) from None
    return device
