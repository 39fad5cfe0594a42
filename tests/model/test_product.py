"""Products of a row with itself: against e3nn, the transpose against autograd, derivatives,
rotation.
"""

import pytest
import torch
from e3nn import o3

from race.model.product import product_aten, product_fused, product_paths, product_vjp_aten

M, S, C, N = 2, 2, 3, 4
IRREPS = [o3.Irreps("1x0e+1x1o+1x2e"), o3.Irreps("1x0e+1x0o+1x1e+1x1o+1x2e")]


def case(irreps, correlation, dtype=torch.float64, channels=C, members=M, n=N):
    paths = product_paths(irreps, correlation, [ir for _, ir in irreps])
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x = normal(n, irreps.dim * members * channels)
    weight = normal(members, S, len(paths.rows) // 8, channels)
    return paths, x, weight, torch.tensor([0, 1, 1, 0])[:n]


def reference(irreps, paths, x, weight, species):
    """Member by member, with e3nn's tensor product: one instruction for each path."""
    offsets = [s.start for s in irreps.slices()]
    rows = [paths.rows[k : k + 8] for k in range(0, len(paths.rows), 8)]
    out = torch.empty_like(x).view(N, irreps.dim, M, C)
    wide = o3.Irreps([(C, ir) for _, ir in irreps])
    slices = wide.slices()
    for m in range(M):
        a = x.view(N, irreps.dim, M, C)[:, :, m]
        flat = torch.cat(
            [a[:, s].transpose(1, 2).flatten(1) for s in irreps.slices()], dim=1
        )  # mul_ir
        total = second = flat
        for order in (2, 3):
            chosen = [p for p, row in enumerate(rows) if row[0] == order]
            if not chosen:
                break
            instructions = [
                (*(offsets.index(offset) for offset in rows[p][4:7]), "uuu", True) for p in chosen
            ]
            product = o3.TensorProduct(
                wide, wide, wide, instructions, irrep_normalization="none",
                path_normalization="none", shared_weights=False, internal_weights=False,
            )  # fmt: skip
            # Without normalisation its coefficients are Wigner's 3j
            norms = [wide[k].ir.dim ** 0.5 for _, _, k, _, _ in instructions]
            w = torch.stack([n * weight[m, species, p] for n, p in zip(norms, chosen, strict=True)])
            second = product(second, flat, w.transpose(0, 1).flatten(1))
            total = total + second
        out[:, :, m] = torch.cat(
            [total[:, s].unflatten(1, (C, -1)).transpose(1, 2) for s in slices], dim=1
        )
    return out.reshape(x.shape)


@pytest.fixture(autouse=True)
def double():
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


@pytest.mark.parametrize("product", [product_aten, product_fused])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("correlation", [2, 3])
@pytest.mark.parametrize("irreps", IRREPS, ids=str)
def test_against_e3nn(irreps, correlation, dtype, tolerance, product):
    paths, x, weight, species = case(irreps, correlation)
    wanted = reference(irreps, paths, x, weight, species)
    got = product(x.to(dtype), weight.to(dtype), species, paths.rows, paths.cg).double()
    scale = wanted.abs().max()
    assert (got - wanted).abs().max() < tolerance * scale
    # One path's weight off by a part in a hundred is seen
    weight[:, :, -1] *= 1.01
    off = product(x.to(dtype), weight.to(dtype), species, paths.rows, paths.cg).double()
    assert (off - wanted).abs().max() > 10 * tolerance * scale


@pytest.mark.parametrize("correlation", [2, 3])
@pytest.mark.parametrize("irreps", IRREPS, ids=str)
def test_rotation_and_inversion(irreps, correlation):
    paths, x, weight, species = case(irreps, correlation)
    angles = [torch.tensor(a) for a in (0.3, 0.5, 0.7)]
    matrix = torch.block_diag(*[ir.D_from_angles(*angles, torch.tensor(1)) for _, ir in irreps])
    assert matrix.dtype == torch.float64

    def turned(rows):
        return (matrix @ rows.view(N, irreps.dim, -1)).reshape(N, -1)

    def product(rows):
        return product_aten(rows, weight, species, paths.rows, paths.cg)

    assert (product(turned(x)) - turned(product(x))).abs().max() < 1e-10
    assert (product(turned(x)) - product(x)).abs().max() > 0.1


@pytest.mark.parametrize("correlation", [2, 3])
def test_derivatives(correlation):
    paths, x, weight, species = case(o3.Irreps("1x0e+1x1o"), correlation, channels=2, n=2)

    def product(x, weight):
        return product_fused(x, weight, species, paths.rows, paths.cg)

    operands = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(product, operands)
    assert torch.autograd.gradgradcheck(product, operands)


@pytest.mark.parametrize("correlation", [2, 3])
@pytest.mark.parametrize("irreps", IRREPS, ids=str)
def test_transpose(irreps, correlation):
    """`product_vjp_aten` is what autograd makes of `product_aten`; both are TorchScript."""
    paths, x, weight, species = case(irreps, correlation)
    bar = torch.randn_like(x)
    out = torch.jit.script(product_aten)(x.requires_grad_(), weight, species, paths.rows, paths.cg)
    (wanted,) = torch.autograd.grad(out, x, bar)
    got = torch.jit.script(product_vjp_aten)(bar, x.detach(), weight, species, paths.rows, paths.cg)
    assert (got - wanted).abs().max() < 1e-12 * wanted.abs().max()
