"""Batches and their shares: every frame once, reproducible, random, and balanced as well
as can be.
"""

import itertools

import ase.build
import numpy as np
import pytest
import torch

from race.data import Dataset
from race.data.batching import balanced_batches, shares


def dataset(sizes):
    frames = [ase.build.bulk("Cu", a=3.7) * (size, 1, 1) for size in sizes]
    return Dataset(frames, ["Cu"], 3.0, torch.float32)


def listed(plan):
    return [batch.tolist() for batch in plan]


@pytest.mark.parametrize("balanced", [False, True])
def test_a_plan_depends_on_seed_and_epoch_only(balanced):
    def plan(**options):
        return listed(dataset([1, 1, 2, 5, 1, 2, 1]).plan(3, balanced=balanced, **options))

    epoch = plan(seed=5, epoch=2)
    assert sorted(map(len, epoch)) == ([2, 2, 3] if balanced else [1, 3, 3])
    assert sorted(sum(epoch, [])) == list(range(7))
    assert plan(seed=5, epoch=2) == epoch
    assert plan(seed=5, epoch=3) != epoch and plan(seed=6, epoch=2) != epoch


def test_without_shuffling_frames_keep_their_order():
    data = dataset([1, 2, 3, 4, 5])
    assert listed(data.plan(2, shuffle=False)) == [[0, 1], [2, 3], [4]]
    assert [batch.index.tolist() for batch in data.batches(2)] == [[0, 1], [2, 3], [4]]
    assert data.n_edges([4, 0]).tolist() == [60, 12]


@pytest.mark.parametrize("n, batch_size", [(1, 4), (3, 4), (64, 8), (61, 8), (60, 1)])
def test_every_frame_once_in_batches_of_like_number(n, batch_size):
    cost = np.random.RandomState(0).randint(10, 5000, n)
    batches = balanced_batches(np.random.RandomState(1).permutation(n), cost, batch_size)
    assert len(batches) == -(-n // batch_size)
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert (
        max(map(len, batches)) <= batch_size
        and max(map(len, batches)) - min(map(len, batches)) <= 1
    )


def test_batches_cost_alike():
    """Sizes over a factor of 64: the costliest batch is within 10 % of the mean, where
    random ones reach double.
    """
    random = np.random.RandomState(0)
    cost = (300 * 2.0 ** random.uniform(0, 6, 800)).astype(int)
    order = random.permutation(800)
    worst = max(cost[batch].sum() for batch in balanced_batches(order, cost, 8)) / (
        cost.sum() / 100
    )
    assert worst < 1.1
    assert max(cost[batch].sum() for batch in order.reshape(100, 8)) / (cost.sum() / 100) > 1.8


def test_balanced_batches_are_random():
    """Over epochs every pair of frames of like size, and of unlike size, meets about as
    often as by chance (1 in 5 and 1 in 4).
    """
    cost = np.array([100] * 12 + [1000] * 4)
    met = np.zeros((16, 16))
    for epoch in range(400):
        batches = balanced_batches(np.random.RandomState([0, epoch]).permutation(16), cost, 4)
        for batch in batches:
            for a, b in itertools.permutations(batch, 2):
                met[a, b] += 1 / 400
    assert not met[12:, 12:].any()  # one large frame in each
    assert 0.15 < met[:12, 12:].min() and met[:12, 12:].max() < 0.35
    small = met[:12, :12][~np.eye(12, dtype=bool)]
    assert 0.12 < small.min() and small.max() < 0.26  # 2 of the other 11
    firsts = [
        balanced_batches(np.random.RandomState(k).permutation(16), cost, 4)[0].max()
        for k in range(100)
    ]
    assert {firsts.count(k) > 10 for k in range(12, 16)} == {True}  # no batch comes first always


def test_shares():
    assert shares([5, 1, 1, 1, 1, 1], 2) == [[0], [1, 2, 3, 4, 5]]
    assert shares([3, 3], 3) == [[0], [1], []]
    assert shares([0, 0, 0, 0], 2) == [[0, 2], [1, 3]]
    parts = shares([7, 2, 9, 4, 4, 1, 8, 3], 3)
    assert sorted(sum(parts, [])) == list(range(8)) and parts == [sorted(part) for part in parts]
    loads = [sum([7, 2, 9, 4, 4, 1, 8, 3][k] for k in part) for part in parts]
    assert max(loads) - min(loads) <= 2
