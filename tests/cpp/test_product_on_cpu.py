"""The CUDA kernels of race::product and the code around them, compiled for the CPU, against its
own CPU kernels. `make cuda-check` builds race_on_cpu.so and runs this file.
"""

import pytest
import torch

from tests.model.conv_cases import TOLERANCE
from tests.model.operators import worst
from tests.model.test_product_kernel import IRREPS, make

from .test_cuda_on_cpu import emulated, library

assert library  # loaded there, or this file is skipped with it


def results(operands, rest, masks=((True,) * 2, (True,) * 3), absent=(), seed=1):
    """Forward, backward and double backward on random cotangents; undefined results as
    None.
    """
    x, weight = (t.detach() for t in operands)
    gen = torch.Generator().manual_seed(seed)

    def like(t):
        return torch.randn(t.shape, dtype=t.dtype, generator=gen)

    grad, *bars = like(x), like(x), like(weight)
    bars = [None if k in absent else bar for k, bar in enumerate(bars)]
    return [
        torch.ops.race.product(x, weight, *rest),
        *torch.ops.race.product_backward(grad, x, weight, *rest, masks[0]),
        *torch.ops.race.product_double_backward(*bars, grad, x, weight, *rest, masks[1]),
    ]


def compare(operands, rest, dtype=torch.float64, **options):
    expected = results(operands, rest, **options)
    with emulated():
        found = results(operands, rest, **options)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape and a.dtype == b.dtype
            assert a.numel() == 0 or worst([a], [b]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", [(64, 1, 1), (5, 3, 2)])
@pytest.mark.parametrize("correlation", [2, 3])
@pytest.mark.parametrize("irreps", IRREPS)
def test_all_derivatives(irreps, correlation, sizes, dtype):
    compare(*make(irreps, correlation, *sizes, dtype=dtype), dtype=dtype)


def test_many_atoms():
    """Several parts of the sum over atoms, of species with many atoms, few and none."""
    operands, (_, rows, cg) = make("0e+1o", 3, 5, 2, 4, n=150)
    species = torch.tensor([0] * 120 + [3] * 30)[torch.randperm(150)]
    compare(operands, (species, rows, cg))


@pytest.mark.parametrize("absent", [(0,), (1,)])
def test_absent_cotangents(absent):
    compare(*make("0e+1o+2e", 3, 5, 2, 2), absent=absent)


@pytest.mark.parametrize("k", range(3))
def test_only_what_is_asked_for(k):
    masks = [[i == min(k, 1) for i in range(2)], [i == k for i in range(3)]]
    compare(*make("0e+1o+2e", 3, 5, 2, 2), masks=masks)


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_tiny(n):
    compare(*make("0e+1o", 3, 6, 2, 2, n=n))


def test_changed_coefficients_are_noticed():
    operands, (species, rows, cg) = make("0e+1o", 3, 6)
    compare(operands, (species, rows, cg))
    cg.mul_(2.0)
    compare(operands, (species, rows, cg))


def test_a_species_without_weights_gives_nan():
    """The device is not waited for, and no number is made up."""
    (x, weight), (species, rows, cg) = make("0e+1o", 3, 6, 1, 2)
    wrong = species.clone()
    wrong[3] = 2
    with emulated():
        out = torch.ops.race.product(x.detach(), weight.detach(), wrong, rows, cg)
    assert out[3].isnan().all() and out[[0, 1, 2, 4, 5, 6]].isfinite().all()


def test_a_planted_error_is_seen():
    operands, (species, rows, cg) = make("0e+1o+2e", 3, 16)
    wrong = cg.clone()
    wrong[wrong.nonzero()[-1]] *= 1 + 1e-9
    with emulated():
        found = results(operands, (species, rows, wrong))
    expected = results(operands, (species, rows, cg))
    assert worst(found, expected) > TOLERANCE[torch.float64]


def test_errors_name_the_argument():
    (x, weight), (species, rows, cg) = make("0e+1o", 2, 6)
    message = "race::product: weight: expected Double, got Float"
    with emulated(), pytest.raises(ValueError, match=message):
        torch.ops.race.product(x, weight.float(), species, rows, cg)
