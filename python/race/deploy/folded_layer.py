"""One layer as it is deployed: linear maps folded into each other, and the transpose written out.

The fold is exact; it leaves
    W_down W_prod[Z] / N             one matrix per species and irrep
    W_up after it                    where a feature is read by the next convolution alone
    the readout's first map after it where that is less work (in the last layer, h itself
    is read by nothing else)
    the skip of the first layer      a row per species, since h_0 is a function of the species
"""

# mypy: disable-error-code="operator"
# (TorchScript iterates over plain ModuleLists, whose items have no type.)
import torch
from e3nn import o3
from torch import Tensor, nn

from race.deploy.chain import Link, Matrices, chain_of, transpose_of
from race.model.conv import conv_aten, conv_fused, conv_vjp_aten, conv_vjp_fused
from race.model.irreps import Layout
from race.model.layer import Layer, Readout
from race.model.linear import linear_aten, linear_fused
from race.model.radial import SILU_NORM


def then(first: Matrices, second: Matrices) -> Matrices:
    """First, then second, for the irreps that both have."""
    return {ir: first[ir] @ second[ir] for ir in first.keys() & second.keys()}


def only(matrices: Matrices, irreps: set[o3.Irrep]) -> Matrices:
    return {ir: matrix for ir, matrix in matrices.items() if ir in irreps}


class FoldedLayer(nn.Module):
    """One layer: mid = conv(g), then h' (what later maps read), g' (what neighbours read), z
    (the readout before its activation).
    """

    # Branches on them are decided when the artifact is compiled
    __constants__ = [
        "fused",
        "first",
        "n_readouts",
    ]
    cg: Tensor
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

        # every linear map of the layer, irrep by irrep
        w1 = layer.readout.w1  # [T, mul, H]; the later maps are the members' own
        mid, out = layer.irreps_mid, layer.irreps_out
        widths = {ir: mul for mul, ir in out}
        product = then(
            matrices_of(layer.linear_down.matrices(), layer.linear_down.shapes, layer.irreps_a),
            matrices_of(
                layer.product_weight(species_features), layer.product_shapes, layer.irreps_a
            ),
        )
        skip_irreps = o3.Irreps([(mul, ir) for mul, ir in out if ir in layer.irreps_in])
        skip = matrices_of(layer.weight_skip * layer.skip_norm, layer.skip_shapes, skip_irreps)
        scalar, tensor = o3.Irrep("0e"), o3.Irrep("2e")
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
        if worth_keeping(mid, irreps_h, widths, scalar, w1.shape[2]):
            kept = kept | {scalar}
        hidden = o3.Irreps([(w1.shape[2], scalar)])
        self.irreps_h = o3.Irreps([(mul, ir) for mul, ir in out if ir in kept])

        # What the layer computes, in this order: h', g', z, tensor channels. Each adds up
        # from mid, from h and from h' itself.
        targets: list[tuple[o3.Irreps, Matrices]] = [
            (self.irreps_h, {}),
            (g_next, up),
            (hidden, only(read, {scalar})),
            (
                o3.Irreps([(R * readout.n_tensors, tensor)] if tensor in read else []),
                only(read, {tensor}),
            ),
        ]
        made, S = [irreps for irreps, _ in targets], species_features.shape[1]
        from_mid: list[Link] = []  # tensors of the chain: 0 mid, 1 h, then the targets
        from_h: list[Link] = []
        from_new: list[Link] = []
        for to, (_, after) in enumerate(targets, start=2):
            # Not by way of h'
            beyond = {ir: matrix for ir, matrix in after.items() if ir not in kept}
            from_mid.append((0, to, only(product, kept) if to == 2 else then(product, beyond)))
            from_h.append((1, to, only(skip, kept) if to == 2 else then(skip, beyond)))
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
        self.register_buffer("rows", rows)  # [S, all targets] in the first layer: what h_0 gives
        self.chain = chain_of(from_mid + from_h + from_new, [mid, irreps_h, *made], 2, T, S)
        # The energy reads no tensor channel
        self.back = transpose_of(self.chain, [2, 3, 4], [0, 1], [self.dim_mid, self.dim_h])

        # outputs from silu(z): scalars of the head, the energy first
        self.n_trunks, self.n_readouts, self.n_scalars, self.n_tensors = (
            T,
            R,
            readout.n_scalars,
            readout.n_tensors,
        )
        second = SILU_NORM * of_trunks(normalized(readout.w2), T)  # [T, 1, H, R * n_scalars]
        self.second_blocks = [1, second.shape[2], R * self.n_scalars, 0, 0, 0]
        self.register_buffer("second", second.flatten(2))
        energy = second[:, 0].unflatten(2, (R, self.n_scalars))[..., 0]  # [T, H, R]
        self.register_buffer("energy_weight", energy.permute(2, 0, 1).contiguous())  # [R, T, H]

    def prepare(self) -> None:
        """Makes what is made once, when dtype and device are known."""
        if self.radial.n_knots > 0:
            self.table = self.radial.table()
        self.back.take_transposed(self.chain.weight)

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
        n, T, R = species.shape[0], self.n_trunks, self.n_readouts
        rows: Tensor | None = None
        if self.first:
            rows = self.rows
        new, g_next, z, tensor = self.chain([mid, h], rows, species)
        active = torch.nn.functional.silu(z)
        if self.fused:
            out = linear_fused(
                active, self.second, None, self.second_blocks, T * R * self.n_scalars
            )
        else:
            out = linear_aten(active, self.second, None, self.second_blocks, T * R * self.n_scalars)
        out = out.view(n, T, R, self.n_scalars).transpose(1, 2)
        if tensor.shape[1] > 0:
            out = torch.cat(
                [out, tensor.view(n, 5, T, R, self.n_tensors).permute(0, 3, 2, 4, 1).flatten(3)],
                dim=3,
            )
        out = out.reshape(n, R * T, out.shape[3])
        return new, g_next, out, z

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
        and g' (overwritten).
        """
        if self.n_readouts == 1:
            bar_active = bar_energy.unsqueeze(2) * self.energy_weight[0]
        else:
            # [T, n, R]
            by_trunk = bar_energy.unflatten(1, [self.n_readouts, self.n_trunks]).permute(2, 0, 1)
            # [n, T, H]
            bar_active = torch.bmm(by_trunk, self.energy_weight.transpose(0, 1)).transpose(0, 1)
        bar_z = torch.ops.aten.silu_backward(bar_active.flatten(1), z)
        bar_mid, bar_h = self.back([bar_new, bar_g_next, bar_z], None, species)
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
