"""A schedule for `nequip-train` that ends when the time does; named in nequip.yaml.

Time is processor time of the process and its children since its start: compilation,
reading of data and validation are part of it.
"""

import math
import resource

from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import LambdaLR


def spent() -> float:
    """Seconds of processor time so far."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


class Cosine(LambdaLR):
    """The learning rate falls from its initial value to `smallest` times that, as half a
    cosine of the time since the first step.
    """

    def __init__(self, optimizer, seconds: float, smallest: float):
        self.begin: float | None = None
        self.seconds, self.smallest = seconds, smallest
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        if step == 0:
            return 1.0
        if self.begin is None:
            self.begin = spent()
        part = (spent() - self.begin) / max(self.seconds - self.begin, 1e-3)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(part, 1.0)))
        return self.smallest + (1.0 - self.smallest) * cosine


class Stop(Callback):
    """Ends training so that one more validation still fits into the time."""

    def __init__(self, seconds: float):
        self.seconds, self.validation, self.begin = seconds, 0.0, 0.0

    def on_validation_start(self, trainer, module) -> None:
        self.begin = spent()

    def on_validation_end(self, trainer, module) -> None:
        if not trainer.sanity_checking:
            self.validation = spent() - self.begin

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if spent() + self.validation > self.seconds:
            trainer.should_stop = True
