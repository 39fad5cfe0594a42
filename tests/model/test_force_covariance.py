"""The compiled covariance of deployed models, race::force_covariance, against
ForceCovariance.matrix.
"""

import math

import pytest
import torch

from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.heads import FIRST_NOISE_BOUND, HEADS, NOISE_BOUND
from race.model.heads import ForceCovariance
from race.model.stress import readout_channels

WITH_NOISE = [name for name, head in HEADS.items() if head.forces_noise]


def channels(head: str, dtype: torch.dtype, stress_head: str = "none") -> torch.Tensor:
    """Raw channels [n, M, n_out], some beyond the bounds of a and t, and a row of zeros."""
    n_scalars, n_tensors = readout_channels(head, stress_head)
    raw = torch.randn(
        300,
        2,
        n_scalars + 5 * n_tensors,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )
    raw *= torch.logspace(-3, 1, 300, dtype=torch.float64)[:, None, None]
    raw[0] = 0.0
    return raw.to(dtype)


def fused(
    head: str, raw: torch.Tensor, factor: float = 1.0, bound: float = NOISE_BOUND
) -> torch.Tensor:
    covariance = ForceCovariance(head, 0.3 * factor, raw.dtype, bound)
    covariance.fused = True
    return covariance.columns(raw)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("head", WITH_NOISE)
@pytest.mark.parametrize("stress_head", ["none", "equivariant"])
def test_equals_the_matrix(stress_head, head, dtype, tolerance):
    raw = channels(head, dtype, stress_head)
    exact = ForceCovariance(head, 0.3, torch.float64).matrix(raw.double())
    scale = exact.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None]
    expected = exact[..., list(SIX_ROWS), list(SIX_COLUMNS)]
    assert (torch.linalg.eigvalsh(exact) > 0).all()
    assert ((fused(head, raw) - expected).abs() / scale).max() < tolerance
    assert (
        (fused(head, raw, 1 + 1e-4) - expected).abs() / scale
    ).max() > tolerance  # a planted error
    assert fused(head, raw[:0]).shape == (0, 2, 6)
    if HEADS[head].tensors:  # channels between those of the head are others'
        n_last = 5 * HEADS[head].tensors
        scalars, tensor = raw.split([raw.shape[2] - n_last, n_last], dim=2)
        others = torch.randn(300, 2, 3, dtype=dtype)
        wider = torch.cat([scalars, others, tensor], 2)
        assert torch.equal(fused(head, wider), fused(head, raw))


@pytest.mark.parametrize("bound", [FIRST_NOISE_BOUND, NOISE_BOUND])
def test_a_narrow_noise_is_as_narrow_as_the_network_says(bound):
    """Up to the bound; one step beyond, the covariance ends. Without Q, Sigma = sigma0^2 e^a I."""
    a = torch.tensor([-bound - 9, -bound - 1, -bound, 1 - bound, bound, bound + 9]).double()
    raw = torch.zeros(6, 1, 8, dtype=torch.float64)
    raw[:, 0, 2] = a
    found = (fused("equivariant", raw, bound=bound)[:, 0, :3] / 0.09).log()
    end = bound + torch.tanh(torch.tensor([9.0, 1.0, 0.0, -1.0, 0.0, 9.0], dtype=torch.float64))
    end[3] = bound - 1  # inside it is a itself
    torch.testing.assert_close(found, (end * a.sign())[:, None].expand(6, 3))
    matrix = ForceCovariance("equivariant", 0.3, torch.float64, bound).matrix(raw)
    torch.testing.assert_close(matrix[:, 0].diagonal(dim1=1, dim2=2).log(), found + math.log(0.09))


def test_an_artifact_that_names_no_bound_has_the_first():
    raw = channels("equivariant", torch.float64)
    basis = ForceCovariance("equivariant", 0.3, torch.float64).basis
    unnamed = torch.ops.race.force_covariance(raw, basis, "equivariant", 0.3, 0.0)
    assert torch.equal(unnamed, fused("equivariant", raw, bound=FIRST_NOISE_BOUND))
    assert not torch.equal(unnamed, fused("equivariant", raw))


def test_bad_arguments():
    basis = torch.zeros(5, 9)
    with pytest.raises(ValueError, match="head: expected one of cholesky, .*, got point"):
        torch.ops.race.force_covariance(torch.zeros(3, 1, 8), basis, "point", 0.1, 0.0)
    with pytest.raises(
        ValueError, match=r"raw: expected .n_atoms, n_members, 10 or more., got .3, 1, 8."
    ):
        torch.ops.race.force_covariance(torch.zeros(3, 1, 8), basis, "evidential", 0.1, 0.0)
    with pytest.raises(ValueError, match=r"basis: expected .5, 9. on cpu, got .9, 5."):
        torch.ops.race.force_covariance(torch.zeros(3, 1, 8), basis.t(), "equivariant", 0.1, 0.0)
