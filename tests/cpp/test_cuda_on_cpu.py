"""The CUDA kernels and the code around them, compiled for the CPU (cuda_on_cpu/), against
race::conv's own CPU kernels.

    make cuda-check        builds race_on_cpu.so and runs this file

Once built, it is built anew here when its sources are newer.

Every index and every term is tested here without a GPU; what remains for tests/gpu is
what only a device does (memory, streams).
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.model.conv_cases import TOLERANCE, make
from tests.model.operators import worst

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import emulation  # noqa: E402

library = emulation.LIBRARY
if not library.exists():
    pytest.skip(f"{library} is not built: run `make cuda-check`", allow_module_level=True)
emulation.update()
torch.ops.load_library(library)


@contextlib.contextmanager
def emulated():
    """Makes the CUDA kernels those of the CPU in torch's dispatcher."""
    torch.ops.race_on_cpu.emulate(True)
    try:
        yield
    finally:
        torch.ops.race_on_cpu.emulate(False)


ALL = "70x0e+24x1o+16x1e+33x2e+40x3o"


@pytest.fixture(params=[1, 8], ids=["one multiprocessor", "eight"])
def multiprocessors(request, monkeypatch):
    """Decides the width of tiles and how many warps share a receiver."""
    monkeypatch.setenv("RACE_EMULATED_MULTIPROCESSORS", str(request.param))


def results(operands, rest, masks=((True,) * 4, (True,) * 5), absent=(), seed=1):
    """Forward, backward and double backward on random cotangents; undefined results as
    None.
    """
    g, radial, table, sh = (None if t is None else t.detach() for t in operands)
    *graph, dim_out = rest
    gen = torch.Generator().manual_seed(seed)

    def like(t):
        return torch.randn(t.shape, dtype=t.dtype, generator=gen)

    out = torch.ops.race.conv(g, radial, table, sh, *graph, dim_out)
    grad = like(out)
    bars = [like(t) for t in (g, radial, sh)]
    first_mask = [m and (table is not None or k != 2) for k, m in enumerate(masks[0])]
    second_mask = [m and (table is not None or k != 3) for k, m in enumerate(masks[1])]
    first = torch.ops.race.conv_backward(grad, g, radial, table, sh, *graph, first_mask)
    bars = [None if k in absent else bar for k, bar in enumerate(bars)]
    operands = g, radial, table, sh, *graph
    second = torch.ops.race.conv_double_backward(*bars, grad, *operands, second_mask)
    return [out, *first, *second]


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
@pytest.mark.parametrize("n_members, groups", [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("knots", [0, 6])
@pytest.mark.parametrize(
    "irreps, lmax",
    [("64x0e", 1), ("4x0e+2x1o", 1), ("5x0e+19x1o+8x2e", 3), ("33x0e+6x1o+3x1e+2x2e+2x3o", 3)],
)
def test_all_derivatives(irreps, lmax, knots, n_members, groups, dtype, multiprocessors):
    compare(*make(irreps, lmax, n_members, groups, dtype, knots=knots), dtype=dtype)


@pytest.mark.parametrize("knots", [0, 6])
def test_all_degrees(knots, monkeypatch):
    """Every width of tile and every pair of degrees; tiles of two channels to a lane."""
    monkeypatch.setenv("RACE_EMULATED_MULTIPROCESSORS", "0")
    compare(*make(ALL, 3, n_nodes=3, n_edges=5, n_receivers=2, knots=knots))


def test_many_edges_of_one_receiver(multiprocessors):
    """More than one chunk of edges, and a sender with many."""
    compare(*make("5x0e+3x1o", 1, 2, 2, n_nodes=2, n_edges=150, n_receivers=2, knots=4))


def test_beyond_the_table(multiprocessors):
    (g, _, table, sh), rest = make("5x0e+3x1o", 1, 2, 2, knots=7)
    x = torch.linspace(0.9, 1.4, 23, dtype=torch.float64)
    x[0], x[1], x[2] = 0.0, 1.0, 0.5  # a knot
    compare([g, x[:, None].expand(-1, 2), table, sh], rest)


@pytest.mark.parametrize("absent", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("knots", [0, 6])
def test_absent_cotangents(knots, absent):
    compare(*make("5x0e+3x1o", 1, 2, 2, knots=knots), absent=absent)


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize("knots", [0, 6])
def test_only_what_is_asked_for(knots, k):
    masks = [[i == min(k, 3) for i in range(4)], [i == k for i in range(5)]]
    compare(*make("5x0e+3x1o", 1, 2, 2, knots=knots), masks=masks)
    compare(
        *make("5x0e+3x1o", 1, 2, 2, knots=knots), masks=[[not m for m in mask] for mask in masks]
    )


@pytest.mark.parametrize(
    "sizes",
    [
        dict(n_edges=0),
        dict(n_edges=0, n_receivers=0),
        dict(n_edges=0, n_nodes=0, n_receivers=0),
        dict(n_nodes=1, n_receivers=1),
    ],
)
@pytest.mark.parametrize("knots", [0, 6])
def test_empty_and_tiny(knots, sizes):
    compare(*make("4x0e+2x1o", 1, 2, 2, knots=knots, **sizes))


@pytest.mark.parametrize("knots", [0, 6])
def test_weights_shared_and_columns_left_free(knots):
    """Two paths reading one weight, a weight that no path reads, columns that no path
    writes, columns that two paths write.
    """
    (g, radial, table, sh), (sender, row_ptr, rows, cg, dim_out) = make(
        "4x0e+2x1o", 1, 2, 2, knots=knots
    )
    compare([g, radial, table, sh], (sender, row_ptr, rows[:20] + rows[30:], cg, dim_out))
    shared = list(rows)
    shared[18] = shared[8]
    compare([g, radial, table, sh], (sender, row_ptr, shared, cg, dim_out))
    overlapping = list(rows)
    # Out_column of the first path, of the same output block as the second
    overlapping[7] = overlapping[17] + 1
    overlapping[5], overlapping[6] = overlapping[15], overlapping[16]
    if overlapping[7] + overlapping[3] <= overlapping[6]:
        compare([g, radial, table, sh], (sender, row_ptr, overlapping, cg, dim_out))


def test_changed_graph_is_noticed():
    """The graph's checks and its transposition are remembered with the tensor: writing to it
    must be seen.
    """
    operands, rest = make("4x0e+2x1o", 1)
    with emulated():
        before = results(operands, rest)
        rest[0].copy_(rest[0].flip(0).clone())
        after = results(operands, rest)
    assert worst(after[:2], before[:2]) > 1e-3
    compare(operands, rest)


def test_changed_coefficients_are_noticed():
    operands, rest = make("4x0e+2x1o", 1)
    compare(operands, rest)
    rest[3].mul_(2.0)
    compare(operands, rest)


def test_a_planted_error_is_seen():
    operands, rest = make("4x0e+2x1o", 1, knots=5)
    sender, row_ptr, rows, cg, dim_out = rest
    wrong = cg.clone()
    wrong[wrong.nonzero()[-1]] *= 1 + 1e-9
    with emulated():
        found = results(operands, (sender, row_ptr, rows, wrong, dim_out))
    assert worst(found, results(operands, rest)) > TOLERANCE[torch.float64]


def test_scratch_in_several_passes():
    """The table's adjoint with scratch for one tile at a time. The limit is read once, hence
    another process.
    """
    script = (
        "from tests.cpp.test_cuda_on_cpu import compare, make\n"
        "compare(*make('33x0e+19x1o+8x2e', 2, 2, 2, knots=6))\ncompare(*make('5x0e+3x1o', 1, 2, 1, "
        "knots=6))"
    )
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "RACE_CUDA_SCRATCH_MB": "0"},
        cwd=root,
        check=True,
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(g=lambda t: t.half()), "g: expected float32 or float64, got Half"),
        (dict(radial=lambda t: t.float()), "radial: expected Double, got Float"),
        (dict(sh=lambda t: t.expand(-1, 5, -1)), "sh: expected"),
        (dict(sender=lambda t: t + 6), r"sender: expected \[0, 6\), got"),
        (dict(sender=lambda t: t - 6), r"sender: expected \[0, 6\), got -"),
        (dict(row_ptr=lambda t: t.flip(0)), "row_ptr: expected to run from 0 to 23"),
        (
            dict(row_ptr=lambda t: torch.cat([t[:-1], t[-1:] - 1])),
            "row_ptr: expected to run from 0 to 23",
        ),
        (dict(paths=lambda rows: rows[:-1]), "paths: expected rows of 10 integers"),
        (
            dict(paths=lambda rows: [*rows[:8], 10**6, *rows[9:]]),
            "paths row 0, weight_offset: expected 0 to",
        ),
        (dict(dim_out=lambda n: n - 1), "out_offset"),
    ],
)
def test_errors_name_the_argument(change, message):
    (g, radial, table, sh), (sender, row_ptr, paths, cg, dim_out) = make("4x0e+2x1o", 1, 2, 2)
    arguments = dict(
        g=g,
        radial=radial,
        table=table,
        sh=sh[:, :1],
        sender=sender,
        row_ptr=row_ptr,
        paths=paths,
        cg=cg,
        dim_out=dim_out,
    )
    for name, edit in change.items():
        arguments[name] = edit(arguments[name])
    with emulated(), pytest.raises(ValueError, match=message):
        torch.ops.race.conv(**arguments)
