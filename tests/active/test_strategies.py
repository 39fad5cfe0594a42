"""What is chosen: against brute force, in reproducible order, no structure twice."""

from pathlib import Path

import ase
import numpy as np
import pytest

from race.active.distances import Space, feature_space, pair_distance_space, sorted_pair_distances
from race.active.pool import Candidate
from race.active.scores import FrameScores, Scorer, open_scorer
from race.active.strategies import Selector
from race.errors import RaceError

from .conftest import boron_nitride


class Planted(Scorer):
    def __init__(self, energy, force=None, variance=None):
        self.columns = [energy, force or energy, variance or energy]

    def scores(self, candidates, progress=lambda n: None):
        return [FrameScores(v, e, f) for e, f, v in zip(*self.columns, strict=True)]


def pool(n: int = 8) -> list[Candidate]:
    return [Candidate(boron_nitride(k, 0.05 * (k + 1)), Path("pool.extxyz"), k) for k in range(n)]


def chosen(strategy, budget, frames, model=None, exclude=(), **options) -> list[int]:
    return [
        choice.index
        for choice in Selector(strategy, budget, **options).select(frames, model, exclude)
    ]


def test_highest_scores_first_ties_to_the_earlier_frame():
    model = Planted([1.0, 5.0, 3.0, 5.0, 3.0, 9.0, 3.0, 0.0])
    assert chosen("bald-energy", 5, pool(), model) == [5, 1, 3, 2, 4]
    assert chosen("max-variance", 2, pool(), model) == [5, 1]


def test_joint_takes_half_by_each_and_none_twice():
    energy, force = (
        [9.0, 8.0, 7.0, 6.0, 0.0, 1.0, 2.0, 3.0],
        [9.0, 0.0, 1.0, 2.0, 8.0, 7.0, 6.0, 5.0],
    )
    picked = Selector("bald-joint", 4).select(pool(), Planted(energy, force))
    # 0 is first by both: the energy takes it, and the force takes two others.
    assert [(c.index, c.by) for c in picked] == [
        (0, "bald-energy"),
        (1, "bald-energy"),
        (4, "bald-force"),
        (5, "bald-force"),
    ]
    assert [c.score for c in picked] == [9.0, 8.0, 8.0, 7.0]
    # The odd one is the energy's
    assert chosen("bald-joint", 3, pool(), Planted(energy, force)) == [
        0,
        1,
        4,
    ]
    assert chosen("bald-joint", 1, pool(), Planted(energy, force)) == [0]


def test_random_is_its_seed():
    first = chosen("random", 5, pool(), seed=3)
    assert first == chosen("random", 5, pool(), seed=3) and len(set(first)) == 5
    assert any(chosen("random", 5, pool(), seed=s) != first for s in range(4, 8))
    assert first[:3] == chosen("random", 3, pool(), seed=3)


def test_structures_are_chosen_once():
    frames = pool()
    frames[6] = Candidate(frames[1].atoms.copy(), Path("other.extxyz"), 0)
    model = Planted([0.0, 9.0, 1.0, 2.0, 3.0, 4.0, 8.0, 5.0])
    assert chosen("bald-energy", 3, frames, model) == [1, 7, 5]
    known = [Candidate(frames[7].atoms.copy(), Path("train.extxyz"), 0)]
    assert chosen("bald-energy", 3, frames, model, known) == [1, 5, 4]
    assert (
        7 not in chosen("random", 8, frames, exclude=known)
        and len(chosen("random", 8, frames, exclude=known)) == 6
    )
    assert 7 not in chosen("fps", 8, frames, exclude=known)


def test_min_distance_leaves_out_near_copies():
    frames = pool()
    near = frames[1].atoms.copy()
    near.rattle(1e-3, seed=1)
    frames[2] = Candidate(near, Path("pool.extxyz"), 2)
    model = Planted([0.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0])
    assert chosen("bald-energy", 2, frames, model) == [1, 2]
    assert chosen("bald-energy", 2, frames, model, min_distance=0.01) == [1, 3]
    assert chosen("bald-energy", 2, frames, model, [frames[1]], min_distance=0.01) == [3, 4]
    assert len(chosen("random", 8, frames, min_distance=10.0)) == 1


def test_farthest_points_against_brute_force():
    frames = pool()
    points = [sorted_pair_distances(candidate.atoms) for candidate in frames]
    distance = np.array([[np.sqrt(np.mean((a - b) ** 2)) for a in points] for b in points])
    picked = Selector("fps", 5, seed=1).select(frames)
    expected = [picked[0].index]
    for choice in picked[1:]:
        gap = distance[expected].min(axis=0)
        expected.append(int(np.argmax(gap)))
        assert choice.score == pytest.approx(gap.max(), rel=1e-12)
    assert [choice.index for choice in picked] == expected
    known = [frames[0]]
    assert chosen("fps", 1, frames, exclude=known) == [int(np.argmax(distance[0]))]


def test_pair_distances_are_those_of_the_structure():
    atoms = ase.Atoms("NBN", [[0, 0, 0], [0, 0, 1.0], [0, 2.5, 0]])
    # B-N, B-N, then N-N
    np.testing.assert_allclose(sorted_pair_distances(atoms), [1.0, np.sqrt(7.25), 2.5])
    moved = atoms[[2, 0, 1]]
    moved.rotate(40, "xyz")
    moved.translate([1, 2, 3])
    np.testing.assert_allclose(
        sorted_pair_distances(moved), sorted_pair_distances(atoms), atol=1e-12
    )
    periodic = ase.Atoms("BN", [[0.1, 0, 0], [9.9, 0, 0]], cell=[10, 10, 10], pbc=True)
    np.testing.assert_allclose(sorted_pair_distances(periodic), [0.2])
    assert sorted_pair_distances(ase.Atoms("B")).shape == (0,)


def test_other_compositions_are_far():
    space = pair_distance_space(
        [ase.Atoms("BN", [[0, 0, 0], [0, 0, d]]) for d in (1.0, 1.5)]
        + [ase.Atoms("B2", [[0, 0, 0], [0, 0, 1.0]])]
    )
    np.testing.assert_allclose(space.from_point(0), [0, 0.5, np.inf])
    assert isinstance(space, Space)


def test_model_features_tell_structures_apart_and_ignore_order(run):
    frames = pool(3)
    frames.append(Candidate(frames[0].atoms[[2, 1, 0, 3, 4, 7, 6, 5]], Path("pool.extxyz"), 3))
    distance = feature_space(open_scorer(run).predictor, frames).from_point(0)
    assert distance[3] < 1e-12 < 1e-4 < distance[1] < distance[2]
    whole = feature_space(open_scorer(run, batch_size=1).predictor, frames).from_point(2)
    np.testing.assert_allclose(
        whole,
        feature_space(open_scorer(run, batch_size=4).predictor, frames).from_point(2),
        atol=1e-12,
    )
    assert len(chosen("fps", 3, frames, open_scorer(run), features="model")) == 3


@pytest.mark.parametrize(
    "options, message",
    [
        (("bald-energy", 9), "the budget does not fit; expected 1 to 8"),
        (("random", 0), "the budget does not fit"),
        (("best", 2), "unknown strategy"),
        (("bald-force", 2), "pool.extxyz, frame 0: no model to tell bald-force"),
        (("fps", 2, 0, 0.0, "model"), "model features need a model"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(RaceError, match=message):
        Selector(*options).select(pool())
