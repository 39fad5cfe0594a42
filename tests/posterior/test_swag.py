"""SWAG's moments and samples against NumPy, and its training loop: when snapshots are taken,
and kills.
"""

import numpy as np
import pytest
import torch

from race.posterior.continued import continue_training
from race.posterior.protocol import Run
from race.posterior.swag import SnapshotMoments, SwagOptions, SwagSchedule, SwagTrainer

RANK = 4


@pytest.fixture
def path():
    """Snapshots [n, 2 members, 3] of a weight far from zero, and their moments."""
    rng = np.random.default_rng(0)
    snapshots = 100.0 + rng.standard_normal((9, 2, 3)) * [0.1, 0.2, 0.4]
    moments = SnapshotMoments({"w": torch.zeros(2, 3, dtype=torch.float64)}, RANK)
    for snapshot in snapshots:
        moments.add({"w": torch.from_numpy(snapshot)})
    return snapshots, moments


def test_moments(path):
    snapshots, moments = path
    np.testing.assert_allclose(moments.mean["w"], snapshots.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.variance("w"), snapshots.var(0, ddof=1), rtol=1e-10)
    kept = np.sort(moments.deviations("w").numpy(), axis=0)  # a ring: in any order
    np.testing.assert_allclose(
        kept, np.sort(snapshots[-RANK:] - snapshots.mean(0), axis=0), rtol=0, atol=1e-10
    )


def test_moments_in_single_precision():
    """Weights near 100 that vary by 1e-3: <w^2> - <w>^2 would be noise."""
    rng = np.random.default_rng(1)
    snapshots = (100.0 + 1e-3 * rng.standard_normal((50, 1, 40))).astype(np.float32)
    moments = SnapshotMoments({"w": torch.zeros(1, 40)}, RANK)
    for snapshot in snapshots:
        moments.add({"w": torch.from_numpy(snapshot)})
    want = snapshots.astype(np.float64).var(0, ddof=1)
    np.testing.assert_allclose(moments.variance("w"), want, rtol=0.02)
    naive = (snapshots**2).mean(0) - snapshots.mean(0) ** 2
    assert np.abs(naive / want - 1).max() > 1


def test_sample_covariance(path):
    """Of each member, 1/2 diag + 1/2 D D^T / (K - 1); the members' draws are independent."""
    snapshots, moments = path
    n = 20000
    draws = (
        moments.sample([0, 1] * n, torch.Generator().manual_seed(0))["w"].numpy().reshape(n, 2, 3)
    )
    deviations = snapshots[-RANK:] - snapshots.mean(0)
    for member in range(2):
        d = deviations[:, member]
        want = 0.5 * np.diag(snapshots[:, member].var(0, ddof=1)) + 0.5 * d.T @ d / (RANK - 1)
        # A sample covariance of n draws errs by sqrt(2 / n) = 1 % of the variances: five
        # times that.
        scale = np.sqrt(np.outer(np.diag(want), np.diag(want)))
        assert np.abs(np.cov(draws[:, member].T) - want).max() / scale.max() < 0.05
        assert np.abs(
            (draws[:, member].mean(0) - snapshots[:, member].mean(0)) / np.sqrt(np.diag(want))
        ).max() < 5 / np.sqrt(n)
    assert np.abs(np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]) < 5 / np.sqrt(n)
    few = moments.sample([0, 1, 0, 1, 0], torch.Generator().manual_seed(1))["w"].numpy()
    # Centred: the mean of few samples is the mean
    np.testing.assert_allclose(few[0::2].mean(0), snapshots.mean(0)[0], rtol=1e-12)
    wider = (
        moments.sample([0], torch.Generator().manual_seed(3), scale=2.0)["w"]
        - moments.mean["w"][:1]
    )
    torch.testing.assert_close(
        wider,
        2 * (moments.sample([0], torch.Generator().manual_seed(3))["w"] - moments.mean["w"][:1]),
    )


def test_one_draw_moves_all_weights_together():
    """The low-rank part has one z' for all tensors: two weights that moved as one do so in
    the samples.
    """
    moments = SnapshotMoments({name: torch.zeros(1, 1, dtype=torch.float64) for name in "ab"}, 6)
    for x in np.random.default_rng(2).standard_normal(6):
        moments.add({"a": torch.tensor([[x]]), "b": torch.tensor([[3 * x]])})
    draws = moments.sample([0] * 4000, torch.Generator().manual_seed(0))
    # Half of the variance is diagonal
    assert np.corrcoef(draws["a"][:, 0], draws["b"][:, 0])[0, 1] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("schedule", ["constant", "cyclic"])
def test_snapshots_and_rate(trained, schedule):
    config = Run.load(trained()).config.train.model_copy(
        update={"epochs": 10, "learning_rate": 1.0}
    )
    saw = SwagSchedule(config, 8, SwagOptions(epochs=10, start=2, every=0.5, schedule=schedule))
    taken = [n for n in range(1, 81) if saw.snapshot(n)]
    assert taken == list(range(20, 81, 4))
    rates = [saw.rate(step) for step in range(80)]
    # A rise of a tenth of the steps
    assert rates[0] == pytest.approx(1 / 9) and rates[8:16] == [1.0] * 8
    cycle = [1.0 - (k + 1) / 4 * 0.99 for k in range(4)] if schedule == "cyclic" else [1.0] * 4
    assert rates[16:20] == pytest.approx(cycle) and rates[76:] == pytest.approx(cycle)


def test_snapshots_are_of_the_trained_weights(trained, tmp_path):
    """Three epochs of three steps, a snapshot after every step from the fourth: the moments
    are those of the weights along the way.
    """
    options = SwagOptions(epochs=3, start=1, every=1 / 3, rank=2)
    path = []

    class Watched(SwagTrainer):
        def step(self, batch):
            super().step(batch)
            path.append(self.model.embedding.detach().clone())

    trainer = continue_training(
        Run.load(trained(n_members=2)),
        tmp_path,
        lambda *args: Watched(options, *args),
        {"epochs": 3},
    )
    assert trainer.moments.count == 6 and len(path) == 9
    torch.testing.assert_close(trainer.moments.mean["embedding"], torch.stack(path[3:]).mean(0))
    torch.testing.assert_close(trainer.moments.variance("embedding"), torch.stack(path[3:]).var(0))
