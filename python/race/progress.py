"""Progress of long work: a bar on a terminal, nothing or one line elsewhere."""

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
logger = logging.getLogger(__name__)


def bar(
    *columns: TextColumn,
    console: Console | None = None,
    hidden: bool = False,
    auto_refresh: bool = True,
) -> Progress:
    """A bar with its text before, its count and remaining time after it, and `columns` last.
    It is on stderr and goes when it is done; where there is no terminal it does nothing.
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *columns,
        console=console,
        transient=True,
        auto_refresh=auto_refresh,
        disable=hidden or not console.is_terminal,
    )


def progress(
    items: Iterable[T], description: str, total: int | None = None, hidden: bool = False
) -> Iterator[T]:
    """The items, with a bar on a terminal; elsewhere one line says what is done.

    Args:
        items: of the work.
        description: what is done with them.
        total: how many there are, where `len(items)` does not say.
        hidden: no bar and no line, for work that is short.
    """
    with bar(hidden=hidden) as shown:
        if shown.disable and not hidden:
            logger.info(description)
        yield from shown.track(items, total=total, description=description)
