"""Sums over consecutive rows by both routes, against a loop; derivatives up to the second."""

import pytest
import torch

import race.model.scatter as scatter
from race.model.scatter import WIDEST, segment_sum, sum_by_index, sum_by_scatter

ROUTES = [
    sum_by_index,
    pytest.param(
        sum_by_scatter,
        marks=pytest.mark.skipif(
            not scatter.HAS_SCATTER, reason="torch-scatter is not installed (extra `scatter`)"
        ),
    ),
]
SHAPES = [(), (1,), (3,), (2, 6), (WIDEST + 1,), (5, 8)]
COUNTS = [0, 3, 1, 0, 0, 7, 2, 0]  # rows of each sum: none first, last and in between


def problem(shape, dtype=torch.float64, counts=COUNTS):
    gen = torch.Generator().manual_seed(0)
    row_ptr = torch.tensor([0, *counts]).cumsum(0)
    return torch.randn(
        int(row_ptr[-1]), *shape, dtype=dtype, generator=gen
    ).requires_grad_(), row_ptr


def loop(src, row_ptr):
    out = [src.new_zeros(src.shape[1:]) for _ in row_ptr[1:]]
    for j, (first, last) in enumerate(zip(row_ptr[:-1], row_ptr[1:], strict=True)):
        for e in range(first, last):
            out[j] = out[j] + src[e]
    return torch.stack(out)


def functional(route, src, row_ptr):
    """The sum, its gradient under a weight that depends on the rows, and the gradient of
    that: no term is constant.
    """
    out = route(src, row_ptr)
    (first,) = torch.autograd.grad((out**3).sum(), src, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), src)
    return out, first, second


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("route", [*ROUTES, segment_sum])
def test_equals_a_loop_with_second_derivatives(route, shape):
    src, row_ptr = problem(shape)
    for found, expected in zip(
        functional(route, src, row_ptr), functional(loop, src, row_ptr), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("route", ROUTES)
def test_second_derivatives_by_finite_differences(route):
    src, row_ptr = problem((3,))
    # The sum is linear: squared, so that its second derivative is not zero whatever the
    # backward does.
    assert torch.autograd.gradgradcheck(lambda x: route(x, row_ptr) ** 2, (src,))


@pytest.mark.parametrize("route", ROUTES)
def test_float32_and_rows_that_are_not_contiguous(route):
    src, row_ptr = problem((4, 6), torch.float32)
    strided = src.transpose(1, 2)
    torch.testing.assert_close(
        route(strided, row_ptr), loop(strided, row_ptr), rtol=1e-6, atol=1e-6
    )
    expanded = src[:, :1].expand(-1, 4, -1)
    torch.testing.assert_close(
        route(expanded, row_ptr), loop(expanded, row_ptr), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("counts", [[], [0], [0, 0]])
@pytest.mark.parametrize("route", [*ROUTES, segment_sum])
def test_no_rows(route, counts):
    src, row_ptr = problem((3,), counts=counts)
    out = route(src, row_ptr)
    assert out.shape == (len(counts), 3) and not out.any()
    (grad,) = torch.autograd.grad(out.sum(), src)
    assert grad.shape == (0, 3)


def test_narrow_rows_go_to_torch_scatter(monkeypatch):
    monkeypatch.setattr(scatter, "HAS_SCATTER", True)
    monkeypatch.setattr(scatter, "sum_by_scatter", lambda *_: "scatter")
    monkeypatch.setattr(scatter, "sum_by_index", lambda *_: "index")
    used = [
        segment_sum(*problem(shape)) for shape in ((), (WIDEST,), (5, 3), (WIDEST + 1,), (4, 4))
    ]
    assert used == ["scatter", "scatter", "scatter", "index", "index"]
    monkeypatch.setattr(scatter, "HAS_SCATTER", False)
    assert segment_sum(*problem(())) == "index"


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_at_hand(shape):
    """The row of each summand, made here as the batch makes it, gives what row_ptr gives."""
    src, row_ptr = problem(shape)
    receiver = torch.tensor(
        [j for j in range(len(row_ptr) - 1) for _ in range(int(row_ptr[j + 1] - row_ptr[j]))],
        dtype=torch.int64,
    )
    assert torch.equal(sum_by_index(src, row_ptr, receiver), sum_by_index(src, row_ptr))
    assert torch.equal(segment_sum(src, row_ptr, receiver), segment_sum(src, row_ptr))


def test_scripted():
    src, row_ptr = problem((3,))
    torch.testing.assert_close(torch.jit.script(segment_sum)(src, row_ptr), loop(src, row_ptr))
