"""The division of frames into batches, and of a batch among processes. The cost of a frame
is its number of edges.
"""

from collections.abc import Sequence

import numpy as np

# Frames whose sizes differ by less than this factor change places freely.
ALIKE = 1.25


def consecutive_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """`order` cut into pieces; the last may be smaller."""
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def balanced_batches(order: np.ndarray, cost: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """As many batches, of as many frames each (give or take one), but with about the same
    total cost.

    The frames are assigned in rounds from the largest down, one to every batch. In each
    round the largest goes to the batch with the least cost. A batch keeps its number of
    frames, because the loss is a mean over the frames of a batch: frames of small batches
    would weigh more. Frames of like size are assigned as `order` has them, and so are the
    batches themselves: a random order gives random batches.

    Args:
        order: int64 [n], the frames in the order of the epoch.
        cost: [n_frames] of every frame, by index.
        batch_size: largest number of frames in a batch.
    """
    n_batches = -(-len(order) // batch_size)
    sizes = np.floor(np.log(np.maximum(cost[order], 1)) / np.log(ALIKE))
    descending = order[np.argsort(-sizes, kind="stable")]
    place = np.empty(len(order), dtype=np.int64)  # batch of descending[k]
    load = np.zeros(n_batches)
    for first in range(0, len(order), n_batches):
        hand = cost[descending[first : first + n_batches]]
        place[first + np.argsort(-hand, kind="stable")] = np.argsort(load, kind="stable")[
            : len(hand)
        ]
        np.add.at(load, place[first : first + len(hand)], hand)
    position = np.empty(int(order.max(initial=-1)) + 1, dtype=np.int64)
    position[order] = np.arange(len(order))
    batches = np.split(
        descending[np.argsort(place, kind="stable")],
        np.bincount(place, minlength=n_batches).cumsum()[:-1],
    )
    return sorted(batches, key=lambda batch: position[batch[0]])


def shares(cost: Sequence[int] | np.ndarray, n: int) -> list[list[int]]:
    """Items 0, 1, ... divided among n processes, the largest first to whoever has least;
    some get none when there are fewer than n.
    """
    load = [0] * n
    parts: list[list[int]] = [[] for _ in range(n)]
    for k in sorted(range(len(cost)), key=lambda k: -cost[k]):
        least = load.index(min(load))
        load[least] += max(int(cost[k]), 1)
        parts[least].append(k)
    return [sorted(part) for part in parts]
