"""race::add_linear_: the map added in place, columns written by several blocks included."""

import pytest
import torch

from race.model.linear import add_linear_aten, add_linear_fused

from .test_linear import SHAPES, TOLERANCE, make, plain


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_members, n_species", [(1, 1), (3, 4)])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("add", [add_linear_fused, add_linear_aten])
def test_equals_the_definition(add, shapes, n_members, n_species, dtype):
    (x, weight), (species, blocks, dim_out) = make(shapes, n_members, n_species, dtype=dtype)
    start = torch.randn(x.shape[0], dim_out, dtype=dtype)
    with torch.no_grad():
        expected = start + plain(x, weight, species, blocks, dim_out)
        out = add(start.clone(), x, weight, species, blocks)
    assert (out - expected).abs().max() < TOLERANCE[dtype] * expected.abs().max()
    assert (out - expected).abs().max() < 1e-3 * (out - start).abs().max()  # what was added, not what was there


@pytest.mark.parametrize("add", [add_linear_fused, add_linear_aten])
def test_blocks_that_write_the_same_columns_add_up(add):
    (x, weight), (_, blocks, dim_out) = make([(1, 5, 3), (1, 4, 3)])
    blocks = [*blocks[:10], 0, blocks[11]]  # the second where the first writes
    with torch.no_grad():
        out = add(torch.zeros(14, dim_out, dtype=torch.float64), x, weight, None, blocks)
        parts = [plain(x, weight, None, blocks[k : k + 6], dim_out) for k in (0, 6)]
    assert torch.allclose(out, sum(parts), rtol=0, atol=1e-13)
    assert all((out - part).abs().max() > 0.1 for part in parts)


@pytest.mark.parametrize("add", [add_linear_fused, add_linear_aten])
@pytest.mark.parametrize("n", [0, 1])
def test_no_rows(add, n):
    (x, weight), (species, blocks, dim_out) = make(SHAPES[1], 2, 3, n=n)
    with torch.no_grad():
        assert add(torch.ones(n, dim_out, dtype=torch.float64), x, weight, species, blocks).shape == (n, dim_out)


@pytest.mark.parametrize(
    "out, message",
    [
        (torch.zeros(13, 15).double(), r"out: expected Double \[14, dim_out\] on cpu, got Double \[13, 15\] on cpu"),
        (torch.zeros(14, 15), "out: expected Double .*, got Float"),
        (torch.zeros(15, 14).double().t(), "out: expected contiguous rows"),
        (torch.zeros(14, 14).double(), "out_offset: expected a block of 6 inside dim_out = 14, got 9"),
    ],
)
def test_errors_name_the_argument(out, message):
    x, weight = torch.randn(14, 36, dtype=torch.float64), torch.randn(3, 3, 28, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        torch.ops.race.add_linear_(out, x, weight, torch.arange(14) % 2, [1, 4, 3, 0, 0, 0, 1, 8, 2, 12, 9, 12])
