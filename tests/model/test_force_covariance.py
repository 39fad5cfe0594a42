"""The compiled covariance of deployed models, race::force_covariance, against
ForceCovariance.matrix.
"""

import pytest
import torch

from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.heads import HEADS
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


def fused(head: str, raw: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    covariance = ForceCovariance(head, 0.3 * factor, raw.dtype)
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
