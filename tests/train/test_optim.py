"""Clipping per member, weight averaging, learning rates."""

import copy
import math

import pytest
import torch
from torch import nn

from race.config import TrainConfig
from race.train.optim import Ema, Schedule, build_optimizer, clip_per_member


def parameters(n_members=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n_members, 4, 2), (n_members, 5), (n_members, 0, 1)]
    return [
        nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=generator))
        for shape in shapes
    ]


def test_clipping_is_per_member():
    params = parameters()
    for p in params:
        p.grad = torch.ones_like(p) * torch.tensor([0.01, 1.0, 100.0]).view(
            -1, *[1] * (p.dim() - 1)
        )
    before = [p.grad.clone() for p in params]
    norms = clip_per_member(params, max_norm=2.0)
    root = math.sqrt(13)  # components per member
    torch.testing.assert_close(norms, torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64) * root)
    for p, grad in zip(params, before, strict=True):
        assert torch.equal(p.grad[0], grad[0])  # below the cap: untouched, whatever the others do
    clipped = torch.cat([p.grad.flatten(1) for p in params], 1).norm(dim=1)
    torch.testing.assert_close(clipped[1:], torch.full((2,), 2.0, dtype=torch.float64))


def test_clipping_of_a_zero_gradient():
    params = parameters()[:1]
    params[0].grad = torch.zeros_like(params[0])
    clip_per_member(params, 1.0)
    assert torch.equal(params[0].grad, torch.zeros_like(params[0]))


@pytest.mark.parametrize("optimizer", ["soap", "adam", "amsgrad"])
def test_optimizer_keeps_members_apart(optimizer):
    """A member trained among others takes the same steps as alone."""
    together, alone = parameters(), [nn.Parameter(p.detach()[1:2].clone()) for p in parameters()]
    config = TrainConfig(optimizer=optimizer, learning_rate=0.1, clip_norm=0.5)
    for params in (together, alone):
        stepper = build_optimizer({str(k): p for k, p in enumerate(params)}, config, {})
        for _ in range(5):
            stepper.zero_grad()
            weights = (
                torch.arange(1.0, 1.0 + len(params[0]))
                if len(params[0]) > 1
                else torch.tensor([2.0])
            )
            sum(((p**4).flatten(1).sum(1) * weights).sum() for p in params).backward()
            clip_per_member(params, config.clip_norm)
            stepper.step()
    for p, q in zip(together, alone, strict=True):
        # SOAP divides rounding by its damping in directions that no gradient has had
        rtol = 1e-9 if optimizer == "soap" else 1e-12
        torch.testing.assert_close(p[1:2], q, rtol=rtol, atol=0)


def test_average_follows_its_definition_and_swaps_back():
    params = parameters()[:2]
    ema = Ema(params, decay=0.6)
    expected = [p.detach().clone() for p in params]
    for step in range(20):
        with torch.no_grad():
            for p in params:
                p += 0.1 * (step + 1)
        ema.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * p.detach() for e, p in zip(expected, params, strict=True)
        ]
    own = copy.deepcopy(params)
    with pytest.raises(ZeroDivisionError), ema.applied():
        for p, e in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach(), e, rtol=1e-12, atol=1e-12)
        raise ZeroDivisionError
    assert all(torch.equal(p, q) for p, q in zip(params, own, strict=True))


def test_cosine_rises_and_falls_to_one_percent():
    schedule = Schedule(TrainConfig(learning_rate=0.1), n_steps=2000)
    rates = [schedule.rate(step) for step in range(2000)]
    assert (
        rates[0] < 0.002
        and max(rates) == pytest.approx(0.1, rel=1e-3)
        and rates[-1] == pytest.approx(0.001, rel=1e-2)
    )
    assert sorted(rates[:100]) == rates[:100] and sorted(rates[101:], reverse=True) == rates[101:]


def test_plateau_halves_after_patience_and_remembers():
    config = TrainConfig(learning_rate=0.1, schedule="plateau", patience=3)
    schedule = Schedule(config, n_steps=100)
    for score in (5.0, 4.0, 4.5, 4.5, 4.5):
        schedule.observe(score)
    assert schedule.rate(99) == pytest.approx(0.1)
    resumed = Schedule(config, n_steps=100)
    resumed.load(schedule.state())
    for each in (schedule, resumed):
        each.observe(4.5)
        assert each.rate(99) == pytest.approx(0.05)
        each.observe(3.0)
        assert each.rate(99) == pytest.approx(0.05)


def test_few_species_features_learn_as_fast_as_many():
    """One step of Adam moves a species' matrix by about as much, whatever F is; without the
    factor by sqrt(F) of the rate.
    """
    moved = {}
    for n_features in (8, 64):
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(50, 3, n_features, generator=generator)  # 50 draws, as members
        weight = nn.Parameter(torch.zeros(50, n_features, 20))
        named = {"layers.0.weight_product": weight, "other": nn.Parameter(torch.zeros(50))}
        stepper = build_optimizer(named, TrainConfig(optimizer="adam"), {})
        for group in stepper.param_groups:  # as the trainer does
            group["lr"] = 0.1 * group["factor"]
        target = torch.randn(50, 3, 20, generator=generator)
        ((a @ weight) * n_features**-0.5 * target).sum().backward()
        stepper.step()
        matrices = (a @ weight.detach()) * n_features**-0.5
        moved[n_features] = matrices.square().mean().sqrt().item()
    assert moved[8] == pytest.approx(moved[64], rel=0.25)
