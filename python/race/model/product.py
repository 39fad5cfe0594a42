"""Products of an atom's neighbourhood with itself: body order within a layer.

    P2[k, c] = sum_p w[m, species_i, p, c] sum_ij cg_p[i, j, k] x[i, c] x[j, c]      p of order 2
    P3[k, c] = sum_p w[m, species_i, p, c] sum_ij cg_p[i, j, k] P2[i, c] x[j, c]     p of order 3
    out      = x + P2 + P3

for every atom, member m and channel c by itself; i, j and k are components (l, m) of irreps.
The tensor power of MACE (Batatia et al., NeurIPS 2022, eqs. 10-11), evaluated recursively.

`product_fused` is the compiled operator race::product, `product_aten` its slow twin in
stock torch operations: the oracle of the tests and the body of portable artifacts. Both
are TorchScript and differentiable twice. `product_vjp_fused` and `product_vjp_aten` are
the transposes with respect to x, for artifacts, which run without autograd.

Arguments of both:
    x: [n, D * M * C], viewed [n, D, M, C]: every irrep has the same C channels.
    weight: [M, S, P, C], used as it is. species: int64 [n] in [0, S).
    paths: P rows of eight integers (order, l1, l2, l3, offset1, offset2, offset3,
        cg_offset), those of order 2 first: couples components offset1.. of x (order 2) or
        of P2 (order 3) with components offset2.. of x, to components offset3.. of P2 or
        P3, with coefficients cg[cg_offset:] viewed [2l1+1, 2l2+1, 2l3+1]. Paths of
        order 2 have each unordered pair of irreps once.
    cg: float64, coefficients of all paths.
"""

from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from race.model.fused import HAS_FUSED

FIELDS = 8  # of a row of paths


@dataclass(frozen=True)
class ProductPaths:
    """The path table of race::product."""

    rows: list[int]
    cg: Tensor  # float64, [2l1+1, 2l2+1, 2l3+1] of every path, concatenated
    norm: Tensor  # [P], so that unit weights give each component of P2 and of P3 unit variance


def product_paths(irreps: o3.Irreps, correlation: int, targets: list[o3.Irrep]) -> ProductPaths:
    """Couplings within `irreps` (one channel each is enough), up to `correlation` factors.

    The last order keeps what leads to `targets`. Products x x are symmetric: the coupling
    of an irrep with itself to an l of the other symmetry is zero, and left out.
    """
    irs = [ir for _, ir in irreps]
    offsets, total = [], 0
    for ir in irs:
        offsets.append(total)
        total += ir.dim
    rows: list[int] = []
    tables = [torch.zeros(0, dtype=torch.float64)]
    norms: list[float] = []
    cg_offset = 0
    for order in range(2, correlation + 1):
        wanted = targets if order == correlation else irs
        found = [
            (a, b, irs.index(out))
            for a in range(len(irs))
            for b in range(a if order == 2 else 0, len(irs))
            for out in irs[a] * irs[b]
            if out in wanted and out in irs
            if not (order == 2 and a == b and (2 * irs[a].l + out.l) % 2 == 1)
        ]
        fan_in = [sum(path[2] == k for path in found) for k in range(len(irs))]
        for a, b, k in found:
            rows += [order, irs[a].l, irs[b].l, irs[k].l, offsets[a], offsets[b], offsets[k]]
            rows.append(cg_offset)
            # Unit-variance components of two irreps that are independent of each other
            table = irs[k].dim ** 0.5 * o3.wigner_3j(
                irs[a].l, irs[b].l, irs[k].l, dtype=torch.float64
            )
            tables.append(table.flatten())
            norms.append(fan_in[k] ** -0.5)
            cg_offset += table.numel()
    return ProductPaths(rows, torch.cat(tables), torch.tensor(norms, dtype=torch.float64))


def couple(
    x: Tensor, y: Tensor, weight: Tensor, species: Tensor, paths: list[int], cg: Tensor, order: int
) -> Tensor:
    """The sum over paths of one order: x, y [n, D, M, C], weight [M, S, P, C] -> [n, D, M, C]"""
    out = torch.zeros_like(x)
    for p in range(len(paths) // 8):
        row = paths[8 * p : 8 * p + 8]
        if row[0] == order:
            d1, d2, d3 = 2 * row[1] + 1, 2 * row[2] + 1, 2 * row[3] + 1
            table = cg.narrow(0, row[7], d1 * d2 * d3).to(x.dtype).view(d1 * d2, d3)
            pairs = x.narrow(1, row[4], d1).unsqueeze(2) * y.narrow(1, row[5], d2).unsqueeze(1)
            part = torch.einsum("nqmc,qk->nkmc", pairs.flatten(1, 2), table)
            w = weight.select(2, p).transpose(0, 1).index_select(0, species)  # [n, M, C]
            component = torch.arange(row[6], row[6] + d3, device=x.device)
            out = out.index_add(1, component, part * w.unsqueeze(1))
    return out


def couple_vjp(
    bar: Tensor,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    species: Tensor,
    paths: list[int],
    cg: Tensor,
    order: int,
) -> tuple[Tensor, Tensor]:
    """Adjoints of x and y from that of `couple`'s result, all [n, D, M, C]."""
    bar_x, bar_y = torch.zeros_like(x), torch.zeros_like(y)
    for p in range(len(paths) // 8):
        row = paths[8 * p : 8 * p + 8]
        if row[0] == order:
            d1, d2, d3 = 2 * row[1] + 1, 2 * row[2] + 1, 2 * row[3] + 1
            table = cg.narrow(0, row[7], d1 * d2 * d3).to(x.dtype).view(d1 * d2, d3)
            w = weight.select(2, p).transpose(0, 1).index_select(0, species)  # [n, M, C]
            along = torch.einsum("nkmc,qk->nqmc", bar.narrow(1, row[6], d3) * w.unsqueeze(1), table)
            along = along.unflatten(1, [d1, d2])
            left, right = x.narrow(1, row[4], d1), y.narrow(1, row[5], d2)
            bar_x.narrow(1, row[4], d1).add_((along * right.unsqueeze(1)).sum(2))
            bar_y.narrow(1, row[5], d2).add_((along * left.unsqueeze(2)).sum(1))
    return bar_x, bar_y


def by_component(x: Tensor, weight: Tensor) -> Tensor:
    """[n, D * M * C] -> [n, D, M, C], also without atoms"""
    n_members, channels = weight.shape[0], weight.shape[3]
    return x.view(x.shape[0], x.shape[1] // (n_members * channels), n_members, channels)


def has_order(paths: list[int], order: int) -> bool:
    """Whether any path is a product of this order."""
    return any([paths[k] == order for k in range(0, len(paths), 8)])


def product_aten(
    x: Tensor, weight: Tensor, species: Tensor, paths: list[int], cg: Tensor
) -> Tensor:
    """See the module: stock torch operations only; [n, D * M * C]."""
    a = by_component(x, weight)
    second = couple(a, a, weight, species, paths, cg, 2)
    out = a + second
    if has_order(paths, 3):
        out = out + couple(second, a, weight, species, paths, cg, 3)
    return out.reshape(x.shape)


def product_jvp_aten(
    dx: Tensor, x: Tensor, weight: Tensor, species: Tensor, paths: list[int], cg: Tensor
) -> Tensor:
    """Tangent of `product_aten`'s result from that of x; stock torch operations only."""
    a, da = by_component(x, weight), by_component(dx, weight)
    dsecond = couple(da, a, weight, species, paths, cg, 2)
    dsecond = dsecond + couple(a, da, weight, species, paths, cg, 2)
    out = da + dsecond
    if has_order(paths, 3):
        second = couple(a, a, weight, species, paths, cg, 2)
        out = out + couple(dsecond, a, weight, species, paths, cg, 3)
        out = out + couple(second, da, weight, species, paths, cg, 3)
    return out.reshape(x.shape)


def product_vjp_aten(
    grad: Tensor, x: Tensor, weight: Tensor, species: Tensor, paths: list[int], cg: Tensor
) -> Tensor:
    """The adjoint of x from that of `product_aten`'s result; stock torch operations only."""
    a = by_component(x, weight)
    bar = grad.view(a.shape)
    bar_a, bar_second = bar, bar
    if has_order(paths, 3):
        second = couple(a, a, weight, species, paths, cg, 2)
        through, direct = couple_vjp(bar, second, a, weight, species, paths, cg, 3)
        bar_a, bar_second = bar_a + direct, bar_second + through
    left, right = couple_vjp(bar_second, a, a, weight, species, paths, cg, 2)
    return (bar_a + left + right).reshape(x.shape)


if HAS_FUSED and hasattr(torch.ops.race, "product"):

    def product_fused(
        x: Tensor, weight: Tensor, species: Tensor, paths: list[int], cg: Tensor
    ) -> Tensor:
        """See the module: the compiled operator race::product; [n, D * M * C]."""
        return torch.ops.race.product(x, weight, species, paths, cg)

    def product_vjp_fused(
        grad: Tensor, x: Tensor, weight: Tensor, species: Tensor, paths: list[int], cg: Tensor
    ) -> Tensor:
        """As `product_vjp_aten`, by race::product_backward."""
        return torch.ops.race.product_backward(grad, x, weight, species, paths, cg, [True, False])[
            0
        ]

else:
    product_fused, product_vjp_fused = product_aten, product_vjp_aten
