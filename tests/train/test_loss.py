"""The losses: their optimum, their gradients, and that members never mix."""

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from race.config import ModelConfig, ModelConstants, RunConfig, TrainConfig
from race.data import Batch
from race.heads import HEADS
from race.model.heads import ForceCovariance
from race.model.outputs import ModelOutput
from race.model.stress import StressCovariance
from race.train.loss import Loss, warmup_beta
from race.train.members import initial_model

from .conftest import batch_of, make_config, resolved

HEAD_OF_LOSS = [
    ("mse", "point"),
    ("nll_e", "energy"),
    ("nll_jef", "cholesky"),
    ("nll_jef", "equivariant"),
    ("evidential", "evidential"),
    ("eip", "eip"),
]


def setting(path, loss="nll_jef", head="equivariant", n_members=2, dtype="float64", **train):
    config = resolved(
        path,
        model={"head": head, "n_members": n_members},
        train={"loss": loss, "dtype": dtype, **train},
    )
    model = initial_model(config.model, config.constants, 0, getattr(torch, dtype))
    return config, model, Loss(config, model.force_covariance), batch_of(path, config)


def backward(model, loss, batch, beta=0.0):
    model.zero_grad()
    loss(model(batch, create_graph=True), batch, beta)["loss"].sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.numel()}


@pytest.mark.parametrize("loss, head", HEAD_OF_LOSS)
def test_every_head_parameter_gets_gradient(copper, loss, head):
    _, model, loss, batch = setting(copper, loss, head)
    for name, grad in backward(model, loss, batch).items():
        assert torch.isfinite(grad).all(), name
        if "readout.w2" in name:  # [M, hidden, channel]: each channel of each member, by itself
            assert (grad.abs().amax(1) > 0).all(), name
        elif "linear_up_next" not in name:
            assert (grad.flatten(1).abs().amax(1) > 0).all(), name


@pytest.mark.parametrize("head", ["energy", "equivariant", "evidential", "eip"])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_every_channel_of_the_stress_noise_gets_gradient(copper, head, beta):
    kind = {"energy": "nll_e", "equivariant": "nll_jef"}.get(head, head)
    config = resolved(
        copper,
        model={"head": head, "n_members": 2, "stress_head": "equivariant"},
        train={"loss": kind, "stress_weight": 1.0},
    )
    model = initial_model(config.model, config.constants, 0, torch.float64)
    grads = backward(model, Loss(config, model.force_covariance), batch_of(copper, config), beta)
    for name, grad in grads.items():
        assert torch.isfinite(grad).all(), name
        if "readout.w" in name:  # each channel of each member, by itself
            assert (grad.abs().amax(1) > 0).all(), name


def test_warmup_trains_the_heads_too(copper):
    _, model, loss, batch = setting(copper)
    grads = backward(model, loss, batch, beta=1.0)
    assert all(
        (grad.abs().amax(1) > 0).all() for name, grad in grads.items() if "readout.w2" in name
    )


@pytest.mark.parametrize("loss, head", HEAD_OF_LOSS)
def test_members_do_not_see_each_other(copper, loss, head):
    """Exactly: to the last bit when another member changes, and to rounding when the others
    are not there at all.
    """
    config, model, loss, batch = setting(copper, loss, head, n_members=3, stress_weight=1.0)
    before = backward(model, loss, batch)
    with torch.no_grad():
        for p in model.parameters():
            p[1] *= 1.1
    after = backward(model, loss, batch)
    for name, grad in before.items():
        assert torch.equal(grad[[0, 2]], after[name][[0, 2]]), name
    assert any(not torch.equal(grad[1], after[name][1]) for name, grad in before.items())
    alone = initial_model(
        config.model.model_copy(update={"n_members": 1}), config.constants, 2, torch.float64
    )
    for name, grad in backward(alone, Loss(config, alone.force_covariance), batch).items():
        torch.testing.assert_close(
            grad[0], before[name][2], rtol=1e-8, atol=1e-8 * float(grad.abs().max())
        )


@pytest.mark.parametrize("loss, head", HEAD_OF_LOSS)
def test_gradient_through_forces(copper, loss, head):
    """gradcheck of a loss that holds first derivatives: the second derivatives of the model
    against finite differences.
    """
    # Where the head predicts forces' deviations, the stress term is measured in them,
    # detached: not a function to differentiate.
    stress_weight = 1.0 if loss in ("mse", "nll_e") else 0.0
    _, model, loss, batch = setting(copper, loss, head, n_members=1, stress_weight=stress_weight)
    names, values = zip(*model.named_parameters(), strict=True)

    def f(*parameters):
        out = functional_call(
            model, dict(zip(names, parameters, strict=True)), (batch,), {"create_graph": True}
        )
        return loss(out, batch, 0.0)["loss"]

    # Scaled to order one: gradcheck compares absolute numbers.
    scale = f(*values).detach()
    assert torch.autograd.gradcheck(
        lambda *p: f(*p) / scale, values, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True
    )


# ---- optimum: heads alone, fitted to errors of known covariance ----------------------------------


def plain_batch(n_frames: int, n_atoms: int, stress=None) -> Batch:
    total = n_frames * n_atoms
    empty = torch.zeros(0, dtype=torch.int64)
    return Batch(
        species=torch.zeros(total, dtype=torch.int64),
        edge_index=empty.view(2, 0),
        edge_vector=torch.zeros(0, 3),
        row_ptr=torch.zeros(total + 1, dtype=torch.int64),
        frame=torch.arange(n_frames).repeat_interleave(n_atoms),
        n_atoms_per_frame=torch.full((n_frames,), n_atoms),
        volume=torch.full((n_frames,), 50.0, dtype=torch.float64),
        energy=torch.zeros(n_frames, dtype=torch.float64),
        forces=torch.zeros(total, 3, dtype=torch.float64),
        stress=stress,
        index=torch.arange(n_frames),
        frame_weight=torch.ones(n_frames, dtype=torch.float64),
        atom_weight=torch.ones(total, dtype=torch.float64),
    )


def output(**tensors) -> ModelOutput:
    """What a model would have predicted, as far as a loss reads it."""
    unread = torch.empty(0)
    return ModelOutput(**{"node_energy": unread, "raw": unread, **tensors})


def plain_loss(kind, head, **train) -> Loss:
    model = ModelConfig(elements=["Cu"], head=head, sigma0=0.3, sigma0_energy=0.05)
    config = RunConfig(
        data={"train": ["none"]},
        model=model,
        train=TrainConfig(loss=kind, **train),
        constants=ModelConstants.given(model),
    )
    return Loss(config, ForceCovariance(head, 0.3, torch.float64))


@pytest.mark.parametrize("head, channels", [("cholesky", 8), ("equivariant", 8)])
@pytest.mark.parametrize("weight", [1.0, 100.0])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_optimum_is_the_true_covariance(head, channels, weight, beta):
    """Errors of known covariance, one shared set of channels: the minimum is their sample
    covariance, whatever the weight.
    """
    generator = torch.Generator().manual_seed(0)
    factor = torch.tensor(
        [[0.5, 0.0, 0.0], [0.2, 0.3, 0.0], [-0.1, 0.15, 0.4]], dtype=torch.float64
    )
    n_frames, n_atoms = 500, 4
    batch = plain_batch(n_frames, n_atoms)
    forces = torch.randn(batch.n_atoms, 1, 3, dtype=torch.float64, generator=generator) @ factor.T
    energy = 0.7 * torch.randn(n_frames, 1, dtype=torch.float64, generator=generator)
    loss = plain_loss("nll_jef", head, forces_weight=weight)
    channel = torch.zeros(1, 1, channels, dtype=torch.float64, requires_grad=True)
    log_var = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [channel, log_var],
        max_iter=200,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        var = (log_var.exp() * 0.05**2 * n_atoms).expand(n_frames, 1)
        out = output(
            energy=energy,
            energy_var=var,
            forces=forces,
            raw=channel.expand(batch.n_atoms, 1, -1),
        )
        # beta's weights are detached and so not part of a function that a line search may
        # follow: they go by gradient below
        value = loss(out, batch, 0.0)["loss"].sum()
        value.backward()
        return value

    optimizer.step(closure)
    if beta:  # the same point is stationary for the weighted loss
        optimizer.zero_grad()
        out = output(
            energy=energy,
            energy_var=(log_var.exp() * 0.05**2 * n_atoms).expand(n_frames, 1),
            forces=forces,
            raw=channel.expand(batch.n_atoms, 1, -1),
        )
        loss(out, batch, beta)["loss"].sum().backward()
        assert channel.grad.abs().max() < 1e-4 * weight and log_var.grad.abs() < 1e-4
    sample = (forces.transpose(1, 2) @ forces).mean(0)
    found = loss.covariance.matrix(channel).detach()[0, 0]
    torch.testing.assert_close(found, sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, factor @ factor.T, rtol=0.1, atol=0.02)
    torch.testing.assert_close(
        log_var.exp() * 0.05**2 * n_atoms, (energy**2).mean(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("volume, n_atoms", [(50.0, 4), (400.0, 32)])
def test_optimum_of_the_stress_noise(volume, n_atoms):
    """Errors of known covariance: the minimum is theirs, whatever the size of the cell in
    which they are seen.
    """
    generator = torch.Generator().manual_seed(0)
    factor = 0.4 * torch.eye(6, dtype=torch.float64) + 0.1 * torch.randn(
        6, 6, dtype=torch.float64, generator=generator
    )
    n_frames = 2000
    # EV, of n_atoms atoms
    error = (
        n_atoms**0.5
        * torch.randn(n_frames, 1, 6, dtype=torch.float64, generator=generator)
        @ factor.T
    )
    batch = plain_batch(n_frames, n_atoms, stress=torch.zeros(n_frames, 6, dtype=torch.float64))
    batch.volume[:] = volume
    loss = plain_loss(
        "nll_jef", "equivariant", energy_weight=0.0, forces_weight=0.0, stress_weight=7.0
    )
    covariance = StressCovariance("equivariant", 0.3, torch.float64)
    raw = (
        0.1 * torch.randn(1, 1, 30, dtype=torch.float64, generator=generator)
    ).requires_grad_()  # v = w = 0 is a saddle point
    optimizer = torch.optim.LBFGS(
        [raw],
        max_iter=400,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        out = output(
            energy=error[:, :, 0],
            stress=error / volume,
            virial_cov=n_atoms * covariance(raw).expand(n_frames, 1, 6, 6),
        )
        value = loss(out, batch, 0.0)["loss"].sum()
        value.backward()
        return value

    optimizer.step(closure)
    sample = (error.transpose(1, 2) @ error).mean(0) / n_atoms
    torch.testing.assert_close(covariance(raw)[0, 0].detach(), sample, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(sample, factor @ factor.T, rtol=0.15, atol=0.02)


def test_beta_one_is_the_mse_gradient():
    """For the mean, at an isotropic covariance and any variance: what makes the warm-up's
    start plain MSE.
    """
    batch = plain_batch(2, 3)
    generator = torch.Generator().manual_seed(1)
    energy = torch.randn(2, 2, dtype=torch.float64, generator=generator).requires_grad_()
    forces = torch.randn(6, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    raw = torch.zeros(6, 2, 8, dtype=torch.float64)
    raw[..., 1:3] = torch.randn(6, 2, 2, dtype=torch.float64, generator=generator)
    var = raw[..., 1].exp().view(2, 3, 2).sum(1)
    out = output(energy=energy, energy_var=var, forces=forces, raw=raw)
    grads = []
    for kind, head, beta in (("mse", "equivariant", 0.0), ("nll_jef", "equivariant", 1.0)):
        loss = plain_loss(kind, head)(out, batch, beta)["loss"].sum()
        grads.append(torch.autograd.grad(loss, [energy, forces]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_beta_one_is_the_mse_gradient_of_the_stress():
    """At isotropic noise, where components off the diagonal have half the variance: twice
    the gradient that `mse` gives them.
    """
    stress = torch.randn(
        2, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    batch = plain_batch(2, 3, stress=torch.zeros(2, 6, dtype=torch.float64))
    raw = torch.zeros(2, 2, 30, dtype=torch.float64)
    raw[..., 3] = torch.tensor([[0.3, -1.0], [2.0, 0.7]])
    noise = 3 * StressCovariance("equivariant", 0.3, torch.float64)(raw)
    grads = []
    for kind, beta, extra in (("mse", 0.0, {}), ("nll_jef", 1.0, {"virial_cov": noise})):
        loss = plain_loss(
            kind, "equivariant", energy_weight=0.0, forces_weight=0.0, stress_weight=1.0
        )
        value = loss(output(energy=stress[..., 0], stress=stress, **extra), batch, beta)[
            "loss"
        ].sum()
        grads.append(torch.autograd.grad(value, stress)[0])
    weight = torch.tensor([1, 1, 1, 2, 2, 2], dtype=torch.float64)
    torch.testing.assert_close(grads[1], weight * grads[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("head", ["cholesky", "equivariant", "evidential", "eip"])
def test_stress_and_beta_are_in_units_of_the_total_covariance(head):
    """det(Sigma)^(1/3) of all that the head says, by NumPy; the aleatoric part alone is
    hundreds of times smaller where kappa or nu is small.
    """
    generator = torch.Generator().manual_seed(2)
    n_out, own = HEADS[head].scalars + 5 * HEADS[head].tensors, HEADS[head].own_epistemic
    raw = torch.randn(6, 1, n_out, dtype=torch.float64, generator=generator)
    raw[..., {"evidential": 4, "eip": 2}.get(head, 0)] -= 4.0  # kappa, nu of 0.01 .. 0.1
    forces = torch.randn(6, 1, 3, dtype=torch.float64, generator=generator)
    stress = torch.randn(2, 1, 6, dtype=torch.float64, generator=generator)
    batch = plain_batch(2, 3, stress=torch.zeros(2, 6, dtype=torch.float64))
    loss = plain_loss(head if own else "nll_jef", head, stress_weight=1.0)
    cov = loss.covariance.matrix(raw)
    total = cov + loss.covariance.epistemic(cov, raw) if own else cov
    var = np.linalg.det(total.numpy())[:, 0] ** (1 / 3)
    out = output(
        energy=torch.ones(2, 1), energy_var=torch.ones(2, 1), forces=forces, raw=raw, stress=stress
    )
    plain, weighted = loss.rows(out, batch, 0.0), loss.rows(out, batch, 1.0)
    square = ((50.0 * stress) ** 2).sum(-1)[:, 0].numpy()
    want = 0.5 * square / (3.5**2 * var.reshape(2, 3).sum(1))
    np.testing.assert_allclose(plain["stress"][:, 0], want, rtol=1e-10)
    ratio = (weighted["forces"] / plain["forces"])[:, 0]
    np.testing.assert_allclose(ratio, var / 0.3**2, rtol=1e-10)
    if own:
        assert (var > 10 * np.linalg.det(cov.numpy())[:, 0] ** (1 / 3)).all()


def test_stress_noise_needs_its_likelihood():
    for train in ({"loss": "mse", "stress_weight": 1.0}, {"loss": "nll_jef"}):
        with pytest.raises(ValueError, match="stress_head needs a likelihood of stresses"):
            make_config("none", model={"stress_head": "equivariant"}, train=train)


def test_warmup_is_continuous():
    config = make_config("none", train={"warmup_epochs": 4, "beta": 0.25})
    assert warmup_beta(config, 0.0) == 1.0
    assert warmup_beta(config, 4.0) == warmup_beta(config, 40.0) == 0.25
    values = [warmup_beta(config, epoch / 100) for epoch in range(500)]
    assert max(abs(a - b) for a, b in zip(values, values[1:], strict=False)) < 0.002
    assert warmup_beta(make_config("none", train={"warmup_epochs": 0}), 0.0) == 0.0


def test_frames_without_stress_do_not_count(copper):
    config, model, loss, batch = setting(copper, energy_weight=0.0, stress_weight=1.0)
    alone = batch_of(copper, config, 2)
    batch.stress[2:] = torch.nan
    terms = loss(model(batch), batch)
    torch.testing.assert_close(terms["stress"], loss(model(alone), alone)["stress"])
    assert all(torch.isfinite(grad).all() for grad in backward(model, loss, batch).values())
    batch.stress = None
    assert (loss(model(batch), batch)["stress"] == 0).all()


def test_score_of_an_epoch_is_of_errors(copper):
    """A fall by the same part is worth the same in each term, whatever its weight; a term
    without labels decides nothing.
    """
    _, _, loss, _ = setting(copper, energy_weight=1.0, forces_weight=100.0)
    terms = {"energy": torch.zeros(2), "forces": torch.zeros(2)}

    def score(energy, forces, **other):
        errors = {"energy": torch.tensor(energy), "forces": torch.tensor(forces)}
        return loss.score(terms, errors | other)

    first, other = score([1.0, 2.0], [30.0, 30.0])
    assert other - first == pytest.approx(math.log(2.0) / 2)
    assert torch.allclose(score([0.5, 1.0], [60.0, 60.0]), torch.stack([first, other]))
    assert torch.equal(
        score([1.0, 2.0], [30.0, 30.0], stress=torch.ones(2)), torch.stack([first, other])
    )
    nothing = score([0.0, 0.0], [30.0, 20.0])
    assert torch.isfinite(nothing).all() and nothing[1] < nothing[0]
