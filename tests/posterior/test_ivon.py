"""IVON against its equations, and on quadratics, where the posterior is known in closed form."""

import math

import numpy as np
import pytest
import torch

from race.config import TrainConfig
from race.posterior.ggn import Noise, loss_curvature
from race.posterior.ivon import Ivon, default_ess
from race.posterior.protocol import Run
from race.train.loss import Loss

SETTINGS = dict(
    lr=0.3, ess=50.0, hess_init=0.7, beta1=0.9, beta2=0.95, weight_decay=0.02, clip_radius=0.5
)


def test_update_follows_the_equations():
    """Five steps on a loss that is not quadratic, number by number."""
    p = torch.nn.Parameter(torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64))
    optimizer = Ivon([p], **SETTINGS)
    m, h, g_ = p.detach().numpy().copy(), np.full(3, 0.7), np.zeros(3)
    clipped = False
    for t in range(1, 6):
        optimizer.perturb(torch.Generator().manual_seed(t))
        eps = torch.randn(
            3, generator=torch.Generator().manual_seed(t), dtype=torch.float64
        ).numpy()
        sigma = 1 / np.sqrt(50.0 * (h + 0.02))
        np.testing.assert_allclose(p.detach(), m + sigma * eps, rtol=1e-14)
        optimizer.zero_grad()
        (p**4).sum().backward()
        g = 4 * (m + sigma * eps) ** 3
        optimizer.step()
        g_ = 0.9 * g_ + 0.1 * g
        h_hat = g * eps / sigma
        h = 0.95 * h + 0.05 * h_hat + 0.5 * 0.05**2 * (h - h_hat) ** 2 / (h + 0.02)
        change = (g_ / (1 - 0.9**t) + 0.02 * m) / (h + 0.02)
        clipped |= bool((np.abs(change) > 0.5).any())
        m = m - 0.3 * np.clip(change, -0.5, 0.5)
        np.testing.assert_allclose(p.detach(), m, rtol=1e-12)
        np.testing.assert_allclose(optimizer.std()[0], 1 / np.sqrt(50.0 * (h + 0.02)), rtol=1e-12)
    assert clipped, "the radius has to have been reached for this to test it"


def test_posterior_of_a_quadratic():
    """loss = 1/2 (w - b)^T A (w - b): mean (A + delta)^-1 A b, and the best diagonal
    Gaussian has the precisions ess (diag A + delta).

    400 copies side by side; each ends with the error of a running mean over 1 / (1 -
    beta2) steps, sqrt(2 rho / 2) = 4.5 % for rho = 0.002.
    """
    torch.manual_seed(0)
    curvature = torch.tensor(
        [[2.0, 0.6, 0.0], [0.6, 0.5, -0.3], [0.0, -0.3, 4.0]], dtype=torch.float64
    )
    b, delta, ess = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 0.1, 200.0
    w = torch.nn.Parameter(torch.zeros(400, 3, dtype=torch.float64))
    optimizer = Ivon(
        [w], lr=0.05, ess=ess, hess_init=1.0, beta1=0.9, beta2=0.998, weight_decay=delta
    )
    generator = torch.Generator().manual_seed(1)
    means = []
    for step in range(2500):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 2500))
        optimizer.perturb(generator)
        optimizer.zero_grad()
        (0.5 * torch.einsum("na,ab,nb->", w - b, curvature, w - b)).backward()
        optimizer.step()
        means.append(w.detach().mean(0))
    expected = torch.linalg.solve(
        curvature + delta * torch.eye(3, dtype=torch.float64), curvature @ b
    )
    std = (ess * (curvature.diagonal() + delta)).rsqrt()
    assert ((means[-1] - expected).abs() < 0.05 * std).all()
    hessian = 1 / (ess * optimizer.std()[0] ** 2) - delta
    assert (
        (hessian.mean(0) / curvature.diagonal() - 1).abs() < 0.02
    ).all()  # 0.2 % bias of the correction, 0.3 % noise
    # Without the prior in the update, or with Adam's square root, it would be elsewhere.
    assert ((expected - b).abs() > 0.2 * std).any()


def test_weights_without_gradient_return_to_their_mean():
    used, unused = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = Ivon([used, unused], **SETTINGS)
    optimizer.perturb(torch.Generator().manual_seed(0))
    assert not torch.equal(unused, torch.ones(2, dtype=torch.float64))
    used.sum().backward()
    optimizer.step()
    assert torch.equal(unused, torch.ones(2, dtype=torch.float64)) and not torch.equal(
        used, torch.ones(2, dtype=torch.float64)
    )
    with pytest.raises(AssertionError, match="without perturb"):
        optimizer.step()


def test_curvature_stays_positive():
    """A concave loss: h becomes negative, and h + delta does not."""
    p = torch.nn.Parameter(torch.full((100,), 0.1, dtype=torch.float64))
    optimizer = Ivon([p], **SETTINGS | {"lr": 1e-3, "beta2": 0.5})
    lowest, generator = 0.0, torch.Generator().manual_seed(0)
    for _ in range(100):
        optimizer.perturb(generator)
        optimizer.zero_grad()
        (-0.005 * p**2).sum().backward()
        optimizer.step()
        lowest = min(lowest, (optimizer.state[p]["hessian"]).min().item())
        assert (optimizer.state[p]["hessian"] + 0.02 > 0).all()
    assert lowest < 0, "h itself has to have been negative for this to test it"


@pytest.mark.parametrize("head", ["point", "equivariant"])
def test_initial_curvature(trained, head):
    """Of the mean loss, against explicit Jacobians: J^T J of energies and forces, and 1/2 (d
    ln var)^2 of the energy's log variance.
    """
    run = Run.load(trained(head, n_members=2))
    train = run.prepare().train
    loss = Loss(run.config, run.model.force_covariance)
    parameters = dict(run.model.named_parameters())
    name = "layers.1.readout.w2"
    want = torch.zeros_like(parameters[name])
    for k in range(len(train)):
        batch = train.batch([k])
        out = run.model(batch, create_graph=True)
        noise = Noise.of(run.config, run.model, batch, out)
        terms = [
            (1.0 / len(train), noise.whiten_energy(out.energy)),
            (10.0 / (4 * len(train)), noise.whiten_forces(out.forces)),
        ]
        if head == "equivariant":
            terms.append((0.5 / len(train), out.energy_var.log()))
        for weight, outputs in terms:
            for output in outputs.flatten():
                (gradient,) = torch.autograd.grad(output, parameters[name], retain_graph=True)
                want += weight * gradient**2
    batches = [train.batch([k]) for k in range(len(train))] * 30
    got = dict(
        zip(
            parameters,
            loss_curvature(run.config, run.model, loss, batches, torch.Generator().manual_seed(0)),
            strict=True,
        )
    )[name]
    # 270 draws of the energy's single error: sqrt(2 / 270) = 9 % of an entry, forces less.
    # E, s; the force's log variance a needs more than a Jacobian
    channels = 2 if head == "equivariant" else 1
    for c in range(channels):
        ratio = got[..., c].sum((1,)) / want[..., c].sum((1,))
        assert (ratio - 1).abs().max() < 0.3, (c, ratio)
        assert (got[..., c] > 0).any()


def test_default_ess_makes_the_loss_a_likelihood():
    train = TrainConfig(forces_weight=10.0, energy_weight=0.5)
    assert default_ess(train, 90, 2430) == 243.0
    assert default_ess(train.model_copy(update={"forces_weight": 0.0}), 90, 2430) == 180.0
