"""race::product against its stock-torch twin, against e3nn, and against finite differences;
every derivative up to the second.
"""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from e3nn import o3

from race.model.product import product_aten, product_fused, product_paths, product_vjp_aten

from .conv_cases import TOLERANCE
from .operators import worst

librace = pytest.importorskip(
    "race._race", reason="race._race is not built: there is no fused product to test"
)

# All degrees and parities.
IRREPS = ["0e", "0e+1o", "0e+0o+1o+1e+2e", "0e+1o+2e+3o", "0e+0o+1o+1e+2e+2o+3e+3o"]


def make(
    irreps, correlation, n_channels, n_members=1, n_species=1, dtype=torch.float64, n=7, seed=0
):
    """((x, weight) as leaves, the other arguments of product)."""
    gen = torch.Generator().manual_seed(seed)
    irreps = o3.Irreps(irreps)
    paths = product_paths(irreps, correlation, [ir for _, ir in irreps])
    x = torch.randn(n, irreps.dim * n_members * n_channels, dtype=dtype, generator=gen)
    weight = torch.randn(
        n_members, n_species, len(paths.rows) // 8, n_channels, dtype=dtype, generator=gen
    )
    weight = weight * paths.norm[:, None].to(dtype)
    species = torch.randint(0, n_species, (n,), generator=gen)
    return [x.requires_grad_(), weight.requires_grad_()], (species, paths.rows, paths.cg)


def derivatives(product, operands, rest, seed=1):
    """Result, its adjoints, and the adjoints of a random functional of those: all that training
    on forces needs, and more.
    """
    gen = torch.Generator().manual_seed(seed)

    def like(t):
        return torch.randn(t.shape, dtype=t.dtype, generator=gen)

    out = product(*operands, *rest)
    grad = like(out).requires_grad_()
    first = torch.autograd.grad(out, operands, grad, create_graph=True)
    second = torch.autograd.grad(
        first, [grad, *operands], [like(t) for t in first], retain_graph=True
    )
    of_x = torch.autograd.grad(first[:1], [grad, *operands], [like(first[0])])
    return [out, *first, *second, *of_x]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "n_members, n_species, n_channels", [(1, 1, 64), (3, 2, 5), (2, 3, 70), (1, 2, 16)]
)
@pytest.mark.parametrize("correlation", [2, 3])
@pytest.mark.parametrize("irreps", IRREPS)
def test_fused_equals_aten(irreps, correlation, n_members, n_species, n_channels, dtype):
    operands, rest = make(irreps, correlation, n_channels, n_members, n_species, dtype)
    expected = derivatives(product_aten, operands, rest)
    assert worst(derivatives(product_fused, operands, rest), expected) < TOLERANCE[dtype]


def test_a_planted_error_is_seen():
    operands, (species, rows, cg) = make("0e+1o+2e", 3, 16, 2, 2)
    expected = derivatives(product_aten, operands, (species, rows, cg))
    cg = cg.clone()
    cg[cg.nonzero()[-1]] *= 1 + 1e-9
    found = derivatives(product_fused, operands, (species, rows, cg))
    for a, b in zip(found, expected, strict=True):
        assert worst([a], [b]) > TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("product", [product_fused, product_aten])
def test_equals_e3nn(product, dtype):
    """Each path is a tensor product of e3nn between single irreps, "uuu", in its own order of
    indices.
    """
    irreps, n_members, n_channels = o3.Irreps("0e+0o+1o+1e+2e+2o+3e+3o"), 2, 4
    (x, weight), rest = make(irreps, 3, n_channels, n_members, 3, dtype)
    species, rows, _ = rest
    offsets = {s.start: ir for s, (_, ir) in zip(irreps.slices(), irreps, strict=True)}
    a = x.detach().view(-1, irreps.dim, n_members, n_channels)

    def coupled(left, order):
        out = torch.zeros_like(a)
        for p, row in enumerate(rows[k : k + 8] for k in range(0, len(rows), 8)):
            if row[0] != order:
                continue
            one, two, three = (offsets[o] for o in row[4:7])
            previous = torch.get_default_dtype()
            torch.set_default_dtype(dtype)  # e3nn bakes its coefficients in
            try:
                tensor_product = o3.TensorProduct(
                    [(n_channels, one)],
                    [(n_channels, two)],
                    [(n_channels, three)],
                    [(0, 0, 0, "uuu", True)],
                    shared_weights=False,
                    internal_weights=False,
                    irrep_normalization="component",
                    path_normalization="none",
                )
            finally:
                torch.set_default_dtype(previous)
            for m in range(n_members):
                of = [
                    t[:, o : o + ir.dim, m].transpose(1, 2).flatten(1)  # channels before components
                    for t, o, ir in ((left, row[4], one), (a, row[5], two))
                ]
                part = tensor_product(*of, weight.detach()[m, species, p])
                part = part.view(-1, n_channels, three.dim).transpose(1, 2)
                out[:, row[6] : row[6] + three.dim, m] += part
        return out

    second = coupled(a, 2)
    expected = (a + second + coupled(second, 3)).view(x.shape)
    assert worst([product(x, weight, *rest)], [expected]) < TOLERANCE[dtype]


def test_gradcheck():
    operands, rest = make("0e+1o+1e", 3, 2, 2, 2, n=3)

    def function(x, weight):
        return product_fused(x, weight, *rest)

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


@pytest.mark.parametrize("correlation", [2, 3])
def test_explicit_transpose(correlation):
    """What artifacts run, which record no gradients."""
    (x, weight), rest = make("0e+1o+2e", correlation, 20, 2, 2)
    out = product_fused(x, weight, *rest)
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, x, grad)
    with torch.no_grad():
        found = torch.ops.race.product_backward(grad, x, weight, *rest, [True, False])
        assert found[1] is None
        assert worst([found[0]], [expected]) < 1e-13
        assert worst([product_vjp_aten(grad, x, weight, *rest)], [expected]) < 1e-12


@pytest.fixture
def float64():
    """The default type of e3nn's rotation matrices."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


def test_covariance(float64):
    """Rotating and inverting x does so to the result, every parity."""
    irreps = o3.Irreps("0e+0o+1o+1e+2e+2o+3e+3o")
    (x, weight), rest = make(irreps, 3, 8, 2, 2)
    for rotation in (o3.rand_matrix(dtype=torch.float64), -torch.eye(3, dtype=torch.float64)):
        matrix = irreps.D_from_matrix(rotation)

        def turned(t, matrix=matrix):
            return torch.einsum("ij,njc->nic", matrix, t.view(t.shape[0], irreps.dim, -1)).flatten(
                1
            )

        found = product_fused(turned(x), weight, *rest)
        assert worst([found], [turned(product_fused(x, weight, *rest))]) < 1e-10


@pytest.mark.parametrize("needs", [(1, 0), (0, 1)])
def test_only_the_gradients_asked_for(needs):
    results = []
    for product in (product_fused, product_aten):
        operands, rest = make("0e+1o+2e", 3, 20, 2, 2)
        wanted = [t for t, n in zip(operands, needs, strict=True) if n]
        for t, n in zip(operands, needs, strict=True):
            t.requires_grad_(bool(n))
        out = product(*operands, *rest)
        first = torch.autograd.grad((out**2).sum(), wanted, create_graph=True)
        second = torch.autograd.grad((first[0] ** 2).sum(), wanted)
        results.append([out, *first, *second])
    assert worst(*results) < 1e-12


@pytest.mark.parametrize("n, n_species", [(0, 2), (1, 2), (1, 5)])
def test_empty_and_tiny(n, n_species):
    """No atoms, and species without atoms."""
    operands, rest = make("0e+1o", 3, 6, 2, n_species, n=n)
    for fused, plain in zip(
        derivatives(product_fused, operands, rest),
        derivatives(product_aten, operands, rest),
        strict=True,
    ):
        assert fused.shape == plain.shape
        torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)


def test_strided_operands():
    """Slices and transposes are read as what they are."""
    (x, weight), (species, rows, cg) = make("0e+1o+2e", 3, 6, 2, 2)
    expected = product_fused(x, weight, species, rows, cg)
    strided = [torch.stack([t, t], -1)[..., 0] for t in (x, weight, species, cg)]
    assert not any(t.is_contiguous() for t in strided)
    assert torch.equal(
        product_fused(strided[0], strided[1], strided[2], rows, strided[3]), expected
    )


def test_threads_change_rounding_only():
    operands, rest = make("0e+1o+2e", 3, 64, 2, 3, n=2000)
    before, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            results.append(derivatives(product_fused, operands, rest))
    finally:
        torch.set_num_threads(before)
    assert worst(results[1], results[0]) < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))


ISA_SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
results = []
for operands, rest, grad in torch.load(sys.argv[2]):
    out = torch.ops.race.product(*operands, *rest)
    first = torch.autograd.grad(out, operands, grad, create_graph=True)
    second = torch.autograd.grad([t.sum() for t in first], [grad, *operands])
    results.append([t.detach() for t in (out, *first, *second)])
torch.save((torch.ops.race.conv_isa(), results), sys.argv[3])
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa, tmp_path):
    """The lesser builds of the kernels, each in a process that asks for it."""
    cases, expected = [], []
    for dtype, n_channels in itertools.product(TOLERANCE, (64, 21)):
        operands, rest = make("0e+1o+2e", 3, n_channels, 2, 2, dtype)
        out = product_aten(*operands, *rest)
        grad = torch.randn_like(out).requires_grad_()
        cases.append((operands, rest, grad))
        first = torch.autograd.grad(out, operands, grad, create_graph=True)
        second = torch.autograd.grad([t.sum() for t in first], [grad, *operands])
        expected.append([out, *first, *second])
    torch.save(cases, tmp_path / "in.pt")
    paths = [librace.__file__, tmp_path / "in.pt", tmp_path / "out.pt"]
    subprocess.run(
        [sys.executable, "-c", ISA_SCRIPT, *paths], env={**os.environ, "RACE_ISA": isa}, check=True
    )
    used, results = torch.load(tmp_path / "out.pt")
    assert used in (isa, "baseline")  # a host without AVX2 has the baseline only
    for result, reference in zip(results, expected, strict=True):
        assert worst(result, reference) < TOLERANCE[reference[0].dtype]


def test_scripted_and_portable():
    operands, rest = make("0e+1o", 3, 6)
    expected = product_aten(*operands, *rest)
    for product in (product_fused, product_aten):
        scripted = torch.jit.script(product)
        assert worst([scripted(*operands, *rest)], [expected]) < 1e-12
        assert ("race::" in str(scripted.inlined_graph)) == (product is product_fused)


def test_shapes_without_data():
    (x, weight), (species, rows, cg) = make("0e+1o", 3, 6)
    meta = [t.detach().to("meta") for t in (x, weight, species)]
    assert product_fused(*meta, rows, cg.to("meta")).shape == x.shape


def test_changed_coefficients_are_noticed():
    """The list of coefficients is kept between calls."""
    operands, (species, rows, cg) = make("0e+1o", 3, 6)
    product_fused(*operands, species, rows, cg)
    cg.mul_(2.0)
    rest = (species, rows, cg)
    assert worst([product_fused(*operands, *rest)], [product_aten(*operands, *rest)]) < 1e-12


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=lambda t: t.half()), "x: expected float32 or float64, got Half"),
        (dict(x=lambda t: t[:, :-1]), r"x: expected \[n, up to 32 times 12\], got \[7, 47\]"),
        (dict(weight=lambda t: t.float()), "weight: expected Double, got Float"),
        (dict(weight=lambda t: t[:, :, 1:]), r"weight: expected \[n_members, n_species, 3"),
        (dict(species=lambda t: t + 2), r"species: expected \[0, 2\), got"),
        (dict(species=lambda t: t - 2), r"species: expected \[0, 2\), got -"),
        (dict(species=lambda t: t.int()), r"species: expected int64 \[7\], got Int"),
        (dict(species=lambda t: t[1:]), r"species: expected int64 \[7\], got Long \[6\]"),
        (dict(paths=lambda rows: rows[:-1]), "paths: expected rows of 8 integers"),
        (dict(paths=lambda rows: [4, *rows[1:]]), "paths row 0, order: expected 2 or 3, got 4"),
        (dict(paths=lambda rows: [2, 4, *rows[2:]]), "paths row 0, l1 l2 l3: expected 0 to 3"),
        (
            dict(paths=lambda rows: [*rows[:6], 4, *rows[7:]]),
            "paths row 0, offset3: expected 0 to 3, got 4",
        ),
        (dict(cg=lambda t: t[:-1]), "cg_offset: expected a table inside cg's"),
        (dict(cg=lambda t: t.float()), "cg: expected float64, one dimension, got Float"),
    ],
)
def test_errors_name_the_argument(change, message):
    (x, weight), (species, paths, cg) = make("0e+1o", 2, 6, 2, 2)
    arguments = dict(x=x, weight=weight, species=species, paths=paths, cg=cg)
    for name, edit in change.items():
        arguments[name] = edit(arguments[name])
    with pytest.raises(ValueError, match=f"race::product: .*{message}"):
        product_fused(**arguments)
