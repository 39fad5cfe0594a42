"""race::linear against its stock-torch twin, a plain sum over channels, and finite
differences; every derivative up to the second.
"""

import pytest
import torch
from e3nn import o3

from race.model.linear import BlockLinear, Linear, linear_aten, linear_fused

from .operators import of_case, on_instruction_set, random_like, worst

librace = pytest.importorskip(
    "race._race", reason="race._race is not built: there is no compiled linear map to test"
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
# (d, mul_in, mul_out): a single number; no multiples of a vector; all tiles at once; the
# sizes in use; columns narrower than any vector.
SHAPES = [
    [(1, 1, 1)],
    [(1, 5, 3), (3, 2, 7), (5, 19, 33)],
    [(1, 70, 127), (7, 13, 40)],
    [(1, 64, 64), (3, 192, 64)],
    [(1, 64, 1), (5, 33, 2)],
]


def table(shapes, n_members):
    """(blocks, dim_in, dim_out, numel), one block after the other."""
    blocks, dim_in, dim_out, numel = [], 0, 0, 0
    for d, mul_in, mul_out in shapes:
        blocks += [d, mul_in, mul_out, dim_in, dim_out, numel]
        dim_in, dim_out, numel = (
            dim_in + d * n_members * mul_in,
            dim_out + d * n_members * mul_out,
            numel + mul_in * mul_out,
        )
    return blocks, dim_in, dim_out, numel


def make(shapes, n_members=1, n_species=1, n=14, dtype=torch.float64, seed=0):
    """([x, weight] as leaves, the other arguments). The last of several species is absent."""
    gen = torch.Generator().manual_seed(seed)
    blocks, dim_in, dim_out, numel = table(shapes, n_members)
    x = torch.randn(n, dim_in, dtype=dtype, generator=gen)
    weight = torch.randn(n_members, n_species, numel, dtype=dtype, generator=gen)
    species = torch.randint(0, n_species - 1, (n,), generator=gen) if n_species > 1 else None
    return [t.requires_grad_() for t in (x, weight)], (species, blocks, dim_out)


def plain(x, weight, species, blocks, dim_out):
    """The definition, every atom with its own copy of the matrices."""
    n, n_members = x.shape[0], weight.shape[0]
    species = torch.zeros(n, dtype=torch.long) if species is None else species
    out = x.new_zeros(n, dim_out)
    for p in range(0, len(blocks), 6):
        d, a, b, i, o, w = blocks[p : p + 6]
        matrix = weight[:, species, w : w + a * b].view(n_members, n, a, b)
        rows = x[:, i : i + d * n_members * a].view(n, d, n_members, a)
        out[:, o : o + d * n_members * b] = torch.einsum("idmu,miuv->idmv", rows, matrix).flatten(1)
    return out


def other_device(x, weight, species, blocks, dim_out):
    """What a device without its own kernel runs; the key of no device in particular, on
    tensors of the processor.
    """
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return torch.ops.race.linear.default.redispatch(
                keys, x, weight, species, blocks, dim_out
            )

        @staticmethod
        def backward(ctx, grad):
            return Backward.apply(grad, *ctx.saved_tensors)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, grad, x, weight):
            ctx.save_for_backward(grad, x, weight)
            return torch.ops.race.linear_backward.default.redispatch(
                keys, grad, x, weight, species, blocks, [True, True]
            )

        @staticmethod
        def backward(ctx, u, v):
            grad, x, weight = ctx.saved_tensors
            dx, _ = torch.ops.race.linear_backward.default.redispatch(
                keys, grad, x, v, species, blocks, [True, False]
            )
            _, dweight = torch.ops.race.linear_backward.default.redispatch(
                keys, grad, u, weight, species, blocks, [False, True]
            )
            return Function.apply(u, weight) + Function.apply(x, v), dx, dweight

    return Function.apply(x, weight)


def derivatives(linear, operands, rest, seed=1):
    """Result, its adjoints, and the adjoints of a random functional of those: all that
    training on forces needs.
    """
    like = random_like(seed)
    out = linear(*operands, *rest)
    weight = like(out).requires_grad_()
    first = torch.autograd.grad(out, operands, weight, create_graph=True)
    second = torch.autograd.grad(first, [weight, *operands], [like(t) for t in first])
    return [out, *first, *second]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_species", [1, 3])
@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("linear", [linear_fused, linear_aten, other_device])
def test_equals_the_definition(linear, shapes, n_members, n_species, dtype):
    operands, rest = make(shapes, n_members, n_species, dtype=dtype)
    expected = derivatives(plain, operands, rest)
    assert worst(derivatives(linear, operands, rest), expected) < TOLERANCE[dtype]


def test_a_planted_error_is_seen():
    (x, weight), rest = make(SHAPES[1], 3, 3)
    expected = derivatives(plain, [x, weight], rest)
    wrong = weight.detach().clone()
    wrong[0, 0, 0] *= 1 + 1e-9
    assert (
        worst(derivatives(linear_fused, [x, wrong.requires_grad_()], rest), expected)
        > TOLERANCE[torch.float64]
    )


@pytest.mark.parametrize("linear", [linear_fused, linear_aten, other_device])
def test_shared_inputs_and_matrices_and_columns_left_free(linear):
    """Blocks in no order: two read the same columns, two the same matrix; columns 0..2, 8
    and 21.. of the result stay zero.
    """
    blocks = [3, 4, 2, 4, 9, 8, 1, 4, 3, 0, 3, 16, 1, 4, 2, 0, 6, 8, 2, 2, 3, 16, 15, 28]
    for n_species in (1, 3):
        (x, _), (species, _, _) = make([(1, 20, 1)], n_species=n_species)
        weight = torch.randn(1, n_species, 40, dtype=torch.float64, requires_grad=True)
        rest = (species, blocks, 23)
        out = linear(x, weight, *rest)
        assert (
            (out[:, [0, 1, 2, 8, 21, 22]] == 0).all()
            and (out[:, 3:8] != 0).all()
            and (out[:, 9:21] != 0).all()
        )
        assert (
            worst(derivatives(linear, [x, weight], rest), derivatives(plain, [x, weight], rest))
            < 1e-12
        )


@pytest.mark.parametrize("linear", [linear_fused, linear_aten, other_device])
def test_empty(linear):
    for rest_of in (dict(n=0), dict(n=0, n_species=3), dict(n=1, n_species=3)):
        operands, rest = make(SHAPES[1], 2, **rest_of)
        assert (
            worst(derivatives(linear, operands, rest), derivatives(plain, operands, rest)) < 1e-12
        )
    assert torch.equal(
        linear(torch.ones(2, 3), torch.ones(1, 1, 0), None, [], 4), torch.zeros(2, 4)
    )


@pytest.mark.parametrize("n_species", [1, 3])
def test_gradcheck(n_species):
    (x, weight), rest = make([(1, 2, 3), (3, 2, 1)], 2, n_species, n=4)

    def function(x, weight):
        return linear_fused(x, weight, *rest)

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


def test_third_derivatives():
    """The derivatives are made of the operators themselves, so there is no last order."""
    results = []
    for linear in (linear_fused, plain):
        (x, weight), rest = make(SHAPES[1], 2, 3)
        value = (linear(x, weight, *rest) ** 3).sum()
        for _ in range(3):
            value = sum(
                (t**2).sum() for t in torch.autograd.grad(value, [x, weight], create_graph=True)
            )
        results.append([value])
    assert worst(*results) < 1e-11


@pytest.mark.parametrize("needs", [(0, 1), (1, 0)])
def test_only_the_gradients_asked_for(needs):
    results = []
    for linear in (linear_fused, plain):
        operands, rest = make(SHAPES[1], 2, 3)
        wanted = [t.requires_grad_(bool(n)) for t, n in zip(operands, needs, strict=True) if n]
        for t, n in zip(operands, needs, strict=True):
            t.requires_grad_(bool(n))
        out = linear(*operands, *rest)
        first = torch.autograd.grad((out**2).sum(), wanted, create_graph=True)
        results.append([out, *first, *torch.autograd.grad((first[0] ** 2).sum(), wanted)])
    assert worst(*results) < 1e-12


def test_strided_operands():
    """Expanded gradients, slices of wider rows, transposed weights."""
    (x, weight), (species, blocks, dim_out) = make(SHAPES[1], 1, 3)
    wide = torch.cat([x, x], 1)[:, : x.shape[1]]
    across = weight.transpose(0, 1).contiguous().transpose(0, 1)
    assert not wide.is_contiguous()
    out = linear_fused(wide, across, species[torch.arange(14)], blocks, dim_out)
    got = torch.autograd.grad(out.sum(), [x, weight])
    expected = torch.autograd.grad(plain(x, weight, species, blocks, dim_out).sum(), [x, weight])
    assert worst(got, expected) < 1e-12


@pytest.mark.parametrize("shapes", SHAPES)
def test_any_number_of_threads_gives_the_same_bits(shapes):
    operands, rest = make(shapes, 2, 3, n=700)
    before, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(derivatives(linear_fused, operands, rest))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa, tmp_path):
    """The lesser builds of the kernels, each in a process that asks for it (all else here
    runs the host's own).
    """
    cases = []
    for dtype in TOLERANCE:
        for shapes in SHAPES:
            operands, rest = make(shapes, 2, 3, dtype=dtype)
            weight = torch.randn(14, rest[-1], dtype=dtype, requires_grad=True)
            cases.append((operands, rest, weight, (0, 1)))
    results = on_instruction_set(isa, "linear", cases, tmp_path)
    for result, case in zip(results, cases, strict=True):
        assert worst(result, of_case(plain, case)) < TOLERANCE[case[2].dtype]


def test_scripted_and_portable():
    operands, (species, blocks, dim_out) = make(SHAPES[1], 2, 3)
    expected = plain(*operands, species, blocks, dim_out)
    for fused in (True, False):
        module = BlockLinear(blocks, dim_out)
        module.fused = fused
        scripted = torch.jit.script(module)
        assert worst([scripted(*operands, species)], [expected]) < 1e-12
        assert ("race::" in str(scripted.inlined_graph)) == fused


def test_shapes_without_data():
    operands, (species, blocks, dim_out) = make(SHAPES[1], 2, 3)
    meta = [t.detach().to("meta").requires_grad_() for t in operands]
    out = linear_fused(*meta, species.to("meta"), blocks, dim_out)
    assert out.shape == (14, dim_out)
    assert [t.shape for t in torch.autograd.grad(out.sum(), meta)] == [t.shape for t in operands]


def test_module_equals_e3nn():
    """Linear per member against o3.Linear, whose weights and normalisation are the same; its
    rows are in mul_ir order.
    """
    irreps_in, irreps_out, n_members = o3.Irreps("5x0e+4x1o+3x2e"), o3.Irreps("7x0e+2x2e"), 2
    ours = Linear(irreps_in, irreps_out, n_members)
    x = [torch.randn(6, ir.dim, n_members, mul) for mul, ir in irreps_in]
    out = ours(torch.cat([t.flatten(1) for t in x], 1))
    for m in range(n_members):
        theirs = o3.Linear(irreps_in, irreps_out, internal_weights=False, shared_weights=True)
        rows = torch.cat([t[:, :, m].transpose(1, 2).flatten(1) for t in x], 1)
        expected = theirs(rows, ours.weight[m])
        parts = out.split([ir.dim * n_members * mul for mul, ir in irreps_out], 1)
        views = [
            part.view(6, ir.dim, n_members, mul)[:, :, m]
            for part, (mul, ir) in zip(parts, irreps_out, strict=True)
        ]
        assert (
            worst([torch.cat([t.transpose(1, 2).flatten(1) for t in views], 1)], [expected]) < 1e-6
        )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=lambda t: t.half()), "x: expected float32 or float64, got Half"),
        (dict(x=lambda t: t[0]), r"x: expected \[n, dim_in\], got \[36\]"),
        (dict(weight=lambda t: t.float()), "weight: expected Double, got Float"),
        (
            dict(weight=lambda t: t[0]),
            r"weight: expected \[n_members, n_species, numel\], got \[3, 28\]",
        ),
        (
            dict(species=lambda t: None),
            "weight: expected one set of matrices per member where there is no species, got 3",
        ),
        (dict(species=lambda t: t[:-1]), r"species: expected int64 \[14\], got Long \[13\]"),
        (dict(species=lambda t: t.int()), r"species: expected int64 \[14\], got Int"),
        (dict(species=lambda t: t + 2), r"species: expected \[0, 3\), got 3"),
        (dict(species=lambda t: t - 1), r"species: expected \[0, 3\), got -1"),
        (dict(blocks=lambda b: b[:-1]), "blocks: expected rows of 6 integers, got 11 integers"),
        (
            dict(blocks=lambda b: [1, 0, *b[2:]]),
            "blocks row 0, d mul_in mul_out: expected at least 1, got 1 0 3",
        ),
        (
            dict(blocks=lambda b: [*b[:9], 13, *b[10:]]),
            "blocks row 1, in_offset: expected a block of 24 inside x's 36 columns, got 13",
        ),
        (
            dict(blocks=lambda b: [*b[:11], 22]),
            "blocks row 1, weight_offset: expected a matrix of 16 inside weight's 28 numbers, got "
            "22",
        ),
        (
            dict(blocks=lambda b: [*b[:10], 8, b[11]]),
            "blocks, out_offset: expected columns that no other block writes, got 8 inside 0 .. 9",
        ),
        (
            dict(dim_out=lambda n: n - 1),
            "blocks row 1, out_offset: expected a block of 6 inside dim_out = 14, got 9",
        ),
    ],
)
@pytest.mark.parametrize("linear", [torch.ops.race.linear, other_device])
def test_errors_name_the_argument(linear, change, message):
    arguments = dict(
        x=torch.randn(14, 36, dtype=torch.float64),
        weight=torch.randn(3, 3, 28, dtype=torch.float64),
        species=torch.arange(14) % 2,
        blocks=[1, 4, 3, 0, 0, 0, 1, 8, 2, 12, 9, 12],
        dim_out=15,
    )
    for name, edit in change.items():
        arguments[name] = edit(arguments[name])
    with pytest.raises(ValueError, match=message):
        linear(**arguments)
