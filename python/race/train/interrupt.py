"""SIGTERM (batch systems) and Ctrl-C ask the training loop to stop after the step under way."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Context inside which the two signals only set `received`; outside the main thread it
    does nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.previous: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> "Interrupt":
        try:
            self.previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        except ValueError:  # not the main thread
            self.previous = {}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.previous.items():
            if signal.getsignal(number) == self._note:  # else somebody else's since
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        self.received = signal.Signals(number)
