"""One layer as it is deployed: linear maps folded into each other, and the transpose written out.

The fold is exact. These maps are folded:

    W_down W_prod[Z] / N           into one matrix per species and irrep
    W_up                           into the matrix before it, if only the next convolution
                                   reads the feature
    the readout's first map        likewise, if that is less work (nothing else reads h of
                                   the last layer)
    the skip of the first layer    into a row per species: h_0 is a function of the species

Products of A and the gate are nonlinear and part the fold: W_down stands before the product,
and the maps of h' stand after the gate.
"""

# mypy: disable-error-code="operator"
# (TorchScript iterates over plain ModuleLists, whose items have no type.)
import math

import torch
from e3nn import o3
from torch import Tensor, nn

from race.deploy.chain import Link, Matrices, chain_of, transpose_of
from race.deploy.readout import (
    readout_aten,
    readout_fused,
    readout_vjp_aten,
    readout_vjp_fused,
)
from race.model.conv import (
    conv_aten,
    conv_fused,
    conv_jvp_aten,
    conv_jvp_fused,
    conv_power_aten,
    conv_power_fused,
    conv_vjp_aten,
    conv_vjp_fused,
)
from race.model.gate import (
    gate_aten,
    gate_fused,
    gate_jvp_aten,
    gate_jvp_fused,
    gate_vjp_aten,
    gate_vjp_fused,
)
from race.model.irreps import Layout
from race.model.layer import Layer, Readout
from race.model.product import (
    product_aten,
    product_fused,
    product_jvp_aten,
    product_vjp_aten,
    product_vjp_fused,
)
from race.model.radial import SILU_NORM


def then(first: Matrices, second: Matrices) -> Matrices:
    """First, then second, for the irreps that both have."""
    return {ir: first[ir] @ second[ir] for ir in first.keys() & second.keys()}


def only(matrices: Matrices, irreps: set[o3.Irrep]) -> Matrices:
    """The matrices of these irreps."""
    return {ir: matrix for ir, matrix in matrices.items() if ir in irreps}


class FoldedLayer(nn.Module):
    """One layer: mid = conv(g), then h' (what later maps read), g' (what neighbours read), z
    (the readout before its activation).
    """

    # Branches on them are decided when the artifact is compiled
    __constants__ = [
        "fused",
        "first",
        "gated",
        "powers",
        "n_readouts",
    ]
    cg: Tensor
    power_cg: Tensor
    power_weight: Tensor
    table: Tensor
    rows: Tensor
    second: Tensor
    energy_weight: Tensor

    def __init__(
        self,
        layer: Layer,
        readout: Readout,
        species_features: Tensor,
        embedding: Tensor,
        irreps_h: o3.Irreps,
        next_layer: Layer | None,
    ):
        """The layer of T trunks, with the readout of M members, R = M / T to a trunk: member
        r T + t reads trunk t.

        embedding [S, T * F] of the first layer, empty after it; irreps_h: what the
        previous layer kept of h.
        """
        super().__init__()
        T, M = layer.weight_skip.shape[0], readout.w2.shape[0]
        R = M // T
        self.fused, self.first = True, embedding.numel() > 0
        self.dim_h = Layout(irreps_h, T).dim
        self.path_rows, self.dim_mid = layer.path_rows, layer.dim_mid
        self.radial = layer.radial
        self.register_buffer("cg", layer.cg.clone())
        self.register_buffer("table", torch.zeros(0))
        # Where the trunks lie in a row of g: (offset, 2l + 1, mul) of each irrep
        self.g_blocks = [
            number
            for block in Layout(layer.irreps_g, T).blocks
            for number in (block.offset, block.ir.dim, block.mul)
        ]

        # every linear map of the layer, irrep by irrep
        w1 = layer.readout.w1  # [T, mul, H]; the later maps are the members' own
        mid, out = layer.irreps_mid, layer.irreps_out
        widths = {ir: mul for mul, ir in out}
        down = matrices_of(layer.linear_down.matrices(), layer.linear_down.shapes, layer.irreps_a)
        scalar, tensor = o3.Irrep("0e"), o3.Irrep("2e")
        self.gated, self.powers = layer.gated, layer.correlation > 1
        self.gate_rows, S = layer.gate_rows, species_features.shape[1]
        gates = o3.Irreps([(sum(mul for mul, ir in out if ir != scalar), scalar)])
        product, product_gates = matrices_and_gates(
            layer.product_weight(species_features),
            layer.product_shapes,
            layer.irreps_product,
            layer.n_gates > 0,
        )
        skip, skip_gates = matrices_and_gates(
            layer.weight_skip * layer.skip_norm,
            layer.skip_shapes,
            layer.irreps_skip,
            layer.n_gates > 0,
        )
        source = layer.irreps_a if self.powers else mid
        self.dim_source = Layout(source, T).dim
        if self.powers:
            scaled = {ir: matrix * layer.power_scale() for ir, matrix in down.items()}
            self.down = chain_of([(0, 1, scaled)], [mid, source], 1, T, S)
            self.back_down = transpose_of(self.down, [1], [0], [self.dim_mid])
            self.power_rows = layer.power_rows
            self.register_buffer("power_cg", layer.power_cg.clone())
            self.register_buffer("power_weight", layer.weight_power * layer.power_norm)
        else:
            product, product_gates = then(down, product), then(down, product_gates)
        read: Matrices = {scalar: normalized(w1)}
        if readout.wt.shape[1] > 0:
            read[tensor] = of_trunks(normalized(readout.wt), T)
        up: Matrices = {}
        g_next = o3.Irreps([])
        kept: set[o3.Irrep] = set()
        if next_layer is not None:
            linear = layer.linear_up_next
            assert linear is not None
            g_next = next_layer.irreps_g
            up = matrices_of(linear.matrices(), linear.shapes, g_next)
            kept = {ir for _, ir in next_layer.irreps_out} & widths.keys()
        if worth_keeping(source, irreps_h, widths, scalar, w1.shape[2]):
            kept = kept | {scalar}
        if self.gated:
            kept = set(widths)
        hidden = o3.Irreps([(w1.shape[2], scalar)])
        self.irreps_h = o3.Irreps([(mul, ir) for mul, ir in out if ir in kept])

        # The layer computes, in this order: h', g', z, tensor channels. Each adds up
        # from mid (or the products), from h and from h' itself.
        readers: list[tuple[o3.Irreps, Matrices]] = [
            (g_next, up),
            (hidden, only(read, {scalar})),
            (
                o3.Irreps([(R * readout.n_tensors, tensor)] if tensor in read else []),
                only(read, {tensor}),
            ),
        ]
        made = [self.irreps_h]
        from_source: list[Link] = [(0, 2, only(product, kept))]
        from_h: list[Link] = [(1, 2, only(skip, kept))]
        from_new: list[Link] = []  # tensors of the chain: 0 mid, 1 h, then those made
        if self.gated:
            made.append(gates)
            from_source.append((0, 3, product_gates))
            from_h.append((1, 3, skip_gates))
            self.after = chain_of(
                [(0, to, after) for to, (_, after) in enumerate(readers, start=1)],
                [self.irreps_h, *(irreps for irreps, _ in readers)],
                1,
                T,
                S,
            )
            # To that of h' from those of g' and z. The energy reads no tensor channel.
            self.back_after = transpose_of(self.after, [0, 1, 2], [], [])
        else:
            for to, (irreps, after) in enumerate(readers, start=3):
                # Not by way of h'
                beyond = {ir: matrix for ir, matrix in after.items() if ir not in kept}
                made.append(irreps)
                from_source.append((0, to, then(product, beyond)))
                from_h.append((1, to, then(skip, beyond)))
                from_new.append((2, to, only(after, kept)))
        rows = torch.zeros(0, dtype=torch.float64)
        if self.first:
            of_h = chain_of(
                [(0, to - 1, matrices) for _, to, matrices in from_h],
                [layer.irreps_in, *made],
                1,
                T,
                S,
            ).set_fused(False)
            rows = torch.cat(of_h([embedding], None, torch.arange(S)), dim=1)
            from_h = []
        self.register_buffer("rows", rows)  # [S, all made] in the first layer: what h_0 gives
        links = from_source + from_h + from_new
        self.chain = chain_of(links, [source, irreps_h, *made], 2, T, S)
        self.back = transpose_of(
            self.chain,
            [2, 3] if self.gated else [2, 3, 4],
            [0, 1],
            [self.dim_source, self.dim_h],
        )
        self.n_gates = gates.dim if self.gated else 0
        self.dim_new = Layout(self.irreps_h, T).dim

        # outputs from silu(z): scalars of the head, the energy first
        self.n_trunks, self.n_readouts, self.n_scalars = T, R, readout.n_scalars
        second = SILU_NORM * of_trunks(normalized(readout.w2), T)[:, 0]  # [T, H, R * n_scalars]
        self.register_buffer("second", second)
        energy = second.unflatten(2, (R, self.n_scalars))[..., 0]  # [T, H, R]
        self.register_buffer("energy_weight", energy.permute(2, 0, 1).contiguous())  # [R, T, H]

    def prepare(self) -> None:
        """Makes what is made once, when dtype and device are known."""
        if self.radial.n_knots > 0:
            self.table = self.radial.table()
        self.back.take_transposed(self.chain.weight)
        if self.powers:
            self.back_down.take_transposed(self.down.weight)
        if self.gated:
            self.back_after.take_transposed(self.after.weight)

    def weights(self, radial: Tensor) -> tuple[Tensor, Tensor | None]:
        """(radial, table) as the convolution takes them."""
        if self.radial.n_knots > 0:
            return radial.squeeze(2), self.table
        return self.radial.mlp(radial.transpose(0, 1)), None

    def forward(
        self,
        h: Tensor,
        g: Tensor,
        radial: Tensor,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        species: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h [n, dim_h], g [n_total, dim_g], radial [E, G, B], sh [E, G, S] -> h', g', out
        [n, M, n_out], z [n, T * H] (for `vjp`)
        """
        weights, table = self.weights(radial)
        if self.fused:
            mid = conv_fused(
                g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, self.dim_mid
            )
        else:
            mid = conv_aten(
                g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, self.dim_mid
            )
        kept: list[Tensor] = []
        source = mid
        if self.powers:
            a = self.down([mid], None, species)[0]
            kept.append(a)
            if self.fused:
                source = product_fused(
                    a, self.power_weight, species, self.power_rows, self.power_cg
                )
            else:
                source = product_aten(a, self.power_weight, species, self.power_rows, self.power_cg)
        rows: Tensor | None = None
        if self.first:
            rows = self.rows
        if self.gated:
            u, gates = self.chain([source, h], rows, species)
            kept.append(u)
            kept.append(gates)
            if self.fused:
                new = gate_fused(u, gates, self.gate_rows, self.n_trunks)
            else:
                new = gate_aten(u, gates, self.gate_rows, self.n_trunks)
            g_next, z, tensor = self.after([new], None, species)
        else:
            new, g_next, z, tensor = self.chain([source, h], rows, species)
        if self.fused:
            out = readout_fused(z, tensor, self.second, self.n_scalars)
        else:
            out = readout_aten(z, tensor, self.second, self.n_scalars)
        if len(kept) > 0:
            kept.insert(0, z)
            z = torch.cat(kept, dim=1)
        return new, g_next, out, z

    def kept(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(z, a, u, gates) of what `forward` returned as z; those that there are not: anything."""
        if not (self.powers or self.gated):
            return z, z, z, z
        n_power = self.dim_source if self.powers else 0
        n_gated = self.dim_new if self.gated else 0
        n_gates = self.n_trunks * self.n_gates
        n_z = z.shape[1] - n_power - n_gated - n_gates
        z, a, u, gates = z.split([n_z, n_power, n_gated, n_gates], dim=1)
        return z, a.contiguous(), u, gates

    def back_to_mid(
        self,
        species: Tensor,
        z: Tensor,
        bar_energy: Tensor,
        bar_new: Tensor,
        bar_g_next: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Adjoints of mid and h: all of `vjp` that is of atoms alone."""
        z, a, u, gates = self.kept(z)
        if self.fused:
            bar_z = readout_vjp_fused(bar_energy, self.energy_weight, z)
        else:
            bar_z = readout_vjp_aten(bar_energy, self.energy_weight, z)
        if self.gated:
            self.back_after([bar_new, bar_g_next, bar_z], None, species)
            if self.fused:
                bar = gate_vjp_fused(bar_new, u, gates, self.gate_rows, self.n_trunks)
            else:
                bar = gate_vjp_aten(bar_new, u, gates, self.gate_rows, self.n_trunks)
            bar_u, bar_gates = bar
            bar_mid, bar_h = self.back([bar_u, bar_gates], None, species)
        else:
            bar_mid, bar_h = self.back([bar_new, bar_g_next, bar_z], None, species)
        if self.powers:
            if self.fused:
                bar_mid = product_vjp_fused(
                    bar_mid, a, self.power_weight, species, self.power_rows, self.power_cg
                )
            else:
                bar_mid = product_vjp_aten(
                    bar_mid, a, self.power_weight, species, self.power_rows, self.power_cg
                )
            bar_mid = self.back_down([bar_mid], None, species)[0]
        return bar_mid, bar_h

    def jvp(
        self,
        dh: Tensor,
        dg: Tensor,
        dradial: Tensor,
        dsh: Tensor,
        g: Tensor,
        radial: Tensor,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        species: Tensor,
        z: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Tangents of h' and g' from those of (h, g, radial, sh); g, radial and sh as
        `forward` had them, z as it gave it.
        """
        weights, table = self.weights(radial)
        if self.radial.n_knots > 0:
            dweights = dradial.squeeze(2)
        else:
            dweights = self.radial.mlp_jvp(radial.transpose(0, 1), dradial.transpose(0, 1))
        paths, cg, dim = self.path_rows, self.cg, self.dim_mid
        if self.fused:
            dsource = conv_jvp_fused(
                dg, dweights, dsh, g, weights, table, sh, sender, row_ptr, paths, cg, dim
            )
        else:
            dsource = conv_jvp_aten(
                dg, dweights, dsh, g, weights, table, sh, sender, row_ptr, paths, cg, dim
            )
        _, a, u, gates = self.kept(z)
        if self.powers:
            da = self.down([dsource], None, species)[0]
            dsource = product_jvp_aten(
                da, a, self.power_weight, species, self.power_rows, self.power_cg
            )
        made = self.chain([dsource, dh], None, species)
        if not self.gated:
            return made[0], made[1]
        if self.fused:
            dnew = gate_jvp_fused(made[0], made[1], u, gates, self.gate_rows, self.n_trunks)
        else:
            dnew = gate_jvp_aten(made[0], made[1], u, gates, self.gate_rows, self.n_trunks)
        return dnew, self.after([dnew], None, species)[0]

    def power(
        self,
        dg: Tensor,
        radial: Tensor,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        species: Tensor,
        z: Tensor,
        bar_energy: Tensor,
        bar_new: Tensor,
        bar_g_next: Tensor,
    ) -> Tensor:
        """[E, T]: energy that the features of an edge's sender, changing by dg per unit of
        time, give to its receiver; adjoints as in `vjp`, which are not changed.
        """
        bar_mid, _ = self.back_to_mid(species, z, bar_energy, bar_new.clone(), bar_g_next.clone())
        weights, table = self.weights(radial)
        if self.fused:
            products = conv_power_fused(
                bar_mid, dg, weights, table, sh, sender, row_ptr, self.path_rows, self.cg
            )
        else:
            products = conv_power_aten(
                bar_mid, dg, weights, table, sh, sender, row_ptr, self.path_rows, self.cg
            )
        n_edges, T = sender.shape[0], self.n_trunks
        power = products.new_zeros((n_edges, T))
        for k in range(0, len(self.g_blocks), 3):
            offset, d, mul = self.g_blocks[k], self.g_blocks[k + 1], self.g_blocks[k + 2]
            of_irrep = products.narrow(1, offset, d * T * mul).view(n_edges, d, T, mul)
            power = power + of_irrep.sum(3).sum(1)
        return power

    def vjp(
        self,
        g: Tensor,
        radial: Tensor,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        species: Tensor,
        z: Tensor,
        bar_energy: Tensor,
        bar_new: Tensor,
        bar_g_next: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Adjoints of (h, g, radial, sh) from those of the energy out[:, :, 0] [n, M], of h'
        and g' (overwritten); z as `forward` gave it.
        """
        bar_mid, bar_h = self.back_to_mid(species, z, bar_energy, bar_new, bar_g_next)
        weights, table = self.weights(radial)
        want_g = not self.first
        if self.fused:
            bar_g, bar_weights, bar_sh = conv_vjp_fused(
                bar_mid, g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, want_g
            )
        else:
            bar_g, bar_weights, bar_sh = conv_vjp_aten(
                bar_mid, g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, want_g
            )
        if self.radial.n_knots > 0:
            return bar_h, bar_g, bar_weights.unsqueeze(2), bar_sh
        # [E, T, B]
        bar_radial = self.radial.mlp_vjp(radial.transpose(0, 1), bar_weights).transpose(0, 1)
        return (
            bar_h,
            bar_g,
            bar_radial if radial.shape[1] == self.n_trunks else bar_radial.sum(1, keepdim=True),
            bar_sh,
        )


def of_trunks(weight: Tensor, n_trunks: int) -> Tensor:
    """The matrices of all members that read a trunk, side by side: [M, 1, mul_in, mul_out]
    -> [T, 1, mul_in, M / T * mul_out]
    """
    return weight.unflatten(0, (-1, n_trunks)).permute(1, 2, 3, 0, 4).flatten(3)


def matrices_and_gates(
    flat: Tensor, shapes: list[tuple[int, int]], irreps: o3.Irreps, has_gates: bool
) -> tuple[Matrices, Matrices]:
    """The matrices of `irreps`, and that from scalars to the gates, which follows them."""
    n_gates = math.prod(shapes[-1]) if has_gates else 0
    own, last = flat.split([flat.shape[2] - n_gates, n_gates], dim=2)
    scalar = o3.Irreps("1x0e")
    return (
        matrices_of(own, shapes[: len(irreps)], irreps),
        matrices_of(last, shapes[-1:], scalar) if has_gates else {},
    )


def matrices_of(flat: Tensor, shapes: list[tuple[int, int]], irreps: o3.Irreps) -> Matrices:
    """[M, S, numel] -> [M, S, mul_in, mul_out] of each irrep that has an input."""
    parts = flat.detach().double().split([a * b for a, b in shapes], dim=2)
    return {
        ir: part.unflatten(2, shape)
        for part, shape, (_, ir) in zip(parts, shapes, irreps, strict=True)
        if shape[0] > 0
    }


def normalized(weight: Tensor) -> Tensor:
    """W / sqrt(fan_in): [M, mul_in, mul_out] -> [M, 1, mul_in, mul_out]"""
    return weight.detach().double().unsqueeze(1) * weight.shape[1] ** -0.5


def worth_keeping(
    mid: o3.Irreps, h: o3.Irreps, widths: dict[o3.Irrep, int], ir: o3.Irrep, hidden: int
) -> bool:
    """Whether the readout is less work from a kept h' than from mid and h directly."""
    inputs = sum(mul for irreps in (mid, h) for mul, other in irreps if other == ir)
    return widths[ir] * (inputs + hidden) < inputs * hidden
