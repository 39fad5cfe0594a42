"""race::conv on threads and instruction sets, in scripts and beside a second library;
what it refuses.
"""

import itertools
import shutil
import time

import pytest
import torch

import race.model.scatter as scatter_module
from race.model.conv import conv_aten, conv_fused

from .conv_cases import TOLERANCE, derivatives, make
from .operators import of_case, on_instruction_set, worst

librace = pytest.importorskip(
    "race._race", reason="race._race is not built: there is no fused convolution to test"
)


@pytest.mark.parametrize("knots", [0, 6])
@pytest.mark.parametrize("n_members, groups", [(3, 1), (2, 2), (1, 1)])
def test_threads_change_rounding_only(n_members, groups, knots):
    """Shared by members where each has its own results, by receivers otherwise."""
    operands, rest = make(
        "8x0e+5x1o+8x2e", 2, n_members, groups, n_nodes=20, n_edges=300, n_receivers=20, knots=knots
    )
    before, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            results.append(derivatives(conv_fused, operands, rest))
    finally:
        torch.set_num_threads(before)
    assert worst(results[1], results[0]) < 1e-13
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))


def test_threads_work_at_the_same_time():
    """A library compiled without OpenMP runs its loops on the calling thread alone, and
    passes every other test.
    """
    operands, rest = make(
        "16x0e+16x1o", 1, 1, 1, n_nodes=200, n_edges=20000, n_receivers=200, knots=6
    )
    detached = [t.detach() for t in operands]
    before, by_others = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            process, thread = time.process_time(), time.thread_time()
            for _ in range(
                300
            ):  # threads that wait for work of another test burn time for some milliseconds
                torch.ops.race.conv(*detached, *rest)
            own = time.thread_time() - thread
            by_others.append((time.process_time() - process - own) / own)
    finally:
        torch.set_num_threads(before)
    assert by_others[0] < 0.1 and by_others[1] > 0.4


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa, tmp_path):
    """The lesser builds of the kernels, each in a process that asks for it (all else here
    runs the host's own).
    """
    cases = []
    for dtype, knots in itertools.product(TOLERANCE, (0, 6)):
        operands, rest = make("5x0e+19x1o+8x2e+70x3o", 3, 2, 2, dtype, knots=knots)
        weight = torch.randn(5, rest[-1], dtype=dtype, requires_grad=True)
        cases.append((operands, rest, weight, (0, 1, 3)))
    results = on_instruction_set(isa, "conv", cases, tmp_path)
    for result, case in zip(results, cases, strict=True):
        assert worst(result, of_case(conv_aten, case)) < TOLERANCE[case[2].dtype]


def test_sums_by_torch_scatter_keep_second_derivatives(monkeypatch):
    """Stands in for torch_scatter, whose results carry no second-order graph either."""
    operands, rest = make("4x0e+2x1o", 1)
    expected = derivatives(conv_fused, operands, rest)

    def segment_csr(src, row_ptr, reduce):
        assert reduce == "sum"
        return torch.stack(
            [src.detach()[a:b].sum(0) for a, b in zip(row_ptr[:-1], row_ptr[1:], strict=True)]
        )

    def gather_csr(src, row_ptr):
        return src.detach().repeat_interleave(row_ptr.diff(), dim=0)

    monkeypatch.setattr(scatter_module, "segment_csr", segment_csr)
    monkeypatch.setattr(scatter_module, "gather_csr", gather_csr)
    monkeypatch.setattr(scatter_module, "HAS_SCATTER", True)
    monkeypatch.setattr(scatter_module, "WIDEST", 10**6)
    assert worst(derivatives(conv_aten, operands, rest), expected) < 1e-12


def test_two_copies_of_librace_in_one_process(tmp_path):
    """As when Python loads LAMMPS with the plugin beside race._race: the second finds the
    operators there and is content.
    """
    copy = tmp_path / "another_race.so"
    shutil.copy(librace.__file__, copy)
    torch.ops.load_library(copy)
    operands, rest = make("4x0e", 0)
    assert (
        worst(derivatives(conv_fused, operands, rest), derivatives(conv_aten, operands, rest))
        < 1e-12
    )


def test_scripted_and_portable():
    operands, rest = make("4x0e+2x1o", 1)
    expected = conv_aten(*operands, *rest)
    for conv in (conv_fused, conv_aten):
        scripted = torch.jit.script(conv)
        assert worst([scripted(*operands, *rest)], [expected]) < 1e-12
        assert ("race::" in str(scripted.inlined_graph)) == (conv is conv_fused)


def test_shapes_without_data():
    operands, rest = make("4x0e+2x1o", 1, knots=5)
    sender, row_ptr, rows, cg, dim_out = rest
    meta = [t.detach().to("meta") for t in (*operands, sender, row_ptr)]
    assert (
        conv_fused(*meta, rows, cg.to("meta"), dim_out).shape == conv_fused(*operands, *rest).shape
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(g=lambda t: t.half()), "g: expected float32 or float64, got Half"),
        (dict(radial=lambda t: t.float()), "radial: expected Double, got Float"),
        (
            dict(radial=lambda t: t[:, :5]),
            r"radial: expected \[n_members, 23, n_weights\], got \[2, 5",
        ),
        (
            dict(table=lambda t: torch.zeros(2, 8, 30).double()),
            r"radial: expected \[23, 1\], distances, as a table is given, got",
        ),
        (
            dict(table=lambda t: torch.zeros(2, 5, 30).double()),
            r"table: expected \[n_members, n_rows >= 6, n_weights\], got",
        ),
        (dict(table=lambda t: torch.zeros(2, 8, 30)), "table: expected Double, got Float"),
        (dict(sh=lambda t: t.expand(-1, 5, -1)), r"sh: expected \[23, 1 or 2, .*got \[23, 5, 4\]"),
        (dict(sender=lambda t: t + 6), r"sender: expected \[0, 6\), got"),
        (dict(sender=lambda t: t.int()), r"sender: expected int64 \[23\], got Int"),
        (dict(row_ptr=lambda t: t.flip(0)), "row_ptr: expected to run from 0 to 23, got 23 .. 0"),
        (dict(paths=lambda rows: rows[:-1]), "paths: expected rows of 10 integers"),
        (
            dict(paths=lambda rows: [4, *rows[1:]]),
            "paths row 0, l1 l2 l3: expected 0 to 3, got 4 0 0",
        ),
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
    with pytest.raises(ValueError, match=message):
        conv_fused(**arguments)
