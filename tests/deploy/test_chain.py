"""race::chain and its twin in stock operations against plain loops over the definition."""

import pytest
import torch

from race.deploy.chain import chain_aten, chain_fused

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13}
# from, to, d, mul_in, mul_out, in_offset, out_offset: tensors 0 and 1 are given, 2 and 3
# made; columns are for M = 1
LINKS = [
    (0, 2, 1, 8, 16, 0, 0, True),
    (0, 2, 3, 5, 20, 8, 16, True),
    (1, 2, 1, 16, 16, 0, 0, False),  # adds to what another link wrote
    (2, 3, 3, 20, 7, 16, 1, False),  # reads what others made
    (0, 1, 1, 8, 4, 0, 3, True),  # changes what is given
]
WIDTHS = [23, 16, 76, 23]


def make(n, M, S, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    blocks, offset = [], 0
    for source, to, d, mul_in, mul_out, in_offset, out_offset, of_species in LINKS:
        step = mul_in * mul_out if of_species else 0
        blocks += [source, to, d, mul_in, mul_out, in_offset * M, out_offset * M, offset, step]
        offset += mul_in * mul_out * (S if of_species else 1)
    widths = [M * width for width in WIDTHS]
    x = [draw(n, width) for width in widths[:2]]
    species = torch.randint(S, (n,), generator=generator)
    return x, draw(S, sum(widths[2:])), species, draw(M, offset), S, widths[2:], blocks


def plain(x, rows, species, weight, n_species, widths, blocks):
    tensors = [*x, *(part.clone() for part in rows[species].split(widths, dim=1))]
    M = weight.shape[0]
    for i, s in enumerate(species.tolist()):
        for k in range(0, len(blocks), 9):
            source, to, d, a, b, in_offset, out_offset, offset, step = blocks[k : k + 9]
            matrix = weight[:, offset + s * step :][:, : a * b].view(M, a, b)
            read = tensors[source][i, in_offset : in_offset + d * M * a].view(d, M, a)
            tensors[to][i, out_offset : out_offset + d * M * b] += torch.einsum(
                "dmu,muv->dmv", read, matrix
            ).flatten()
    return tensors


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n, M, S", [(150, 1, 1), (150, 3, 4), (1, 2, 2), (0, 2, 2)])
@pytest.mark.parametrize("chain", [chain_fused, chain_aten])
def test_equals_the_definition(chain, n, M, S, dtype):
    x, *rest = make(n, M, S, dtype)
    rows, species, weight, *shape = rest
    expected = plain(
        [each.double().clone() for each in x], rows.double(), species, weight.double(), *shape
    )
    given = [each.clone() for each in x]
    result = chain(given, *rest)
    assert [each.shape for each in result] == [(n, width) for width in rest[-2]]
    for a, b in zip([*given, *result], expected, strict=True):
        assert n == 0 or (a - b).abs().max() < TOLERANCE[dtype] * 10 * b.abs().max()
    assert torch.equal(given[0], x[0]) and (n == 0 or not torch.equal(given[1], x[1]))


@pytest.mark.parametrize("chain", [chain_fused, chain_aten])
def test_without_rows_it_starts_at_zero(chain):
    x, rows, *rest = make(9, 2, 3, torch.float64)
    a, b = (
        chain([each.clone() for each in x], start, *rest)
        for start in (None, torch.zeros_like(rows))
    )
    assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))


def test_the_same_bits_on_any_number_of_threads():
    torch.manual_seed(0)
    x, *rest = make(3000, 2, 3, torch.float32)
    results = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(chain_fused([each.clone() for each in x], *rest))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize(
    "argument, value, message",
    [
        (
            0,
            [torch.zeros(8, 23).double()],
            r"x\[0\]: expected contiguous Double \[9, width\] .*, got Double \[8, 23\]",
        ),
        (
            0,
            [torch.zeros(9, 23), torch.zeros(9, 16).double()],
            r"x\[0\]: expected .* Double .*, got Float",
        ),
        (
            0,
            [torch.zeros(23, 9).double().t(), torch.zeros(9, 16).double()],
            r"x\[0\]: expected contiguous",
        ),
        (1, torch.zeros(3, 98).double(), "rows: expected the sum of widths, 99 columns, got 98"),
        (2, torch.full((9,), 3), r"species: expected \[0, 3\), got 3"),
        (
            3,
            torch.zeros(1, 10).double(),
            "weight_offset weight_step: expected matrices inside weight's 10 numbers, got 0 128",
        ),
        (5, [76, -1], "widths: expected no negative width, got -1"),
        (6, [0, 2, 1], "blocks: expected rows of 9 integers, got 3 integers"),
        (6, [0, 4, 1, 8, 16, 0, 0, 0, 0], "from to: expected two of 4 tensors, got 0 4"),
        (6, [2, 2, 1, 8, 16, 0, 0, 0, 0], "from to: expected two of 4 tensors, got 2 2"),
        (6, [0, 2, 0, 8, 16, 0, 0, 0, 0], "d mul_in mul_out: expected at least 1, got 0 8 16"),
        (
            6,
            [0, 2, 1, 8, 16, 16, 0, 0, 0],
            "in_offset: expected a block of 8 inside 23 columns, got 16",
        ),
        (
            6,
            [0, 2, 1, 8, 16, 0, 61, 0, 0],
            "out_offset: expected a block of 16 inside 76 columns, got 61",
        ),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_errors_name_the_argument(argument, value, message):
    arguments = [*make(9, 1, 3, torch.float64)]
    arguments[argument] = value
    with pytest.raises(ValueError, match=message):
        chain_fused(*arguments)
