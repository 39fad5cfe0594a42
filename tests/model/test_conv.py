"""race::conv against its stock-torch twin, against e3nn, and against finite differences;
every derivative up to the second.
"""

import pytest
import torch
from e3nn import o3

from race.model.conv import conv_aten, conv_fused
from race.model.irreps import Layout, conv_paths

from .conv_cases import IRREPS, TOLERANCE, derivatives, make
from .operators import worst

pytest.importorskip(
    "race._race", reason="race._race is not built: there is no fused convolution to test"
)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_members, groups", [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("lmax", [1, 3])
@pytest.mark.parametrize("irreps", IRREPS)
@pytest.mark.parametrize("knots", [0, 6])
def test_fused_equals_aten(knots, irreps, lmax, n_members, groups, dtype):
    operands, rest = make(irreps, lmax, n_members, groups, dtype, knots=knots)
    expected = derivatives(conv_aten, operands, rest)
    assert worst(derivatives(conv_fused, operands, rest), expected) < TOLERANCE[dtype]


def test_a_planted_error_is_seen():
    operands, rest = make("4x0e+2x1o", 1)
    sender, row_ptr, rows, cg, dim_out = rest
    expected = derivatives(conv_aten, operands, rest)
    cg = cg.clone()
    cg[cg.nonzero()[-1]] *= 1 + 1e-9
    assert (
        worst(derivatives(conv_fused, operands, (sender, row_ptr, rows, cg, dim_out)), expected)
        > TOLERANCE[torch.float64]
    )


def test_a_planted_error_in_the_table_is_seen():
    operands, rest = make("4x0e+2x1o", 1, knots=5)
    expected = derivatives(conv_aten, operands, rest)
    operands[2] = (
        operands[2].detach() * torch.linspace(1, 1 + 1e-7, 9, dtype=torch.float64)[:, None]
    ).requires_grad_()
    found = derivatives(conv_fused, operands, rest)
    assert (
        min(
            worst([a], [b])
            for a, b in zip(found, expected, strict=True)
            if a.shape != operands[2].shape
        )
        > TOLERANCE[torch.float64]
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_beyond_the_table(dtype):
    """From x = 1 on R and its slope are zero; x = 0 is the left end of the first interval."""
    (g, _, table, sh), rest = make("5x0e+19x1o", 1, 2, 2, dtype, knots=7)
    x = torch.linspace(0.9, 1.4, 23, dtype=dtype)
    x[0] = 0.0
    operands = [g, x[:, None].expand(-1, 2).detach().requires_grad_(), table, sh]
    out = conv_fused(*operands, *rest)
    assert worst([out], [conv_aten(*operands, *rest)]) < TOLERANCE[dtype]
    (dx,) = torch.autograd.grad(out.sum(), operands[1])
    assert torch.isfinite(dx).all() and (dx[x >= 1] == 0).all() and (dx[x < 1] != 0).all()


def to_e3nn(rows, irreps, n_members, member):
    """Our flat rows [n, dim] -> e3nn's mul_ir order, one member."""
    layout, columns = Layout(irreps, n_members), []
    for block in layout.blocks:
        x = rows[:, block.offset : block.offset + block.width].view(
            -1, block.ir.dim, n_members, block.mul
        )
        columns.append(x[:, :, member].transpose(1, 2).reshape(rows.shape[0], -1))
    return torch.cat(columns, 1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("conv", [conv_fused, conv_aten])
def test_equals_e3nn(conv, dtype):
    irreps, lmax, n_members = o3.Irreps("5x0e+4x1o+3x1e+8x2e"), 2, 2
    operands, rest = make(irreps, lmax, n_members, dtype=dtype)
    (g, radial, _, sh), (sender, row_ptr, rows, _, _) = operands, rest
    out = conv(*operands, *rest)
    irreps_out = conv_paths(irreps, lmax, irreps, n_members).irreps_out

    # e3nn gets one output block per path; ours lays a block's paths side by side.
    table = [rows[p : p + 10] for p in range(0, len(rows), 10)]
    layout_in, layout_out = Layout(irreps, n_members), Layout(irreps_out, n_members)
    starts_in = [block.offset for block in layout_in.blocks]
    starts_out = [block.offset for block in layout_out.blocks]
    sinks = [starts_out.index(row[5]) for row in table]
    instructions = [
        (starts_in.index(row[4]), row[1], k, "uvu", True) for k, row in enumerate(table)
    ]
    irreps_per_path = o3.Irreps(
        [(row[3], irreps_out[sink].ir) for row, sink in zip(table, sinks, strict=True)]
    )
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # e3nn bakes its coefficients in
    try:
        product = o3.TensorProduct(
            irreps,
            o3.Irreps.spherical_harmonics(lmax),
            irreps_per_path,
            instructions,
            shared_weights=False,
            internal_weights=False,
            irrep_normalization="component",
            path_normalization="none",
        )
    finally:
        torch.set_default_dtype(previous)
    receiver = torch.repeat_interleave(torch.arange(row_ptr.numel() - 1), row_ptr.diff())
    for m in range(n_members):
        message = product(to_e3nn(g, irreps, n_members, m)[sender], sh[:, 0], radial[m])
        summed = message.new_zeros(row_ptr.numel() - 1, message.shape[1]).index_add(
            0, receiver, message
        )
        blocks: list[list[torch.Tensor]] = [[] for _ in layout_out.blocks]
        for part, row, sink in zip(
            summed.split([row[3] * (2 * row[2] + 1) for row in table], 1), table, sinks, strict=True
        ):
            blocks[sink].append(part.view(part.shape[0], row[3], -1))
        expected = torch.cat([torch.cat(block, 1).flatten(1) for block in blocks], 1)
        assert worst([to_e3nn(out, irreps_out, n_members, m)], [expected]) < TOLERANCE[dtype]


@pytest.mark.parametrize("knots", [0, 5])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(groups, knots):
    """With G = 2 the groups must hold equal values, so x and the harmonics are
    differentiated through the expand(). Y_0 is constant.
    """

    def check(check, irreps, lmax, second):
        (g, radial, table, sh), rest = make(
            irreps, lmax, 2, 1, n_nodes=3, n_edges=4, n_receivers=2, knots=knots
        )

        def function(g, radial, sh, table=None if second else table):
            table = inner if table is None else table
            x = radial.expand(-1, groups) if knots else radial
            return conv_fused(
                g, x, table, torch.cat([constant, sh], 2).expand(-1, groups, -1), *rest
            )

        inner = table
        constant, sh = sh.detach()[..., :1], sh.detach()[..., 1:].clone().requires_grad_()
        assert check(
            function, (g, radial, sh) if second or table is None else (g, radial, sh, table)
        )

    check(torch.autograd.gradcheck, "2x0e+1x1o+1x2e", 2, second=False)
    check(torch.autograd.gradgradcheck, "2x0e+1x1o", 1, second=True)


@pytest.mark.parametrize("conv", [conv_fused, conv_aten])
def test_the_first_harmonic_is_a_constant(conv):
    (g, radial, table, sh), rest = make("4x0e+3x1o", 1, 2, 2, knots=6)
    out = conv(g, radial, table, sh, *rest)
    (dsh,) = torch.autograd.grad(out.square().sum(), sh, create_graph=True)
    assert (dsh[..., 0] == 0).all() and (dsh[..., 1:] != 0).any(-1).all()
    (none,) = torch.autograd.grad(dsh[..., 0].sum(), g, allow_unused=True, materialize_grads=True)
    assert (none == 0).all()


def test_mixed_second_derivatives_of_the_table():
    """d2/(d(g, x, sh) d table) by finite differences: what training on forces moves the
    radial MLP with.
    """
    (g, x, table, sh), rest = make(
        "2x0e+1x1o", 1, 2, 1, n_nodes=3, n_edges=4, n_receivers=2, knots=5
    )
    weight = torch.randn(2, rest[-1], dtype=torch.float64, requires_grad=True)

    def adjoints(weight, table):
        return torch.autograd.grad(
            conv_fused(g, x, table, sh, *rest), [g, x, sh], weight, create_graph=True
        )

    assert torch.autograd.gradcheck(adjoints, (weight, table))


def test_gradient_of_a_table_gradient_is_refused():
    (g, x, table, sh), rest = make("2x0e+1x1o", 1, knots=5)
    (dtable,) = torch.autograd.grad(
        conv_fused(g, x, table, sh, *rest).square().sum(), [table], create_graph=True
    )
    with pytest.raises(NotImplementedError, match="gradient of the radial table"):
        dtable.sum().backward()


@pytest.mark.parametrize("knots", [0, 6])
def test_group_axis_returns_each_members_adjoint(knots):
    """Columns of one ensemble gradient equal the gradients of the members taken one at a
    time, and sum to that of G = 1.
    """
    (g, radial, table, sh), rest = make("4x0e+3x1o", 2, 3, 3, knots=knots)
    weight = torch.randn(5, rest[-1], dtype=torch.float64)
    each = torch.autograd.grad(conv_fused(g, radial, table, sh, *rest), [sh, radial], weight)
    shared = sh.detach()[:, :1].clone().requires_grad_()
    x = radial.detach()[:, :1].clone().requires_grad_() if knots else radial
    total = torch.autograd.grad(conv_fused(g, x, table, shared, *rest), [shared, x], weight)
    assert worst([each[0].sum(1, keepdim=True)], total[:1]) < 1e-12
    assert not knots or worst([each[1].sum(1, keepdim=True)], total[1:]) < 1e-12
    for m in range(3):
        weights = (table if knots else radial).detach()
        alone = torch.zeros_like(weights)
        alone[m] = weights[m]  # only member m has weights
        arguments = (x, alone) if knots else (alone, None)
        (expected,) = torch.autograd.grad(
            conv_fused(g, *arguments, shared, *rest), [shared], weight
        )
        assert worst([each[0][:, m]], [expected[:, 0]]) < 1e-12


def test_expanded_harmonics_are_accepted_as_they_are():
    operands, rest = make("4x0e+3x1o", 2, 3, 3)
    expanded = operands[3].detach()[:, :1].expand(-1, 3, -1)
    assert expanded.stride(1) == 0
    assert torch.equal(conv_fused(*operands[:3], expanded, *rest), conv_fused(*operands, *rest))


@pytest.mark.parametrize("knots", [0, 6])
@pytest.mark.parametrize(
    "needs", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
)
def test_only_the_gradients_asked_for(needs, knots):
    """Each subset of differentiable operands: absent cotangents and unwanted results take
    other branches of the kernel.
    """
    results = []
    for conv in (conv_fused, conv_aten):
        operands, rest = make("5x0e+19x1o+8x2e", 2, 2, 2, knots=knots)
        if knots:
            operands[2].requires_grad_(False)
        leaves = [operands[0], operands[1], operands[3]]
        wanted = [t for t, n in zip(leaves, needs, strict=True) if n]
        for t, n in zip(leaves, needs, strict=True):
            t.requires_grad_(bool(n))
        out = conv(*operands, *rest)
        first = torch.autograd.grad((out**2).sum(), wanted, create_graph=True)
        second = torch.autograd.grad((first[0] ** 2).sum(), wanted[-1:])
        results.append([out, *first, *second])
    assert worst(*results) < 1e-12


@pytest.mark.parametrize(
    "sizes",
    [
        dict(n_edges=0),
        dict(n_edges=0, n_receivers=0),
        dict(n_edges=0, n_nodes=1, n_receivers=1),
        dict(n_edges=0, n_nodes=0, n_receivers=0),
        dict(n_nodes=1, n_receivers=1),
    ],
)
def test_empty_and_tiny(sizes):
    operands, rest = make("4x0e+2x1o", 1, 2, 2, **sizes)
    for fused, plain in zip(
        derivatives(conv_fused, operands, rest), derivatives(conv_aten, operands, rest), strict=True
    ):
        assert fused.shape == plain.shape
        torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)


def test_weights_shared_and_columns_left_free():
    """Two paths reading one weight, a weight that no path reads, columns that no path writes."""
    (g, _, _, sh), (sender, row_ptr, rows, cg, dim_out) = make("4x0e+2x1o", 1)
    rows = rows[:20] + rows[30:]  # one path fewer: its columns stay zero
    rows[18] = rows[8]
    radial = torch.randn(1, 23, 40, dtype=torch.float64, requires_grad=True)
    rest = (sender, row_ptr, rows, cg, dim_out)
    operands = [g, radial, None, sh]
    assert (
        worst(derivatives(conv_fused, operands, rest), derivatives(conv_aten, operands, rest))
        < 1e-12
    )


def test_paths_whose_columns_overlap_add_up():
    """Two paths read the same features and write into each other's columns, from
    different offsets.
    """
    operands, (sender, row_ptr, rows, cg, dim_out) = make("8x0e", 1)
    rows = [*rows[:10], *rows[10:15], rows[15] + 4, 8, 0, *rows[18:]]
    rest = (sender, row_ptr, rows, cg, dim_out)
    assert (
        worst(derivatives(conv_fused, operands, rest), derivatives(conv_aten, operands, rest))
        < 1e-12
    )
