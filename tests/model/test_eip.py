"""The head `eip`: evidence of each Cartesian component of a force, against scalar arithmetic."""

import math

import numpy as np
import pytest
import torch
from e3nn import o3
from scipy import integrate, stats

from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.model.heads import EIP_FLOOR, EIP_REGULARISER, ForceCovariance, eip_nll

SIGMA0 = 0.3


def draw(n: int = 7, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(n, 2, 20, dtype=torch.float64, generator=generator)


def errors(n: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(n, 2, 3, dtype=torch.float64, generator=generator)


def evidence(row: torch.Tensor, component: int) -> tuple[float, float, float]:
    """nu, alpha, beta of one atom: functions of a direction, by its harmonics."""
    harmonics = o3.spherical_harmonics(
        2, torch.eye(3, dtype=torch.float64)[component], False, "component"
    )
    nu, alpha, beta = (
        math.log1p(math.exp(row[2 + k] + math.sqrt(2 / 15) * (harmonics @ row[5 * k + 5 :][:5])))
        + EIP_FLOOR
        for k in range(3)
    )
    return nu, 1 + alpha, SIGMA0**2 * beta


def test_covariances_are_those_of_components():
    raw, head = draw(), ForceCovariance("eip", SIGMA0, torch.float64)
    aleatoric, epistemic = torch.zeros(2, 7, 2, 3, 3, dtype=torch.float64)
    for index in np.ndindex(7, 2, 3):
        nu, alpha, beta = evidence(raw[index[:2]], index[2])
        aleatoric[(*index, index[2])] = beta / (alpha - 1)
        epistemic[(*index, index[2])] = beta / (nu * (alpha - 1))
    found = head.matrix(raw)
    torch.testing.assert_close(found, aleatoric, rtol=1e-10, atol=0)
    torch.testing.assert_close(head.epistemic(found, raw), epistemic, rtol=1e-10, atol=0)
    columns = epistemic[..., SIX_ROWS, SIX_COLUMNS]
    torch.testing.assert_close(head.epistemic(head.columns(raw), raw), columns, rtol=1e-10, atol=0)
    _, logdet = head.mahalanobis_logdet(raw, errors())
    torch.testing.assert_close(head.total_logdet(raw, logdet), torch.logdet(found + epistemic))


def test_loss_is_the_evidence_of_each_component():
    """The Student-t of SciPy, and for one atom the integral over all variances."""
    raw, error, head = draw(), errors(), ForceCovariance("eip", SIGMA0, torch.float64)
    want = np.zeros((7, 2))
    for index in np.ndindex(7, 2, 3):
        nu, alpha, beta = evidence(raw[index[:2]], index[2])
        e = float(error[index])
        width = math.sqrt(beta * (1 + nu) / (nu * alpha))
        nll = -stats.t.logpdf(e, 2 * alpha, scale=width)
        if index[:2] == (0, 0):
            marginal, _ = integrate.quad(
                lambda v, e=e, nu=nu, alpha=alpha, beta=beta: (
                    stats.norm.pdf(e, scale=math.sqrt(v * (1 + 1 / nu)))
                    * stats.invgamma.pdf(v, alpha, scale=beta)
                ),
                0,
                math.inf,
            )
            assert nll == pytest.approx(-math.log(marginal), rel=1e-6)
        want[index[:2]] += nll + EIP_REGULARISER * abs(e) / SIGMA0 * (2 * nu + alpha)
    np.testing.assert_allclose(eip_nll(head, raw, error), want, rtol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_loss_and_its_gradient_are_finite(scale):
    raw = draw(200, scale).requires_grad_()
    for head in (ForceCovariance("eip", SIGMA0, dtype) for dtype in (torch.float32, torch.float64)):
        dtype = head.basis.dtype
        rows = eip_nll(head, raw.to(dtype), errors(200).to(dtype))
        (grad,) = torch.autograd.grad(rows.sum(), raw)
        assert rows.isfinite().all() and grad.isfinite().all()
        reached = grad.abs().amax((0, 1)) > 0
        # Of the five of a tensor, those of xy, xz and yz are on no diagonal
        assert reached.tolist() == [
            False,
            False,
            *3 * [True],
            *3 * [False, False, True, False, True],
        ]


def test_optimum_is_the_spread_of_the_errors():
    """Gaussian errors of one width to a component: their variance is the predicted total."""
    generator, head = torch.Generator().manual_seed(0), ForceCovariance("eip", 0.3, torch.float64)
    width = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    error = width * torch.randn(4000, 3, dtype=torch.float64, generator=generator)
    raw = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = eip_nll(head, raw.expand(4000, 20), error, regulariser=0.0).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    aleatoric = head.matrix(raw.detach())
    total = (aleatoric + head.epistemic(aleatoric, raw.detach())).diagonal()
    np.testing.assert_allclose(total, error.square().mean(0), rtol=0.05)
