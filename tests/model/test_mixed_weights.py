"""race::mixed_weights against torch.bmm: values and adjoints."""

import pytest
import torch

import race.model.fused  # noqa: F401  registers torch.ops.race


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 5, 64, 8192),
        (3, 1, 7, 513),
        (2, 9, 6, 20),
        (2, 17, 8, 530),
        (2, 3, 4, 0),
        (1, 0, 4, 5),
        (1, 2, 0, 5),
    ],
)
def test_equals_bmm(shape, dtype, tolerance):
    M, S, F, N = shape
    generator = torch.Generator().manual_seed(0)
    a, weight, bar = (
        torch.randn(M, *size, dtype=dtype, generator=generator) for size in ((S, F), (F, N), (S, N))
    )
    leaves = [a.requires_grad_(), weight.requires_grad_()]
    found, expected = (
        [out, *torch.autograd.grad(out, leaves, bar)]
        for out in (torch.ops.race.mixed_weights(a, weight), torch.bmm(a, weight))
    )
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        assert y.numel() == 0 or (x - y).abs().max() <= tolerance * y.abs().max()
    if S and F and N:
        planted = torch.autograd.grad(
            torch.ops.race.mixed_weights(a, weight), leaves, bar * (1 + 1e-3)
        )
        assert (planted[1] - expected[2]).abs().max() > tolerance * expected[2].abs().max()


def test_strided_operands():
    a, weight = torch.randn(2, 4, 3).transpose(1, 2), torch.randn(2, 9, 4).transpose(1, 2)
    assert torch.allclose(torch.ops.race.mixed_weights(a, weight), torch.bmm(a, weight), atol=1e-6)


def test_bad_arguments():
    with pytest.raises(
        ValueError,
        match=r"a: expected float32 or float64 .n_members, n_species, n_features., got Half",
    ):
        torch.ops.race.mixed_weights(torch.zeros(1, 2, 3).half(), torch.zeros(1, 3, 4))
    with pytest.raises(
        ValueError, match=r"weight: expected Float .1, 3, numel. on cpu, got Float .1, 2, 4."
    ):
        torch.ops.race.mixed_weights(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(NotImplementedError, match="differentiable once"):
        a = torch.zeros(1, 2, 3, requires_grad=True)
        torch.autograd.grad(
            torch.ops.race.mixed_weights(a, torch.zeros(1, 3, 4)).square().sum(),
            a,
            create_graph=True,
        )
