"""Random splits that depend on the seed alone: the same on every machine and every numpy."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from race.errors import RaceError

Item = TypeVar("Item")


def split_indices(n: int, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Disjoint random subsets of range(n), each sorted.

    Args:
        n: number of items.
        sizes: how many items each subset takes; together at most n.
        seed: of the permutation.

    Raises:
        RaceError: the sizes do not fit.
    """
    if min(sizes, default=0) < 0 or sum(sizes) > n:
        raise RaceError(
            "split does not fit", expected=f"sizes >= 0 with sum <= {n}", got=list(sizes)
        )
    # RandomState's stream is frozen by numpy's compatibility policy; Generator's is not.
    order = np.random.RandomState(seed).permutation(n)
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes))[: len(sizes)]]


def validation_split(
    items: Sequence[Item], fraction: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """(training, validation): `fraction` of the items, at least one, validate; order is
    kept in both.

    Raises:
        RaceError: fewer than two items.
    """
    n = len(items)
    if n < 2:
        raise RaceError(
            "too few frames to split off a validation set",
            expected="at least 2",
            got=n,
            remedy="give data.validation files",
        )
    n_validation = min(max(1, round(fraction * n)), n - 1)
    training, validation = split_indices(n, [n - n_validation, n_validation], seed)
    return [items[k] for k in training], [items[k] for k in validation]
