"""Irreps as flat rows: where each block lies, which tensor-product paths connect blocks,
which features are alive.
"""

from dataclasses import dataclass

import torch
from e3nn import o3


@dataclass(frozen=True)
class Block:
    """One irrep's columns of a flat feature row, viewed [2l+1, n_members, mul]."""

    ir: o3.Irrep
    mul: int
    offset: int  # first column
    width: int  # (2l+1) * n_members * mul


class Layout:
    """Columns of a flat feature row [n_nodes, dim] for irreps carried by `n_members` members
    (conventions.py).
    """

    def __init__(self, irreps: o3.Irreps, n_members: int):
        self.irreps = irreps
        self.blocks: list[Block] = []
        offset = 0
        for mul, ir in irreps:
            width = ir.dim * n_members * mul
            self.blocks.append(Block(ir, mul, offset, width))
            offset += width
        self.dim = offset
        self.widths = [block.width for block in self.blocks]

    def find(self, ir: o3.Irrep) -> int:
        """Position of an irrep among the blocks, or -1."""
        return next((k for k, block in enumerate(self.blocks) if block.ir == ir), -1)


def unique_irreps(irreps: o3.Irreps) -> o3.Irreps:
    """Sorted, one block per irrep: the form in which hidden features are stored."""
    return o3.Irreps(irreps).sort().irreps.simplify()


def path_irreps(
    irreps_in: o3.Irreps, lmax: int, target: o3.Irreps
) -> list[tuple[int, int, o3.Irrep]]:
    """Paths of one convolution as (input block, l2, output irrep): g_i itself, then g_i (x)
    Y_l2 -> target.

    The identity path is written as l2 = 0: with `component` normalisation g (x) Y_0 = g exactly.
    """
    wanted = {ir for _, ir in target}
    paths = [(k, 0, ir) for k, (_, ir) in enumerate(irreps_in) if ir in wanted]
    for k, (_, ir) in enumerate(irreps_in):
        for l2 in range(lmax + 1):
            paths += [(k, l2, out) for out in ir * o3.Irrep(l2, (-1) ** l2) if out in wanted]
    return paths


@dataclass(frozen=True)
class ConvPaths:
    """The path table of race::conv (rows of ten integers, see cpp/include/race/conv.h) and
    what it produces.
    """

    rows: list[int]
    # Float64, dense coefficients [2l1+1, 2l2+1, 2l3+1] of every path, concatenated
    cg: torch.Tensor
    irreps_out: o3.Irreps  # one block per output irrep, its paths side by side
    n_weights: int  # K: radial weights per edge and member


def conv_paths(
    irreps_in: o3.Irreps, lmax: int, target: o3.Irreps, n_members: int, angular_decay: float = 0.0
) -> ConvPaths:
    """Every product of a feature and a harmonic up to lmax that `target` has, once per
    channel of the feature (e3nn's "uvu"). The coefficients hold the scale (2l + 1)^-p of the
    harmonics.
    """
    paths = path_irreps(irreps_in, lmax, target)
    columns: dict[o3.Irrep, int] = {ir: 0 for _, ir in target}
    placed = []
    for k, l2, out in paths:
        placed.append((k, l2, out, columns[out]))
        columns[out] += irreps_in[k].mul
    irreps_out = o3.Irreps([(columns[ir], ir) for _, ir in target if columns[ir]])

    layout_in, layout_out = Layout(irreps_in, n_members), Layout(irreps_out, n_members)
    rows: list[int] = []
    tables: list[torch.Tensor] = []
    weight_offset = cg_offset = 0
    for k, l2, out, column in placed:
        source, sink = layout_in.blocks[k], layout_out.blocks[layout_out.find(out)]
        rows += [
            source.ir.l,
            l2,
            out.l,
            source.mul,
            source.offset,
            sink.offset,
            sink.mul,
            column,
            weight_offset,
            cg_offset,
        ]
        # e3nn's `component` normalisation of one 'uvu' path: sqrt(2 l3 + 1) times the
        # unit-norm Wigner 3j
        table = out.dim**0.5 * o3.wigner_3j(source.ir.l, l2, out.l, dtype=torch.float64)
        tables.append(table.flatten() * (2 * l2 + 1) ** -angular_decay)
        weight_offset += source.mul
        cg_offset += table.numel()
    return ConvPaths(rows, torch.cat(tables), irreps_out, weight_offset)


def alive_irreps(
    n_features: int,
    hidden: o3.Irreps,
    lmax: int,
    n_layers: int,
    readout: list[o3.Irrep],
    correlation: int = 1,
) -> tuple[list[o3.Irreps], list[o3.Irreps]]:
    """Irreps of h_1 .. h_L that can be non-zero *and* are read later; the rest is never
    computed (exact). And those of A_1 .. A_L, which the convolutions aim at.

    Each has n_layers entries. h: subsets of `hidden`. Forward: what reaches h_t from
    scalars. Backward: what a later layer or a readout can see. Where products of A are
    taken, all that is reached is seen, and every irrep of A has as many channels as the
    widest of `hidden`.
    """
    reachable = []
    source = o3.Irreps([(n_features, "0e")])
    for _ in range(n_layers):
        made = {out for _, _, out in path_irreps(source, lmax, hidden)} | {ir for _, ir in source}
        source = o3.Irreps([(mul, ir) for mul, ir in hidden if ir in made])
        reachable.append(source)

    alive: list[o3.Irreps] = []
    needed = set(readout)
    for irreps in reversed(reachable):
        kept = o3.Irreps([(mul, ir) for mul, ir in irreps if ir in needed])
        alive.insert(0, kept)
        seen = set(readout) | {ir for _, ir in kept}  # the skip connection reads h itself
        for mul, ir in hidden:
            if correlation > 1 or path_irreps(o3.Irreps([(mul, ir)]), lmax, kept):
                seen.add(ir)
        needed = seen
    if correlation == 1:
        return alive, alive
    widest = max(mul for mul, _ in hidden)
    return alive, [o3.Irreps([(widest, ir) for _, ir in irreps]) for irreps in reachable]
