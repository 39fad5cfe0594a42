"""The one exception a user sees: what is wrong, where, what was expected, what was received,
and the remedy.
"""

from collections.abc import Sequence


class RaceError(Exception):
    """A user-facing error, printed by the command line as one line with exit status 2.

    Args:
        what: what is wrong, in a few words ("energy is NaN").
        where: file, frame, key or argument ("train.extxyz, frame 12").
        expected, got: the two sides of the mismatch.
        remedy: what the user can do.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        remedy: str | None = None,
    ):
        parts = [f"{where}: {what}" if where is not None else what]
        if expected is not None:
            parts.append(f"expected {expected}")
        if got is not None:
            parts.append(f"got {got}")
        if remedy is not None:
            parts.append(remedy)
        super().__init__("; ".join(parts))

    @classmethod
    def unless_at_least(cls, least: int, value: int, where: str) -> None:
        """Raises a RaceError for a smaller value."""
        if value < least:
            raise cls("out of range", where=where, expected=f"{least} or more", got=value)

    @classmethod
    def of(cls, problems: "Sequence[RaceError]") -> "RaceError":
        """Several problems as one error, one line each."""
        if len(problems) == 1:
            return problems[0]
        error = cls("")
        error.args = ("\n  ".join([f"{len(problems)} problems", *map(str, problems)]),)
        return error
