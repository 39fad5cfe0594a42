"""How long a training will take and how much memory it has taken, measured on its first steps."""

import resource
import time
from collections.abc import Callable

import torch

FIRST, LAST = 2, 8  # steps after which the measurement begins and ends: the first warm up


class CostEstimate:
    """Told of every step of a sitting; says once, in one line, what to expect.

    Args:
        device: of the training.
        n_batches: of an epoch.
        n_epochs: that remain; None where training ends with a time.
        seconds: that remain, where it does.
        say: takes the line.
    """

    def __init__(
        self,
        device: torch.device,
        n_batches: int,
        n_epochs: float | None,
        seconds: float | None,
        say: Callable[[str], None],
    ):
        self.device, self.n_batches, self.say = device, n_batches, say
        self.n_epochs, self.seconds = n_epochs, seconds
        self.n_steps, self.began = 0, 0.0
        self.last = min(LAST, n_batches)  # a validation may follow it

    def step(self) -> None:
        """One more step has been queued."""
        self.n_steps += 1
        if self.n_steps not in (FIRST, self.last) or self.last <= FIRST:
            return
        if self.device.type == "cuda":  # twice in a sitting
            torch.cuda.synchronize(self.device)
        if self.n_steps == FIRST:
            self.began = time.perf_counter()
            return
        each = (time.perf_counter() - self.began) / (self.last - FIRST)
        self.say(self.line(each, peak_memory(self.device)))

    def line(self, each: float, memory: int) -> str:
        """The estimate in words.

        Args:
            each: seconds of a step.
            memory: bytes at the peak.
        """
        epoch = each * self.n_batches
        if self.seconds is not None:
            n = max(1, round(self.seconds / epoch))
            expected = f"about {n} epochs in {duration(self.seconds)}"
        else:
            assert self.n_epochs is not None
            expected = f"{self.n_epochs:.0f} epochs in about {duration(self.n_epochs * epoch)}"
        return (
            f"{duration(each)} a step, {duration(epoch)} an epoch: {expected} and validation; "
            f"{memory / 1e9:.2g} GB of memory"
        )


def duration(seconds: float) -> str:
    """In the largest unit that fits: 3.2 s, 12 min, 5.5 h."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def peak_memory(device: torch.device) -> int:
    """Bytes: what this process has taken at most, of the GPU where it trains there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
