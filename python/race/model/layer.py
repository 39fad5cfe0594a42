"""One RACE interaction: convolution over neighbours, restratification by the species
feature, skip, readout.
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from race.model.conv import conv_aten, conv_fused
from race.model.gate import gate_aten, gate_blocks, gate_fused
from race.model.irreps import Layout, conv_paths
from race.model.linear import (
    BlockLinear,
    Linear,
    block_linear_gated,
    fan_in_norm,
)
from race.model.product import product_aten, product_fused, product_paths
from race.model.radial import SILU_NORM, Radial

# Typical size of A before its powers are taken, and that of the weights of P2 and P3: at
# unit size of both, cubic terms of an untrained model explode.
POWER_SCALE = 0.15
POWER_INIT = 0.5


def is_last_layer(name: str) -> bool:
    """Whether a parameter belongs to the last linear maps of a readout, after which nothing
    mixes channels.

    Members that differ in these alone share a trunk.
    """
    return name.endswith(("readout.w2", "readout.wt"))


class Readout(nn.Module):
    """E_j^t and the uncertainty channels of one layer: w_2 silu(W_1 h[0e]), and a linear map
    of h[2e] (paper eq. 16).

    channels: scalars and l=2 tensors, see race.model.stress.readout_channels.
    """

    def __init__(self, irreps: o3.Irreps, hidden: int, channels: tuple[int, int], n_members: int):
        super().__init__()
        layout = Layout(irreps, n_members)
        scalar = layout.blocks[layout.find(o3.Irrep("0e"))]
        self.n_scalars, self.n_tensors = channels
        # None yet in a first layer
        tensors = [
            block for block in layout.blocks if self.n_tensors and block.ir == o3.Irrep("2e")
        ]
        self.w1 = nn.Parameter(torch.randn(n_members, scalar.mul, hidden))
        self.w2 = nn.Parameter(torch.randn(n_members, hidden, self.n_scalars))
        self.wt = nn.Parameter(
            torch.randn(n_members, sum(block.mul for block in tensors), max(self.n_tensors, 1))
        )
        # h -> the hidden channels, then the five components of each tensor: one map, so
        # that h has one adjoint
        self.widths = [n_members * hidden, 5 * n_members * self.n_tensors]
        rows = [1, scalar.mul, hidden, scalar.offset, 0, 0]
        for block in tensors:
            rows += [
                5,
                block.mul,
                self.n_tensors,
                block.offset,
                self.widths[0],
                scalar.mul * hidden,
            ]
        self.first = BlockLinear(rows, sum(self.widths))
        self.second = BlockLinear([1, hidden, self.n_scalars, 0, 0, 0], n_members * self.n_scalars)

    def hidden(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h [n, dim] -> the hidden channels before their activation [n, M * hidden], and those
        of the tensors.
        """
        weight = torch.cat([flat(self.w1), flat(self.wt)], dim=2)
        hidden, tensor = self.first(h, weight).split(self.widths, dim=1)
        return hidden, tensor

    def forward(self, h: Tensor) -> Tensor:
        """h [n, dim] -> [n, M, n_out]"""
        n, n_members = h.shape[0], self.w1.shape[0]
        hidden, tensor = self.hidden(h)
        out = self.second(SILU_NORM * torch.nn.functional.silu(hidden), flat(self.w2)).view(
            n, n_members, self.w2.shape[2]
        )
        if self.n_tensors:
            out = torch.cat(
                [
                    out,
                    tensor.reshape(n, 5, n_members, self.n_tensors).permute(0, 2, 3, 1).flatten(2),
                ],
                dim=2,
            )
        return out


def flat(weight: Tensor) -> Tensor:
    """W / sqrt(fan_in) of one block, [M, mul_in, mul_out] -> [M, 1, numel]"""
    return weight.flatten(1).unsqueeze(1) * max(weight.shape[1], 1) ** -0.5


class Layer(nn.Module):
    """h <- gate( W_prod[Z] product( W_down sum_i m_ij ) + W_skip[Z] h ), with the species
    fold; gate and product are the identity where the model has none.

    B_j = a_j (x) A_j contracts with W_prod to one matrix per species, W_prod[Z] = sum_f
    a_f(Z) W_prod[f]: the same function and gradients without the F-fold wider
    intermediate. The last linear map is the next layer's W_up, so that a layer ends with
    the narrow tensor that neighbours (and other ranks) need.
    """

    cg: Tensor
    product_norm: Tensor
    skip_norm: Tensor
    power_cg: Tensor
    power_norm: Tensor

    def __init__(
        self,
        irreps_g: o3.Irreps,
        irreps_in: o3.Irreps,
        aggregated: o3.Irreps,
        irreps_out: o3.Irreps,
        irreps_g_next: o3.Irreps | None,
        *,
        lmax: int,
        angular_decay: float,
        correlation: int,
        gate: bool,
        n_species: int,
        n_features: int,
        radial_widths: list[int],
        radial_knots: int,
        envelope_p: int,
        bessel_decay: float,
        radial_scale: float,
        readout_hidden: int,
        readout_channels: tuple[int, int],
        avg_num_neighbors: float,
        n_members: int,
    ):
        """aggregated: the irreps and channels of A, less those that g does not reach."""
        super().__init__()
        M, S = n_members, n_species
        paths = conv_paths(irreps_g, lmax, aggregated, M, angular_decay)
        irreps_a = o3.Irreps([(mul, ir) for mul, ir in aggregated if ir in paths.irreps_out])
        self.irreps_g, self.irreps_in, self.irreps_out = irreps_g, irreps_in, irreps_out
        self.irreps_mid, self.irreps_a = paths.irreps_out, irreps_a
        self.fused, self.correlation, self.gated = True, correlation, gate
        self.path_rows = paths.rows
        self.register_buffer("cg", paths.cg, persistent=False)
        self.dim_mid = Layout(paths.irreps_out, M).dim
        self.avg_num_neighbors = avg_num_neighbors
        widths = [*radial_widths, paths.n_weights]
        self.radial = Radial(widths, M, radial_knots, envelope_p, bessel_decay, radial_scale)

        self.linear_down = Linear(paths.irreps_out, irreps_a, M)
        self.gate_rows, self.n_gates = gate_blocks(irreps_out, M) if gate else ([], 0)
        self.irreps_product, self.irreps_skip = (
            o3.Irreps([(mul, ir) for mul, ir in irreps_out if ir in source])
            for source in (irreps_a, irreps_in)
        )
        self.product_map, self.product_shapes = block_linear_gated(
            irreps_a, irreps_out, self.n_gates, M
        )
        self.skip_map, self.skip_shapes = block_linear_gated(irreps_in, irreps_out, self.n_gates, M)
        product_norm, skip_norm = (
            fan_in_norm(self.product_shapes, n_features),
            fan_in_norm(self.skip_shapes),
        )
        self.register_buffer("product_norm", product_norm, persistent=False)
        self.register_buffer("skip_norm", skip_norm, persistent=False)
        self.weight_product = nn.Parameter(torch.randn(M, n_features, product_norm.numel()))
        self.weight_skip = nn.Parameter(torch.randn(M, S, skip_norm.numel()))

        self.readout = Readout(irreps_out, readout_hidden, readout_channels, M)
        self.linear_up_next = (
            None if irreps_g_next is None else Linear(irreps_out, irreps_g_next, M)
        )
        if correlation > 1:
            power = product_paths(irreps_a, correlation, [ir for _, ir in irreps_out])
            self.power_rows = power.rows
            self.register_buffer("power_cg", power.cg, persistent=False)
            norm = POWER_INIT * power.norm.to(product_norm.dtype)
            self.register_buffer("power_norm", norm.unsqueeze(1), persistent=False)  # [P, 1]
            self.weight_power = nn.Parameter(torch.randn(M, S, norm.numel(), irreps_a[0].mul))

    def product_weight(self, species_features: Tensor) -> Tensor:
        """W_prod[Z], over N where A itself is not, for every species: a [M, S, F] -> [M, S,
        numel].
        """
        product = torch.ops.race.mixed_weights if self.fused else torch.bmm
        norm = self.product_norm
        if self.correlation == 1:
            norm = norm / self.avg_num_neighbors
        return product(species_features, self.weight_product) * norm

    def power_scale(self) -> float:
        """On A, where powers of it are taken: N^-1/2 leaves it with a size of one."""
        return POWER_SCALE * self.avg_num_neighbors**-0.5

    def forward(
        self,
        species_features: Tensor,
        h: Tensor,
        g: Tensor,
        radial: Tensor,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        species: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h [n, dim], g [n_total, dim_g], radial [E, G, B], sh [E, G, S], CSR over receivers
        -> h', g', out [n, M, n_out].
        """
        weights, table = self.radial(radial)
        conv = conv_fused if self.fused else conv_aten
        mid = conv(g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, self.dim_mid)
        a = self.linear_down(mid)
        if self.correlation > 1:
            power = product_fused if self.fused else product_aten
            weight = self.weight_power * self.power_norm
            a = power(a * self.power_scale(), weight, species, self.power_rows, self.power_cg)
        product = self.product_map(a, self.product_weight(species_features), species)
        h_next = product + self.skip_map(h, self.weight_skip * self.skip_norm, species)
        if self.gated:
            n_members = self.weight_skip.shape[0]
            dim = Layout(self.irreps_out, n_members).dim
            u, gates = h_next.split([dim, h_next.shape[1] - dim], dim=1)
            gate = gate_fused if self.fused else gate_aten
            h_next = gate(u, gates, self.gate_rows, n_members)
        g_next = (
            h_next.new_zeros((h_next.shape[0], 0))
            if self.linear_up_next is None
            else self.linear_up_next(h_next)
        )
        return h_next, g_next, self.readout(h_next)
