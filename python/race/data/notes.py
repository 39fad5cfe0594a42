"""Remarks on a file that do not stop the work: each said once, with the frames that it is
about.
"""

import logging
from collections.abc import Sequence

log = logging.getLogger("race.data")


class Notes:
    """Collects remarks while a file is read; `say` prints one line each (Python's logging,
    logger race.data, so that a program may silence or keep them).
    """

    def __init__(self) -> None:
        self.frames: dict[str, list[int]] = {}

    def add(self, text: str, frame: int) -> None:
        """Notes that `text` is true of a frame."""
        known = self.frames.setdefault(text, [])
        if not known or known[-1] != frame:
            known.append(frame)

    def say(self, where: object, n_frames: int) -> None:
        """Warns once for each note, with the frames that it is of."""
        for text, frames in self.frames.items():
            which = "" if len(frames) == n_frames else f", frames {spans(frames)}"
            log.warning("%s%s: %s", where, which, text)
        self.frames.clear()


def spans(numbers: Sequence[int], most: int = 6) -> str:
    """0-4, 7, 9-12, ..., with the count if some are not shown."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs[:most])
    return shown + (f", ... ({len(numbers)} in all)" if len(runs) > most else "")
