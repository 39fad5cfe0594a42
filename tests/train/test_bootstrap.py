"""Members that each learn from their own draw of the frames."""

import pytest
import torch

from race.data import Dataset, read_frames
from race.train.loss import Loss
from race.train.members import bootstrap_draws, initial_model
from race.train.prepare import prepare
from race.train.trainer import Trainer

from .conftest import make_config, resolved


def test_a_draw_is_of_as_many_frames():
    draws = bootstrap_draws(200, 3, seed=5)
    assert draws.shape == (200, 3) and (draws.sum(0) == 200).all()
    left_out = (draws == 0).double().mean(0)
    assert ((left_out > 0.3) & (left_out < 0.44)).all(), "(1 - 1/n)^n of the frames: 0.37"
    assert not torch.equal(draws[:, 0], draws[:, 1])
    assert torch.equal(draws[:, 2:], bootstrap_draws(200, 1, seed=7))


def test_a_frame_drawn_twice_counts_as_two_frames(copper, tmp_path):
    """Against each member alone, on frames that are written out as often as it has drawn them;
    some atoms have no force, and some frames no energy.
    """
    frames = read_frames(copper)
    del frames[3].info["energy"]
    frames[5].arrays["forces"][:2] = torch.nan
    config = resolved(copper, model={"n_members": 2}, train={"stress_weight": 1.0})
    elements, r_max = config.constants.elements, config.model.r_max
    draws = bootstrap_draws(len(frames), 2, seed=0)
    model = initial_model(config.model, config.constants, 0, torch.float64)
    loss = Loss(config, model.force_covariance)
    together = Dataset(frames, elements, r_max, torch.float64).batch(range(len(frames)))
    found = loss.sums(model(together), together, 0.5, draws)
    for member in range(2):
        one = initial_model(
            config.model.model_copy(update={"n_members": 1}),
            config.constants,
            member,
            torch.float64,
        )
        drawn = [k for k, n in enumerate(draws[:, member].tolist()) for _ in range(n)]
        batch = Dataset(frames, elements, r_max, torch.float64).batch(drawn)
        for term, alone in loss.sums(one(batch), batch, 0.5).items():
            assert found[term][member].item() == pytest.approx(alone.item(), rel=1e-9), term


def test_a_frame_that_a_member_has_not_drawn_does_not_teach_it(copper, tmp_path):
    prepared = prepare(make_config(copper, {"n_members": 2}, {"bootstrap": True, "seed": 3}))
    draws = bootstrap_draws(len(prepared.train), 2, 3)
    left_out = next(k for k, (a, b) in enumerate(draws.tolist()) if a == 0 and b > 0)
    weights = []
    for shift in (0.0, 1.0):
        frames = [atoms.copy() for atoms in prepared.train.frames]
        frames[left_out].arrays["forces"] = frames[left_out].arrays["forces"] + shift
        constants = prepared.config.constants
        data = Dataset(frames, constants.elements, prepared.config.model.r_max, torch.float64)
        model = initial_model(prepared.config.model, constants, 0, torch.float64)
        folder = tmp_path / f"{shift}"
        folder.mkdir()
        trainer = Trainer(prepared.config, model, data, prepared.validation, folder)
        for indices in data.plan(3, seed=3):
            trainer.step(data.batch(indices))
        weights.append(trainer.parameters["embedding"].detach().clone())
    assert torch.equal(weights[0][0], weights[1][0])
    assert not torch.equal(weights[0][1], weights[1][1])


def test_without_the_option_all_frames_count(copper, tmp_path):
    prepared = prepare(make_config(copper))
    model = initial_model(prepared.config.model, prepared.config.constants, 0, torch.float64)
    assert (
        Trainer(prepared.config, model, prepared.train, prepared.validation, tmp_path).draws is None
    )
