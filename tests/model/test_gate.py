"""The gate: race::gate against its stock-torch twin and e3nn; every derivative up to the second."""

import pytest
import torch
from e3nn import o3
from e3nn.math import normalize2mom
from e3nn.nn import Gate

from race.model.gate import (
    NORMS,
    gate_aten,
    gate_blocks,
    gate_fused,
    gate_jvp_aten,
    gate_jvp_fused,
    gate_vjp_aten,
    gate_vjp_fused,
)
from race.model.irreps import Layout

from .conv_cases import TOLERANCE
from .operators import worst

pytest.importorskip("race._race", reason="race._race is not built: there is no fused gate to test")

IRREPS = ["5x1o+3x2e", "6x0e+3x0o+4x1o+33x2e+2x3o", "16x0e+16x1o+16x2e"]
cases = pytest.mark.parametrize("irreps", IRREPS)
members = pytest.mark.parametrize("n_members", [1, 3])


def make(irreps, n_members=1, dtype=torch.float64, n=7, seed=0, wide=True):
    """((u, gates), blocks): columns of a wider tensor, as in training, or tensors of their own."""
    irreps = o3.Irreps(irreps)
    blocks, n_gates = gate_blocks(irreps, n_members)
    dim, generator = Layout(irreps, n_members).dim, torch.Generator().manual_seed(seed)
    rows = torch.randn(n, dim + n_members * n_gates, generator=generator, dtype=dtype)
    u, gates = rows.split([dim, n_members * n_gates], dim=1)
    if not wide:
        u, gates = u.contiguous(), gates.contiguous()
    return [u, gates], blocks


def draw(t, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(t.shape, generator=generator, dtype=t.dtype)


def derivatives(gate, operands, *rest):
    """Result, its adjoints, and the adjoints of a random functional of those: all that training
    on forces needs, also with one cotangent alone.
    """
    operands = [t.clone().requires_grad_() for t in operands]
    out = gate(*operands, *rest)
    grad = draw(out, 1).requires_grad_()
    first = torch.autograd.grad(out, operands, grad, create_graph=True)
    every = [out, *first]
    for chosen in ([0, 1], [0], [1]):
        every += torch.autograd.grad(
            [first[k] for k in chosen],
            [grad, *operands],
            [draw(first[k], 2 + k) for k in chosen],
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
    return every


@pytest.mark.parametrize("dtype", TOLERANCE)
@members
@cases
def test_fused_equals_aten(irreps, n_members, dtype):
    for wide in (True, False):
        operands, blocks = make(irreps, n_members, dtype, wide=wide)
        expected = derivatives(gate_aten, operands, blocks, n_members)
        found = derivatives(gate_fused, operands, blocks, n_members)
        assert worst(found, expected) < TOLERANCE[dtype]


@cases
def test_against_e3nn(irreps):
    """Member by member: e3nn's gate reads scalars, gates and what they gate sorted by irrep, and
    gives the scalars first.
    """
    M, n = 2, 7
    (u, gates), blocks = make(irreps, M)
    layout, scalar = Layout(o3.Irreps(irreps), M).blocks, o3.Irrep("0e")
    every = [(block.mul, block.ir) for block in layout]
    scalars, gated = ([each for each in every if (each[1] == scalar) == k] for k in (True, False))
    n_gates = sum(mul for mul, _ in gated)
    silu, sigmoid = torch.nn.functional.silu, torch.sigmoid
    norms = tuple(float(normalize2mom(act).cst) for act in (silu, sigmoid))
    reference = Gate(scalars, [silu] * len(scalars), [(n_gates, scalar)], [sigmoid], gated).double()
    found = gate_fused(u, gates, blocks, M, norms)

    def columns(t, m, scalars):
        """Of member m, irrep by irrep, in e3nn's order of channels and components."""
        return [
            (
                block.ir,
                t[:, block.offset : block.offset + block.ir.dim * M * block.mul]
                .reshape(n, block.ir.dim, M, block.mul)[:, :, m]
                .transpose(1, 2)
                .flatten(1),
            )
            for block in layout
            if (block.ir == scalar) == scalars
        ]

    for m in range(M):
        opened = (scalar, gates.reshape(n, M, n_gates)[:, m])
        given = [*columns(u, m, True), opened, *columns(u, m, False)]
        out = reference(torch.cat([t for _, t in sorted(given, key=lambda each: each[0])], dim=1))
        ours = torch.cat([t for k in (True, False) for _, t in columns(found, m, k)], dim=1)
        assert (ours - out).abs().max() < 1e-12


@members
@cases
def test_transpose_and_tangent(irreps, n_members):
    """The written-out ones against autograd's, both twins, as TorchScript."""
    (u, gates), blocks = make(irreps, n_members)
    rest = (blocks, n_members)

    def function(u, gates):
        return gate_aten(u, gates, *rest)

    bar, moved = draw(u, 1), (draw(u, 2), draw(gates, 3))
    _, adjoints = torch.autograd.functional.vjp(function, (u, gates), bar)
    _, tangent = torch.autograd.functional.jvp(function, (u, gates), moved)
    for vjp in (gate_vjp_aten, gate_vjp_fused):
        assert worst(torch.jit.script(vjp)(bar, u, gates, *rest), adjoints) < 1e-13
    for jvp in (gate_jvp_aten, gate_jvp_fused):
        assert worst([torch.jit.script(jvp)(*moved, u, gates, *rest)], [tangent]) < 1e-13


def test_finite_differences():
    operands, blocks = make("2x0e+2x1o", 2, n=2, wide=False)
    operands = [t.requires_grad_() for t in operands]
    assert torch.autograd.gradcheck(lambda *t: gate_fused(*t, blocks, 2), operands)
    assert torch.autograd.gradgradcheck(lambda *t: gate_fused(*t, blocks, 2), operands)


def test_without_atoms():
    operands, blocks = make(IRREPS[1], 2, n=0)
    assert all(t.numel() == 0 for t in derivatives(gate_fused, operands, blocks, 2))


def test_many_atoms_on_several_threads():
    operands, blocks = make(IRREPS[1], 2, n=3000)
    expected = derivatives(gate_fused, operands, blocks, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = derivatives(gate_fused, operands, blocks, 2)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_planted_error_is_seen():
    operands, blocks = make(IRREPS[1], 2)
    norms = (NORMS[0], NORMS[1] * (1 + 1e-9))
    expected = derivatives(gate_aten, operands, blocks, 2)
    found = derivatives(gate_fused, operands, blocks, 2, norms)
    assert worst(found, expected) > TOLERANCE[torch.float64]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(gates=lambda t: t.float()), r"race::gate: gates: expected Double \[7, 10\] on cpu"),
        (dict(gates=lambda t: t[:, :-1]), r"race::gate: gates: expected Double \[7, 10\] on cpu"),
        (dict(u=lambda t: t[:, :-1]), r"race::gate: blocks row 1, offset: expected a block of 30"),
        (dict(blocks=lambda b: b[:-1]), "race::gate: blocks: expected up to 16 rows of 4 integers"),
        (dict(blocks=lambda b: b[4:]), "race::gate: blocks: expected to cover 40 columns of u"),
        (dict(n_members=lambda n: 0), "race::gate: n_members: expected at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(change, message):
    (u, gates), blocks = make("5x0e+5x1o", 2)
    arguments = dict(u=u, gates=gates, blocks=blocks, n_members=2)
    for name, spoil in change.items():
        arguments[name] = spoil(arguments[name])
    with pytest.raises(ValueError, match=message):
        gate_fused(**arguments)
