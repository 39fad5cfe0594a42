"""Operands of the convolution, and everything that training on forces asks of it."""

import torch
from e3nn import o3

import race.model.fused  # noqa: F401  registers torch.ops.race
from race.model.irreps import Layout, conv_paths

from .operators import random_like

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
# Widths that are no multiple of a vector, one wide enough for every tile, and all degrees.
IRREPS = ["64x0e", "4x0e+2x1o", "5x0e+19x1o+8x2e", "70x0e+24x1o+16x1e+33x2e+40x3o"]


def make(
    irreps,
    lmax,
    n_members=1,
    groups=1,
    dtype=torch.float64,
    n_nodes=6,
    n_edges=23,
    n_receivers=5,
    seed=0,
    knots=0,
):
    """((g, radial, table, sh) as leaves, the other arguments of conv). Receiver 2 has no
    edges; without knots no table.
    """
    gen = torch.Generator().manual_seed(seed)
    irreps = o3.Irreps(irreps)
    paths = conv_paths(irreps, lmax, irreps, n_members)
    g = torch.randn(n_nodes, Layout(irreps, n_members).dim, dtype=dtype, generator=gen)
    table = None
    if knots:
        radial = (0.02 + 0.96 * torch.rand(n_edges, 1, dtype=dtype, generator=gen)).expand(
            -1, groups
        )
        table = torch.randn(
            n_members, knots + 4, paths.n_weights, dtype=dtype, generator=gen
        ).requires_grad_()
    else:
        radial = torch.randn(n_members, n_edges, paths.n_weights, dtype=dtype, generator=gen)
    sh = torch.randn(n_edges, 1, (lmax + 1) ** 2, dtype=dtype, generator=gen).expand(-1, groups, -1)
    sender = torch.randint(0, max(n_nodes, 1), (n_edges,), generator=gen)
    receiver = torch.randint(0, max(n_receivers, 1), (n_edges,), generator=gen)
    receiver = torch.where(receiver == 2, 0, receiver).sort().values
    row_ptr = torch.zeros(n_receivers + 1, dtype=torch.long)
    if n_receivers:
        row_ptr[1:] = torch.bincount(receiver, minlength=n_receivers).cumsum(0)
    rest = (sender, row_ptr, paths.rows, paths.cg, Layout(paths.irreps_out, n_members).dim)
    g, radial, sh = (t.detach().requires_grad_() for t in (g, radial, sh))
    return [g, radial, table, sh], rest


def derivatives(conv, operands, rest, seed=1):
    """Result, its adjoints, and the adjoints of a random functional of those: all that
    training on forces needs.
    """
    like = random_like(seed)
    g, radial, table, sh = operands
    leaves = [t for t in operands if t is not None]
    out = conv(*operands, *rest) + 0 * sh.sum()  # paths with l2 = 0 alone do not differentiate it
    weight = like(out).requires_grad_()
    of_table = [] if table is None else torch.autograd.grad(out, [table], weight, retain_graph=True)
    first = torch.autograd.grad(out, [g, radial, sh], weight, create_graph=True)
    second = torch.autograd.grad(
        first,
        [weight, *leaves],
        [like(t) for t in first],
        allow_unused=True,
        materialize_grads=True,
    )
    return [out, *of_table, *first, *second]
