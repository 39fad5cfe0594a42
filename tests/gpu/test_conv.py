"""race::conv on the GPU against the CPU's: results, first and second derivatives."""

import pytest
import torch

from race.model.conv import conv_fused
from tests.model.conv_cases import IRREPS, TOLERANCE, derivatives, make
from tests.model.operators import worst

from .conftest import DEVICE

PAPER = {
    "3bpa": ("64x0e+64x0o+64x1o+64x1e+64x2e+64x2o+64x3o+64x3e", 3),
    "qm9": ("64x0e+64x0o+64x1o+64x1e+64x2e+64x2o", 2),
    "obn25": ("32x0o+32x0e+16x1o+16x1e+8x2o+8x2e", 3),
}


def on_gpu(*arguments):
    """conv_fused of CPU operands, computed on the GPU; autograd passes through the copies."""
    return conv_fused(
        *[t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in arguments]
    ).cpu()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_members, groups", [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("knots", [0, 16])
@pytest.mark.parametrize("irreps, lmax", [*PAPER.values(), *[(irreps, 3) for irreps in IRREPS]])
def test_equals_cpu(irreps, lmax, knots, n_members, groups, dtype):
    operands, rest = make(irreps, lmax, n_members, groups, dtype, knots=knots)
    expected = derivatives(conv_fused, operands, rest)
    assert worst(derivatives(on_gpu, operands, rest), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("knots", [0, 16])
def test_many_atoms(knots):
    """Enough receivers for wide tiles, for several batches of rows and for one warp per
    receiver.
    """
    operands, rest = make(
        "64x0e+64x1o",
        1,
        n_nodes=20000,
        n_edges=60000,
        n_receivers=18000,
        dtype=torch.float32,
        knots=knots,
    )
    expected = derivatives(conv_fused, operands, rest)
    assert worst(derivatives(on_gpu, operands, rest), expected) < TOLERANCE[torch.float32]


def test_the_same_bits_every_time():
    operands, rest = make(
        "5x0e+19x1o+8x2e", 2, 2, 2, torch.float32, n_nodes=50, n_edges=2000, n_receivers=50, knots=6
    )
    first = derivatives(on_gpu, operands, rest)
    for _ in range(3):
        assert all(
            torch.equal(a, b)
            for a, b in zip(derivatives(on_gpu, operands, rest), first, strict=True)
        )


def test_a_planted_error_is_seen():
    operands, rest = make("4x0e+2x1o", 1, knots=5)
    sender, row_ptr, rows, cg, dim_out = rest
    wrong = cg.clone()
    wrong[wrong.nonzero()[-1]] *= 1 + 1e-9
    expected = derivatives(conv_fused, operands, rest)
    assert (
        worst(derivatives(on_gpu, operands, (sender, row_ptr, rows, wrong, dim_out)), expected)
        > TOLERANCE[torch.float64]
    )


@pytest.mark.parametrize(
    "sizes",
    [dict(n_edges=0), dict(n_edges=0, n_receivers=0), dict(n_edges=0, n_nodes=0, n_receivers=0)],
)
def test_empty(sizes):
    operands, rest = make("4x0e+2x1o", 1, 2, 2, **sizes)
    for a, b in zip(
        derivatives(on_gpu, operands, rest), derivatives(conv_fused, operands, rest), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("change", [6, -6])
def test_bad_senders_are_an_error_not_a_crash(change):
    (g, radial, table, sh), (sender, row_ptr, *rest) = make("4x0e+2x1o", 1)
    with pytest.raises(ValueError, match=r"sender: expected \[0, 6\), got"):
        on_gpu(g, radial, table, sh, sender + change, row_ptr, *rest)
    assert torch.ones(3, device=DEVICE).sum().item() == 3.0  # the device is as it was


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU beside the CPU")
def test_operands_on_two_devices():
    (g, radial, table, sh), (sender, *rest) = make("4x0e+2x1o", 1)
    with pytest.raises(ValueError, match="sender: expected cuda:0, got cpu"):
        conv_fused(
            g.cuda(),
            radial.cuda(),
            table,
            sh.cuda(),
            sender,
            *[t.cuda() if isinstance(t, torch.Tensor) else t for t in rest],
        )
