"""One RACE interaction: convolution over neighbours, restratification by the species feature, skip, readout."""

import torch
from e3nn import o3
from torch import Tensor, nn

from race.model.conv import conv_aten, conv_fused
from race.model.heads import TENSOR_HEADS, n_scalars
from race.model.irreps import Layout, conv_paths
from race.model.linear import Blocks, Linear, species_order, species_products, weight_shapes
from race.model.radial import Radial, silu


class Readout(nn.Module):
    """E_j^t and the uncertainty channels of one layer: w_2 silu(W_1 h[0e]), and a linear map of h[2e] (paper eq. 16)."""

    def __init__(self, irreps: o3.Irreps, hidden: int, head: str, n_members: int):
        super().__init__()
        layout = Layout(irreps, n_members)
        self.scalar_index = layout.find(o3.Irrep("0e"))
        self.tensor_index = layout.find(o3.Irrep("2e")) if head in TENSOR_HEADS else -1
        self.w1 = nn.Parameter(torch.randn(n_members, layout.blocks[self.scalar_index].mul, hidden))
        self.w2 = nn.Parameter(torch.randn(n_members, hidden, n_scalars(head)))
        tensor_mul = layout.blocks[self.tensor_index].mul if self.tensor_index >= 0 else 0
        self.wt = nn.Parameter(torch.randn(n_members, tensor_mul, 1))
        self.has_tensor = head in TENSOR_HEADS

    def forward(self, blocks: list[Tensor], n: int) -> Tensor:
        """Blocks of h (Blocks.cut) -> [n, M, n_out]"""
        x = blocks[self.scalar_index]  # [M, n, C]
        x = silu(torch.bmm(x, self.w1 * self.w1.shape[1] ** -0.5))
        out = torch.bmm(x, self.w2 * self.w2.shape[1] ** -0.5).transpose(0, 1)  # [n, M, n_scalar]
        if self.has_tensor:
            if self.tensor_index >= 0:
                t = torch.bmm(blocks[self.tensor_index], self.wt * self.wt.shape[1] ** -0.5)  # [M, n * 5, 1]
                t = t.view(t.shape[0], n, 5).transpose(0, 1)
            else:  # e.g. no 2e feature yet: this layer adds nothing to the tensor channels
                t = torch.zeros(n, out.shape[1], 5, dtype=out.dtype, device=out.device)
            out = torch.cat([out, t], dim=2)
        return out


class Layer(nn.Module):
    """h <- W_prod[Z] W_down sum_i m_ij / N + W_skip[Z] h, with the species fold (DESIGN section 3).

    B_j = a_j (x) A_j contracts with W_prod to one matrix per species, W_prod[Z] = sum_f a_f(Z) W_prod[f]: the same
    function and gradients without the F-fold wider intermediate. The last linear map is the next layer's W_up, so that
    a layer ends with the narrow tensor that neighbours (and other ranks) need.
    """

    __constants__ = ["fused", "is_folded"]  # branches on them are decided when the artifact is compiled
    cg: Tensor
    product_norm: Tensor
    skip_norm: Tensor
    product_folded: Tensor

    def __init__(
        self,
        irreps_g: o3.Irreps,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        irreps_g_next: o3.Irreps | None,
        *,
        lmax: int,
        n_species: int,
        n_features: int,
        radial_widths: list[int],
        radial_knots: int,
        envelope_p: int,
        readout_hidden: int,
        head: str,
        avg_num_neighbors: float,
        n_members: int,
    ):
        super().__init__()
        M, S = n_members, n_species
        paths = conv_paths(irreps_g, lmax, irreps_out, M)
        irreps_a = o3.Irreps([(mul, ir) for mul, ir in irreps_out if ir in paths.irreps_out])
        self.irreps_g, self.irreps_in, self.irreps_out, self.linear_down_irreps = irreps_g, irreps_in, irreps_out, irreps_a
        self.fused = True
        self.path_rows = paths.rows
        self.register_buffer("cg", paths.cg, persistent=False)
        self.dim_mid = Layout(paths.irreps_out, M).dim
        self.avg_num_neighbors = avg_num_neighbors
        self.n_species = S
        self.radial = Radial([*radial_widths, paths.n_weights], M, radial_knots, envelope_p)

        self.mid_blocks = Blocks(Layout(paths.irreps_out, M), M)
        self.in_blocks = Blocks(Layout(irreps_in, M), M)
        self.out_blocks = Blocks(Layout(irreps_out, M), M)
        self.linear_down = Linear(paths.irreps_out, irreps_a, M)

        # Which irreps the product and the skip connection feed, and from which block.
        self.product_shapes = [shape for shape in weight_shapes(irreps_a, irreps_a)]
        self.product_dims = [ir.dim for _, ir in irreps_a]
        skip_irreps = o3.Irreps([(mul, ir) for mul, ir in irreps_out if ir in irreps_in])
        self.skip_shapes = weight_shapes(irreps_in, skip_irreps)
        self.skip_dims = [ir.dim for _, ir in skip_irreps]
        in_order = [ir for _, ir in irreps_in]
        self.skip_sources = [in_order.index(ir) for _, ir in skip_irreps]
        a_order, s_order = [ir for _, ir in irreps_a], [ir for _, ir in skip_irreps]
        self.product_of_out = [a_order.index(ir) if ir in a_order else -1 for _, ir in irreps_out]
        self.skip_of_out = [s_order.index(ir) if ir in s_order else -1 for _, ir in irreps_out]

        product_fan = torch.cat([torch.full((a * b,), float(n_features * a) ** -0.5) for a, b in self.product_shapes])
        skip_fan = torch.cat([torch.full((a * b,), float(a) ** -0.5) for a, b in self.skip_shapes])
        self.register_buffer("product_norm", product_fan, persistent=False)
        self.register_buffer("skip_norm", skip_fan, persistent=False)
        self.weight_product = nn.Parameter(torch.randn(M, n_features, product_fan.numel()))
        self.weight_skip = nn.Parameter(torch.randn(M, S, skip_fan.numel()))
        self.is_folded = False
        self.register_buffer("product_folded", torch.zeros(0), persistent=False)

        self.readout = Readout(irreps_out, readout_hidden, head, M)
        self.linear_up_next = None if irreps_g_next is None else Linear(irreps_out, irreps_g_next, M)

    def product_weight(self, species_features: Tensor) -> Tensor:
        """W_prod[Z] for every species: a [M, S, F] -> [M, S, numel]."""
        return torch.bmm(species_features, self.weight_product) * self.product_norm

    def forward(
        self, species_features: Tensor, h: Tensor, g: Tensor, radial: Tensor, sh: Tensor, sender: Tensor, row_ptr: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h [n, dim], g [n_total, dim_g], radial [E, G, B], sh [E, G, S], CSR over receivers -> h', g', out [n, M, n_out]."""
        n = h.shape[0]
        weights, table = self.radial(radial)
        if self.fused:
            mid = conv_fused(g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, self.dim_mid)
        else:
            mid = conv_aten(g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, self.dim_mid)
        mid = mid / self.avg_num_neighbors  # [n, dim_mid]

        order, counts = species_order(species, self.n_species)
        down = self.linear_down.products(self.mid_blocks.cut(mid.index_select(0, order)))
        weight = self.product_folded if self.is_folded else self.product_weight(species_features)
        product = species_products(down, counts, weight, self.product_shapes, self.product_dims)
        h_blocks = self.in_blocks.cut(h.index_select(0, order))
        skip_in = [h_blocks[k] for k in self.skip_sources]
        skip = species_products(skip_in, counts, self.weight_skip * self.skip_norm, self.skip_shapes, self.skip_dims)
        blocks: list[Tensor] = []
        for k in range(len(self.product_of_out)):
            a, b = self.product_of_out[k], self.skip_of_out[k]
            if a >= 0 and b >= 0:
                blocks.append(product[a] + skip[b])
            else:
                blocks.append(product[a] if a >= 0 else skip[b])

        back = torch.empty_like(order)
        back[order] = torch.arange(n, device=order.device)
        out = self.readout(blocks, n).index_select(0, back)
        h_next = self.out_blocks.join(blocks, n).index_select(0, back)
        g_next = h_next.new_zeros((n, 0)) if self.linear_up_next is None else self.linear_up_next(h_next)
        return h_next, g_next, out

    def fold(self, species_features: Tensor) -> None:
        """Replaces the product's F matrices by one per species (exact); afterwards the layer cannot be trained."""
        self.radial.fold()
        self.product_folded = self.product_weight(species_features).detach()
        self.weight_product = nn.Parameter(torch.zeros(self.weight_product.shape[0], 0, 0))
        self.is_folded = True
