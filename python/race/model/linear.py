"""Linear maps of flat features, one set of weights per member (and per species where asked)."""

import torch
from e3nn import o3
from torch import Tensor, nn

from race.model.irreps import Layout


class Blocks(nn.Module):
    """Cuts flat rows [n, dim] into per-irrep matrices [M, n * (2l+1), mul] for batched products, and joins them again."""

    def __init__(self, layout: Layout, n_members: int):
        super().__init__()
        self.n_members = n_members
        self.widths = layout.widths
        self.dims = [block.ir.dim for block in layout.blocks]
        self.muls = [block.mul for block in layout.blocks]

    def cut(self, rows: Tensor) -> list[Tensor]:
        n = rows.shape[0]
        out: list[Tensor] = []
        for k, part in enumerate(rows.split(self.widths, dim=1)):
            block = part.reshape(n, self.dims[k], self.n_members, self.muls[k])
            out.append(block.permute(2, 0, 1, 3).reshape(self.n_members, n * self.dims[k], self.muls[k]))
        return out

    def join(self, blocks: list[Tensor], n: int) -> Tensor:
        out: list[Tensor] = []
        for k, block in enumerate(blocks):
            rows = block.reshape(self.n_members, n, self.dims[k], self.muls[k])
            out.append(rows.permute(1, 2, 0, 3).reshape(n, self.widths[k]))
        return torch.cat(out, dim=1)


def weight_shapes(irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> list[tuple[int, int]]:
    """(mul_in, mul_out) for each output irrep; mul_in = 0 where the input lacks it."""
    count = {ir: mul for mul, ir in irreps_in}
    return [(count.get(ir, 0), mul) for mul, ir in irreps_out]


class Linear(nn.Module):
    """Equivariant linear map x_k -> x_k W_k / sqrt(fan_in), per irrep k and member; weights are kept flat [M, numel]."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, n_members: int):
        super().__init__()
        self.shapes = weight_shapes(irreps_in, irreps_out)
        if any(rows == 0 for rows, _ in self.shapes):
            raise ValueError(f"Linear: output {irreps_out} has irreps that the input {irreps_in} lacks")
        order_in = [next(k for k, (_, other) in enumerate(irreps_in) if other == ir) for _, ir in irreps_out]
        self.order_in = order_in
        self.sizes = [rows * columns for rows, columns in self.shapes]
        self.n_members = n_members
        self.blocks_in = Blocks(Layout(irreps_in, n_members), n_members)
        self.blocks_out = Blocks(Layout(irreps_out, n_members), n_members)
        self.weight = nn.Parameter(torch.randn(n_members, sum(self.sizes)))

    def forward(self, rows: Tensor) -> Tensor:
        """[n, dim_in] -> [n, dim_out]"""
        return self.blocks_out.join(self.products(self.blocks_in.cut(rows)), rows.shape[0])

    def products(self, blocks: list[Tensor]) -> list[Tensor]:
        """Per output irrep: [M, n * (2l+1), mul_in] -> [M, n * (2l+1), mul_out]."""
        out: list[Tensor] = []
        for k, flat in enumerate(self.weight.split(self.sizes, dim=1)):
            rows, columns = self.shapes[k]
            out.append(torch.bmm(blocks[self.order_in[k]], flat.reshape(self.n_members, rows, columns) * rows**-0.5))
        return out


def species_order(species: Tensor, n_species: int) -> tuple[Tensor, list[int]]:
    """Row order that groups atoms by species, and their counts: per-species maps become a few plain matrix products."""
    counts: list[int] = torch.bincount(species, minlength=n_species).tolist()
    return torch.argsort(species, stable=True), counts


def species_products(
    blocks: list[Tensor], counts: list[int], weight: Tensor, shapes: list[tuple[int, int]], dims: list[int]
) -> list[Tensor]:
    """Per irrep and species: x_k W_k[Z]. Blocks [M, n * dim_k, mul_in], atoms grouped by species with `counts`.

    weight [M, S, numel] flat over irreps; no normalisation is applied here.
    """
    out: list[Tensor] = []
    sizes = [rows * columns for rows, columns in shapes]
    for k, flat in enumerate(weight.split(sizes, dim=2)):
        rows, columns = shapes[k]
        matrix = flat.reshape(weight.shape[0], weight.shape[1], rows, columns)
        pieces: list[Tensor] = []
        start = 0
        for s, count in enumerate(counts):
            stop = start + count * dims[k]
            pieces.append(torch.bmm(blocks[k][:, start:stop], matrix[:, s]))
            start = stop
        out.append(torch.cat(pieces, dim=1) if len(counts) > 1 else pieces[0])
    return out
