"""Batches chosen frame by frame: each picker against the slow obvious form."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from race.active.batches import JointInformation, LargestCluster, MaxDet, energy_features
from race.active.pool import Candidate
from race.active.scores import open_scorer, pool_information
from race.active.strategies import Selector
from race.deploy.export import export_model
from race.errors import RaceError
from race.train.run import load_run

from .conftest import boron_nitride, write_run


def candidates(n: int = 6) -> list[Candidate]:
    return [Candidate(boron_nitride(k, 0.05 * (k + 1)), Path("pool.extxyz"), k) for k in range(n)]


def order(picker, n: int, n_pool: int) -> list[int]:
    closed, chosen = np.zeros(n_pool, dtype=bool), []
    for _ in range(n):
        index, _ = picker.best(closed)
        closed[index] = True
        picker.add(index)
        chosen.append(index)
    return chosen


def log_det(matrix: np.ndarray) -> float:
    sign, value = np.linalg.slogdet(matrix)
    assert sign > 0
    return float(value)


def covariance_of_labels(run: Path, frames: list[Candidate]) -> tuple[np.ndarray, np.ndarray]:
    """Deviations [n_labels, M] of every energy and force component, and their noise [n_labels,
    n_labels], straight from the model.
    """
    model, _, _ = load_run(run)
    model = model.double()
    deviations, noises = [], []
    for candidate in frames:
        (batch,) = open_scorer(run).predictor.dataset([candidate.bare]).batches(1)
        out = model(batch).detach()
        labels = torch.cat([out.energy, out.forces.permute(0, 2, 1).flatten(0, 1)])
        deviations.append((labels - labels.mean(1, keepdim=True)).numpy())
        with torch.no_grad():
            cov = model.forces_cov(out.raw).mean(1)
        noises += [out.energy_var.mean(1).view(1, 1), *cov]
    return np.concatenate(deviations), torch.block_diag(*noises).numpy()


def information_by_hand(run: Path, frames: list[Candidate]) -> float:
    """1/2 ln det(cov of all labels) - 1/2 ln det(their noise)."""
    deviation, noise = covariance_of_labels(run, frames)
    spread = deviation @ deviation.T / deviation.shape[1]
    return 0.5 * (log_det(spread + noise) - log_det(noise))


def test_joint_information_is_that_of_all_labels(run):
    """Against the determinants of dimension 1 + 3 n, of one frame and of two together."""
    frames = candidates(3)
    information = pool_information(frames, open_scorer(run))
    for chosen in ([0], [2], [0, 1], [0, 1, 2]):
        small = 0.5 * log_det(np.eye(3) + information[chosen].sum(0))
        assert small == pytest.approx(
            information_by_hand(run, [frames[k] for k in chosen]), rel=1e-9
        )


def test_the_runtime_gives_the_same(run, tmp_path):
    model, _, _ = load_run(run)
    export_model(model.scale_spread(1.3, 1.7), tmp_path / "x.race.pt", dtype="float64")
    got = pool_information(candidates(2), open_scorer(tmp_path / "x.race.pt"))
    scorer = open_scorer(run)
    scorer.predictor.model.scale_spread(1.3, 1.7)
    np.testing.assert_allclose(got, pool_information(candidates(2), scorer), rtol=1e-7, atol=1e-9)
    plain = pool_information(candidates(2), open_scorer(run))
    assert (np.trace(got, axis1=1, axis2=2) > 1.5 * np.trace(plain, axis1=1, axis2=2)).all()


def test_bald_all_gains_most_each_time(run):
    frames = candidates()
    information = pool_information(frames, open_scorer(run))
    picked = Selector("bald-all", 3).select(frames, open_scorer(run))
    taken: list[int] = []
    for choice in picked:
        before = log_det(np.eye(3) + information[taken].sum(0))
        gains = {
            k: 0.5 * (log_det(np.eye(3) + information[[*taken, k]].sum(0)) - before)
            for k in range(len(frames))
            if k not in taken
        }
        assert choice.index == max(gains, key=gains.__getitem__)
        assert choice.score == pytest.approx(gains[choice.index]) and choice.by == "bald-all"
        taken.append(choice.index)


def test_the_greedy_batch_is_close_to_the_best():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((9, 4, 2)) * rng.uniform(0.3, 2, (9, 1, 1))
    information = root @ root.swapaxes(1, 2)
    best = max(log_det(np.eye(4) + information[list(c)].sum(0)) for c in combinations(range(9), 3))
    chosen = order(JointInformation(information), 3, 9)
    assert log_det(np.eye(4) + information[chosen].sum(0)) > (1 - np.exp(-1)) * best


@pytest.mark.parametrize("n_known", [0, 5])
def test_maxdet_by_determinants(n_known):
    """Each time the frame with the largest ln det of all taken, C being inverted anew."""
    rng = np.random.default_rng(n_known)
    pool, known = rng.standard_normal((20, 6)), 0.3 * rng.standard_normal((n_known, 6))
    zeta = 1e-8 * np.linalg.norm(np.concatenate([pool, known]), 2) ** 2
    prior = np.linalg.inv(known.T @ known + zeta * np.eye(6))
    taken: list[int] = []
    for _ in range(6):
        gains = [
            log_det(np.eye(len(taken) + 1) + (x := pool[[*taken, k]]) @ prior @ x.T)
            if k not in taken
            else -np.inf
            for k in range(len(pool))
        ]
        taken.append(int(np.argmax(gains)))
    assert order(MaxDet(pool, known), 6, 20) == taken


@pytest.mark.parametrize("n_known", [0, 3])
def test_lcmd_by_loops(n_known):
    rng = np.random.default_rng(n_known)
    pool, known = rng.standard_normal((25, 4)), rng.standard_normal((n_known, 4))
    centres, taken = [*known], []
    for _ in range(7):
        left = [k for k in range(len(pool)) if k not in taken]
        if not centres:
            pick = max(left, key=lambda k: float(np.linalg.norm(pool[k])))
        else:
            home = {k: int(np.argmin([np.sum((pool[k] - c) ** 2) for c in centres])) for k in left}
            reach = {k: float(np.sum((pool[k] - centres[home[k]]) ** 2)) for k in left}
            sizes = [sum(reach[k] for k in left if home[k] == c) for c in range(len(centres))]
            largest = int(np.argmax(sizes))
            pick = max((k for k in left if home[k] == largest), key=reach.__getitem__)
        taken.append(pick)
        centres.append(pool[pick])
    assert order(LargestCluster(pool, known), 7, 25) == taken


def test_copies_do_not_stop_a_cluster():
    """All that is left coincides with what was taken."""
    pool = np.zeros((4, 2))
    assert sorted(order(LargestCluster(pool, np.zeros((0, 2))), 4, 4)) == [0, 1, 2, 3]
    assert sorted(order(MaxDet(pool, np.zeros((0, 2))), 4, 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("strategy", ["maxdet", "lcmd"])
def test_last_layers_choose_from_a_pool(run, strategy):
    frames, scorer = candidates(), open_scorer(run)
    features = energy_features(scorer.predictor, frames)
    assert features.shape == (6, 3 * 2 * 8)
    picker = {"maxdet": MaxDet, "lcmd": LargestCluster}[strategy](features[:5], features[5:])
    picked = Selector(strategy, 3).select(frames[:5], scorer, frames[5:])
    assert [choice.index for choice in picked] == order(picker, 3, 5)


def test_features_are_the_derivatives_of_energies_in_units_of_their_noise(run):
    """E is linear in w: w . f is the energy but for E0."""
    scorer = open_scorer(run)
    features = energy_features(scorer.predictor, candidates(2)).reshape(2, 3, -1)
    model = scorer.predictor.model
    w = torch.cat([layer.readout.w2[:, :, 0] for layer in model.layers], 1).detach().numpy()
    (batch,) = scorer.predictor.dataset([c.bare for c in candidates(2)]).batches(2)
    energy = model(batch, forces=False).energy.detach().numpy() - 4 * (-3.0 - 4.0)
    noise = model.constants.sigma0_energy * 8**0.5
    np.testing.assert_allclose(
        np.einsum("nmd,md->nm", features, w) * noise * 3**0.5, energy, rtol=1e-6
    )


def test_drawn_frames_are_drawn_in_proportion_to_their_scores():
    """First draws over 4,000 seeds; a third of the second draws' condition by the way."""
    scores = np.array([4.0, 1.0, 0.0, 3.0])
    orders = np.array([Selector("bald-drawn", 1, seed)._drawn(scores) for seed in range(4000)])
    first = np.bincount(orders[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(first, scores / scores.sum(), atol=0.03)
    second = orders[orders[:, 0] == 0, 1]
    np.testing.assert_allclose(np.mean(second == 3), 0.75, atol=0.04)
    assert (orders[:, 3] == 2).all()


def test_drawn_is_its_seed(run):
    frames, scorer = candidates(), open_scorer(run)
    first = [c.index for c in Selector("bald-drawn", 4, seed=2).select(frames, scorer)]
    assert first == [c.index for c in Selector("bald-drawn", 4, seed=2).select(frames, scorer)]
    assert len(set(first)) == 4


@pytest.mark.parametrize("strategy", ["bald-all", "bald-drawn"])
def test_models_without_members_or_noise_are_refused(strategy, tmp_path):
    for name, changes in (("one", {"n_members": 1}), ("point", {"head": "point"})):
        scorer = open_scorer(write_run(tmp_path / name, **changes))
        with pytest.raises(RaceError, match="several members with a covariance head"):
            Selector(strategy, 1).select(candidates(2), scorer)
    with pytest.raises(RaceError, match="no joint information"):
        Selector(strategy, 1).select(candidates(2))


@pytest.mark.parametrize("strategy", ["maxdet", "lcmd"])
def test_last_layers_need_a_run(strategy):
    with pytest.raises(RaceError, match="model features need a model"):
        Selector(strategy, 1).select(candidates(2))


def test_epistemic_ranking_does_not_see_the_noise(run):
    """Ten times the noise raises `max-variance`, and leaves `max-epistemic`."""
    frames, quiet, loud = candidates(), open_scorer(run), open_scorer(run)
    loud.predictor.model.scale_noise(10.0, 10.0)
    names = ("max-epistemic", "max-variance")
    scores = [
        [[frame.get(name) for frame in scorer.scores(frames)] for name in names]
        for scorer in (quiet, loud)
    ]
    np.testing.assert_allclose(scores[0][0], scores[1][0], rtol=1e-9)
    assert (np.array(scores[1][1]) > 2 * np.array(scores[0][1])).all()
