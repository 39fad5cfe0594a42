"""Linear maps between rows of atoms, one after another: everything linear of a deployed
layer, and its transpose.

A chain works on numbered tensors of rows [n, dim] laid out by irreps: some given, the
others made. Its links, in order, are

    tensor_to[i, d, m, v] += sum_u tensor_from[i, d, m, u] W[m, species_i, u, v]

`chain_fused` is the compiled operator race::chain, `chain_aten` its slow twin in stock
torch operations.
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from race.model.fused import HAS_FUSED
from race.model.irreps import Layout
from race.model.linear import linear_aten

Matrices = dict[o3.Irrep, Tensor]  # per irrep [M, 1 or S, mul_in, mul_out]
Link = tuple[int, int, Matrices]  # from, to
FIELDS = 9  # of a row of blocks, see cpp/include/race/chain.h


def chain_aten(
    x: list[Tensor],
    rows: Tensor | None,
    species: Tensor,
    weight: Tensor,
    n_species: int,
    widths: list[int],
    blocks: list[int],
) -> list[Tensor]:
    """As race::chain (cpp/include/race/chain.h): changes those of x that a block writes,
    returns the tensors made.
    """
    tensors = x.copy()
    column = 0
    for width in widths:
        if rows is not None:
            tensors.append(rows.narrow(1, column, width).index_select(0, species))
        else:
            tensors.append(
                torch.zeros(species.shape[0], width, dtype=weight.dtype, device=weight.device)
            )
        column += width
    n_members = weight.shape[0]
    for k in range(0, len(blocks), 9):
        source, to, d, mul_in, mul_out, in_offset, out_offset = blocks[k : k + 7]
        offset, step = blocks[k + 7], blocks[k + 8]
        count = n_species if step > 0 else 1
        matrices = torch.stack(
            [weight.narrow(1, offset + s * step, mul_in * mul_out) for s in range(count)], dim=1
        )
        part = tensors[source].narrow(1, in_offset, d * n_members * mul_in)
        width = d * n_members * mul_out
        result = linear_aten(
            part, matrices, species if step > 0 else None, [d, mul_in, mul_out, 0, 0, 0], width
        )
        tensors[to].narrow(1, out_offset, width).add_(result)
    return tensors[len(x) :]


if HAS_FUSED and hasattr(torch.ops.race, "chain"):

    def chain_fused(
        x: list[Tensor],
        rows: Tensor | None,
        species: Tensor,
        weight: Tensor,
        n_species: int,
        widths: list[int],
        blocks: list[int],
    ) -> list[Tensor]:
        """As `chain_aten`, by race::chain."""
        return torch.ops.race.chain(x, rows, species, weight, n_species, widths, blocks)

else:
    chain_fused = chain_aten


class Chain(nn.Module):
    """The tensors made are those of `widths`; weight [M, numel] is used as it is."""

    __constants__ = ["fused"]
    blocks: list[int]
    widths: list[int]
    weight: Tensor

    def __init__(self, blocks: list[int], widths: list[int], weight: Tensor, n_species: int):
        super().__init__()
        self.fused, self.n_species = True, n_species
        self.blocks, self.widths = blocks, widths
        self.register_buffer("weight", weight)

    def forward(self, x: list[Tensor], rows: Tensor | None, species: Tensor) -> list[Tensor]:
        """Changes those of x that a link adds to, returns the tensors made; rows [S, sum of
        widths]: what they start with.
        """
        if self.fused:
            return chain_fused(
                x, rows, species, self.weight, self.n_species, self.widths, self.blocks
            )
        else:
            return chain_aten(
                x, rows, species, self.weight, self.n_species, self.widths, self.blocks
            )

    @torch.jit.unused
    def set_fused(self, fused: bool) -> "Chain":
        """Chooses the compiled operator or stock torch; returns self."""
        self.fused = fused
        return self

    def take_transposed(self, weight: Tensor) -> None:
        """The matrices of the chain that this one is the transpose of: once, when dtype and
        device are known.
        """
        self.weight = weight.clone()
        for k in range(0, len(self.blocks), 9):
            mul_out, mul_in, offset, step = (
                self.blocks[k + 3],
                self.blocks[k + 4],
                self.blocks[k + 7],
                self.blocks[k + 8],
            )
            for s in range(self.n_species if step > 0 else 1):
                matrix = weight.narrow(1, offset + s * step, mul_in * mul_out)
                flat = matrix.unflatten(1, [mul_in, mul_out]).transpose(1, 2).flatten(1)
                self.weight.narrow(1, offset + s * step, mul_in * mul_out).copy_(flat)


def chain_of(
    links: list[Link], irreps: list[o3.Irreps], n_given: int, n_members: int, n_species: int
) -> Chain:
    """The chain between tensors of `irreps`, the first `n_given` of them given."""
    layouts = [Layout(each, n_members) for each in irreps]
    blocks: list[int] = []
    parts, offset = [torch.zeros(n_members, 0, dtype=torch.float64)], 0
    for source, to, matrices in links:
        for ir, matrix in matrices.items():
            a, b = (
                layouts[source].blocks[layouts[source].find(ir)],
                layouts[to].blocks[layouts[to].find(ir)],
            )
            step = a.mul * b.mul if matrix.shape[1] > 1 else 0
            blocks += [source, to, ir.dim, a.mul, b.mul, a.offset, b.offset, offset, step]
            parts.append(matrix.flatten(1))
            offset += parts[-1].shape[1]
    return Chain(
        blocks, [layout.dim for layout in layouts[n_given:]], torch.cat(parts, dim=1), n_species
    )


def transpose_of(chain: Chain, given: list[int], made: list[int], widths: list[int]) -> Chain:
    """From the adjoints of tensors `given`, overwritten, to those of tensors `made`; other
    adjoints are zero. Its weight is to be taken.
    """
    place = {tensor: k for k, tensor in enumerate([*given, *made])}
    blocks: list[int] = []
    for k in reversed(range(0, len(chain.blocks), FIELDS)):
        source, to, d, mul_in, mul_out, in_offset, out_offset, offset, step = chain.blocks[
            k : k + FIELDS
        ]
        if source in place and to in place:
            blocks += [
                place[to],
                place[source],
                d,
                mul_out,
                mul_in,
                out_offset,
                in_offset,
                offset,
                step,
            ]
    return Chain(blocks, widths, torch.zeros(0), chain.n_species)
