"""What a prediction costs, and where."""

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import torch

from race.evaluate.evaluated import EvaluatedModel

PASSES = 2  # of which the faster counts


def prediction_cost(
    evaluated: EvaluatedModel, frames: Sequence[ase.Atoms], device: str = "cpu"
) -> dict[str, Any]:
    """The entries of a record: microseconds an atom, from structures to energies, forces, stress
    and their uncertainties, and the machine. The model has predicted before.
    """
    seconds = []
    for _ in range(PASSES):
        began = time.perf_counter()
        evaluated.moments(frames)  # the result is on the CPU
        seconds.append(time.perf_counter() - began)
    n_atoms = sum(map(len, frames))
    return {"us_per_atom": 1e6 * min(seconds) / n_atoms, "machine": machine(torch.device(device))}


def machine(device: torch.device) -> str:
    """The GPU, or the processor and how many of its threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    fields = cpuinfo()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:  # names of virtual processors say little
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    n = torch.get_num_threads()
    return f"{name}, {n} thread{'s' * (n > 1)}"


def cpuinfo() -> dict[str, str]:
    """What the system says of the first core, if it says anything."""
    path = Path("/proc/cpuinfo")
    text = path.read_text().split("\n\n")[0] if path.exists() else ""
    lines = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
