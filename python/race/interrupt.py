"""Signals that end a run wait until it can end well."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Context inside which SIGTERM (batch systems) and Ctrl-C only set `received`, for a loop
    that stops after the step under way; outside the main thread it does nothing. What the
    process ignores, as in the background of a shell script, it goes on ignoring.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS, again: bool = True) -> None:
        """again: whether a second Ctrl-C ends the run at once."""
        self.signals = signals
        self.again = again
        self.received: signal.Signals | None = None
        self.previous: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> "Interrupt":
        try:
            self.previous = {
                number: signal.signal(number, self._note)
                for number in self.signals
                if signal.getsignal(number) != signal.SIG_IGN
            }
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
        if self.again and self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        self.received = signal.Signals(number)


@contextlib.contextmanager
def postpone_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C waits until the end: code that swallows exceptions would take the one of
    Ctrl-C for another.
    """
    with Interrupt([signal.SIGINT], again=False) as interrupt:
        yield
    if interrupt.received:
        raise KeyboardInterrupt
