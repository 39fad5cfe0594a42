"""One layer as it is deployed: linear maps folded into each other, and the transpose written out.

The fold is exact; it leaves
    W_down W_prod[Z] / N             one matrix per species and irrep
    W_up after it                    where a feature is read by the next convolution alone
    the readout's first map after it where that is less work (in the last layer, h itself is read by nothing else)
    the skip of the first layer      a row per species, since h_0 is a function of the species
"""

# mypy: disable-error-code="operator"
# (TorchScript iterates over plain ModuleLists, whose items have no type.)
import torch
from e3nn import o3
from torch import Tensor, nn

from race.model.conv import conv_aten, conv_fused, conv_vjp_aten, conv_vjp_fused
from race.model.heads import n_scalars
from race.model.irreps import Layout
from race.model.layer import Layer
from race.model.linear import add_linear_aten, add_linear_fused

SILU_NORM = 1.6790  # of race.model.radial.silu
Matrices = dict[o3.Irrep, Tensor]  # per irrep [M, 1 or S, mul_in, mul_out]


def chain(first: Matrices, second: Matrices) -> Matrices:
    """First, then second, for the irreps that both have."""
    return {ir: first[ir] @ second[ir] for ir in first.keys() & second.keys()}


def only(matrices: Matrices, irreps: set[o3.Irrep]) -> Matrices:
    return {ir: matrix for ir, matrix in matrices.items() if ir in irreps}


class Map(nn.Module):
    """x -> x W per irrep, and its transpose; both add to rows that are there."""

    __constants__ = ["fused", "empty", "per_species"]
    blocks: list[int]
    transposed_blocks: list[int]
    weight: Tensor
    weight_transposed: Tensor

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, matrices: Matrices, n_members: int):
        super().__init__()
        source, sink = Layout(irreps_in, n_members), Layout(irreps_out, n_members)
        self.fused, self.empty = True, not matrices
        self.per_species = max((matrix.shape[1] for matrix in matrices.values()), default=1) > 1
        self.dim_in, self.dim_out = source.dim, sink.dim
        self.blocks, self.transposed_blocks = [], []
        parts = [torch.zeros(n_members, 1, 0, dtype=torch.float64)]
        offset = 0
        for ir, matrix in matrices.items():
            a, b = source.blocks[source.find(ir)], sink.blocks[sink.find(ir)]
            self.blocks += [ir.dim, a.mul, b.mul, a.offset, b.offset, offset]
            self.transposed_blocks += [ir.dim, b.mul, a.mul, b.offset, a.offset, offset]
            offset += a.mul * b.mul
            parts.append(matrix.flatten(2))
        n_species = max(part.shape[1] for part in parts)
        self.register_buffer("weight", torch.cat([part.expand(-1, n_species, -1) for part in parts], dim=2))
        self.register_buffer("weight_transposed", torch.zeros(0))

    def transpose_weight(self) -> None:
        """Once, when dtype and device are known."""
        parts = [self.weight[:, :, :0]]
        for k in range(0, len(self.blocks), 6):
            rows, columns, offset = self.blocks[k + 1], self.blocks[k + 2], self.blocks[k + 5]
            matrix = self.weight.narrow(2, offset, rows * columns).unflatten(2, [rows, columns])
            parts.append(matrix.transpose(2, 3).flatten(2))
        self.weight_transposed = torch.cat(parts, dim=2)

    def forward(self, out: Tensor, x: Tensor, species: Tensor) -> Tensor:
        """out [n, dim_out] += x W, x [n, dim_in]"""
        return self.add(out, x, species, self.weight, self.blocks)

    def transpose(self, out: Tensor, bar: Tensor, species: Tensor) -> Tensor:
        """out [n, dim_in] += bar W^T, bar [n, dim_out]"""
        return self.add(out, bar, species, self.weight_transposed, self.transposed_blocks)

    @torch.jit.unused
    def set_fused(self, fused: bool) -> "Map":
        self.fused = fused
        return self

    def add(self, out: Tensor, x: Tensor, species: Tensor, weight: Tensor, blocks: list[int]) -> Tensor:
        if self.empty:
            return out
        if self.fused:
            return add_linear_fused(out, x, weight, species if self.per_species else None, blocks)
        else:
            return add_linear_aten(out, x, weight, species if self.per_species else None, blocks)


class FoldedLayer(nn.Module):
    """One layer: mid = conv(g), then h' (what later maps read), g' (what neighbours read), z (the readout before its activation)."""

    __constants__ = ["fused", "first"]
    cg: Tensor
    table: Tensor
    rows: Tensor
    energy_weight: Tensor

    def __init__(self, layer: Layer, species_features: Tensor, embedding: Tensor, irreps_h: o3.Irreps, next_layer: Layer | None, head: str):
        """embedding [S, M * F] of the first layer, empty after it; irreps_h: what the previous layer kept of h."""
        super().__init__()
        M = layer.weight_skip.shape[0]
        self.fused, self.first = True, embedding.numel() > 0
        self.dim_h = Layout(irreps_h, M).dim
        self.path_rows, self.dim_mid = layer.path_rows, layer.dim_mid
        self.radial = layer.radial
        self.register_buffer("cg", layer.cg.clone())
        self.register_buffer("table", torch.zeros(0))

        # every linear map of the layer, irrep by irrep
        readout = layer.readout
        mid, out = layer.irreps_mid, layer.irreps_out
        widths = {ir: mul for mul, ir in out}
        product = chain(
            matrices_of(layer.linear_down.matrices(), layer.linear_down.shapes, layer.irreps_a),
            matrices_of(layer.product_weight(species_features), layer.product_shapes, layer.irreps_a),
        )
        skip_irreps = o3.Irreps([(mul, ir) for mul, ir in out if ir in layer.irreps_in])
        skip = matrices_of(layer.weight_skip * layer.skip_norm, layer.skip_shapes, skip_irreps)
        scalar, tensor = o3.Irrep("0e"), o3.Irrep("2e")
        read: Matrices = {scalar: normalized(readout.w1)}
        if readout.wt.shape[1] > 0:
            read[tensor] = normalized(readout.wt)
        up: Matrices = {}
        g_next = o3.Irreps([])
        kept: set[o3.Irrep] = set()
        if next_layer is not None:
            linear = layer.linear_up_next
            assert linear is not None
            g_next = next_layer.irreps_g
            up = matrices_of(linear.matrices(), linear.shapes, g_next)
            kept = {ir for _, ir in next_layer.irreps_out} & widths.keys()
        if worth_keeping(mid, irreps_h, widths, scalar, readout.w1.shape[2]):
            kept = kept | {scalar}
        hidden = o3.Irreps([(readout.w1.shape[2], scalar)])
        self.irreps_h = o3.Irreps([(mul, ir) for mul, ir in out if ir in kept])

        # What the layer computes, in this order: h', g', z, tensor channels. Each adds up from mid, from h and from h' itself.
        targets: list[tuple[o3.Irreps, Matrices]] = [
            (self.irreps_h, {}),
            (g_next, up),
            (hidden, only(read, {scalar})),
            (o3.Irreps([(1, tensor)] if tensor in read else []), only(read, {tensor})),
        ]
        self.widths = [Layout(irreps, M).dim for irreps, _ in targets]
        self.from_mid, self.from_h, self.from_new = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        rows = [torch.zeros(len(embedding), 0, dtype=torch.float64)]
        for k, (irreps, after) in enumerate(targets):
            beyond = {ir: matrix for ir, matrix in after.items() if ir not in kept}  # not by way of h'
            of_mid = only(product, kept) if k == 0 else chain(product, beyond)
            of_h = only(skip, kept) if k == 0 else chain(skip, beyond)
            if self.first:
                bias = Map(layer.irreps_in, irreps, of_h, M).set_fused(False)
                start = torch.zeros(len(embedding), bias.dim_out, dtype=torch.float64)
                rows.append(bias(start, embedding, torch.arange(len(embedding))))
                of_h = {}
            self.from_mid.append(Map(mid, irreps, of_mid, M))
            self.from_h.append(Map(irreps_h, irreps, of_h, M))
            self.from_new.append(Map(self.irreps_h, irreps, only(after, kept), M))
        self.register_buffer("rows", torch.cat(rows, dim=1))  # [S, all targets] in the first layer: what h_0 gives

        # outputs from silu(z): scalars of the head, the energy first
        self.n_members, self.n_scalars = M, n_scalars(head)
        second = SILU_NORM * normalized(readout.w2)  # [M, 1, H, n_scalars]
        self.second = Map(hidden, o3.Irreps([(self.n_scalars, scalar)]), {scalar: second}, M)
        self.register_buffer("energy_weight", second[:, 0, :, 0].unsqueeze(0))  # [1, M, H]

    def prepare(self) -> None:
        """Makes what is made once, when dtype and device are known."""
        if self.radial.n_knots > 0:
            self.table = self.radial.table()
        for from_mid, from_h, from_new in zip(self.from_mid, self.from_h, self.from_new):  # noqa: B905 (TorchScript)
            from_mid.transpose_weight()
            from_h.transpose_weight()
            from_new.transpose_weight()

    def weights(self, radial: Tensor) -> tuple[Tensor, Tensor | None]:
        """(radial, table) as the convolution takes them."""
        if self.radial.n_knots > 0:
            return radial.squeeze(2), self.table
        return self.radial.mlp(radial.transpose(0, 1)), None

    def forward(
        self, h: Tensor, g: Tensor, radial: Tensor, sh: Tensor, sender: Tensor, row_ptr: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h [n, dim_h], g [n_total, dim_g], radial [E, G, B], sh [E, G, S] -> h', g', out [n, M, n_out], z [n, M * H] (for `vjp`)"""
        weights, table = self.weights(radial)
        if self.fused:
            mid = conv_fused(g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, self.dim_mid)
        else:
            mid = conv_aten(g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, self.dim_mid)
        n, M = species.shape[0], self.n_members
        results = self.start(species)
        for k, (from_mid, from_h) in enumerate(zip(self.from_mid, self.from_h)):  # noqa: B905 (TorchScript)
            results[k] = from_h(from_mid(results[k], mid, species), h, species)
        for k, from_new in enumerate(self.from_new):
            results[k] = from_new(results[k], results[0], species)
        new, g_next, z, tensor = results
        out = torch.zeros(n, M * self.n_scalars, dtype=z.dtype, device=z.device)
        out = self.second(out, torch.nn.functional.silu(z), species).view(n, M, self.n_scalars)
        if tensor.shape[1] > 0:
            out = torch.cat([out, tensor.reshape(n, 5, M).transpose(1, 2)], dim=2)
        return new, g_next, out, z

    def start(self, species: Tensor) -> list[Tensor]:
        """Rows of the four targets before the maps add to them: zero, or in the first layer the species' own."""
        if self.first:
            return [part.index_select(0, species) for part in self.rows.split(self.widths, dim=1)]
        return [torch.zeros(species.shape[0], width, dtype=self.rows.dtype, device=self.rows.device) for width in self.widths]

    def vjp(
        self, g: Tensor, radial: Tensor, sh: Tensor, sender: Tensor, row_ptr: Tensor, species: Tensor, z: Tensor, bar_energy: Tensor,
        bar_new: Tensor, bar_g_next: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Adjoints of (h, g, radial, sh) from those of the energy out[:, :, 0] [n, M], of h' (overwritten) and of g'."""
        n = species.shape[0]
        bar_z = (bar_energy.unsqueeze(2) * self.energy_weight).flatten(1)
        bars = [bar_new, bar_g_next, torch.ops.aten.silu_backward(bar_z, z)]  # none of the tensor channels: the energy has none
        bar_mid = torch.zeros(n, self.dim_mid, dtype=z.dtype, device=z.device)
        bar_h = torch.zeros(n, self.dim_h, dtype=z.dtype, device=z.device)
        for k, from_new in enumerate(self.from_new):
            if k < 3:
                bars[0] = from_new.transpose(bars[0], bars[k], species)
        for k, (from_mid, from_h) in enumerate(zip(self.from_mid, self.from_h)):  # noqa: B905 (TorchScript)
            if k < 3:
                bar_mid = from_mid.transpose(bar_mid, bars[k], species)
                bar_h = from_h.transpose(bar_h, bars[k], species)

        weights, table = self.weights(radial)
        want_g = not self.first
        if self.fused:
            bar_g, bar_weights, bar_sh = conv_vjp_fused(bar_mid, g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, want_g)
        else:
            bar_g, bar_weights, bar_sh = conv_vjp_aten(bar_mid, g, weights, table, sh, sender, row_ptr, self.path_rows, self.cg, want_g)
        if self.radial.n_knots > 0:
            return bar_h, bar_g, bar_weights.unsqueeze(2), bar_sh
        bar_radial = self.radial.mlp_vjp(radial.transpose(0, 1), bar_weights).transpose(0, 1)  # [E, M, B]
        return bar_h, bar_g, bar_radial if radial.shape[1] == self.n_members else bar_radial.sum(1, keepdim=True), bar_sh


def matrices_of(flat: Tensor, shapes: list[tuple[int, int]], irreps: o3.Irreps) -> Matrices:
    """[M, S, numel] -> [M, S, mul_in, mul_out] of each irrep that has an input."""
    parts = flat.detach().double().split([a * b for a, b in shapes], dim=2)
    return {ir: part.unflatten(2, shape) for part, shape, (_, ir) in zip(parts, shapes, irreps, strict=True) if shape[0] > 0}


def normalized(weight: Tensor) -> Tensor:
    """W / sqrt(fan_in): [M, mul_in, mul_out] -> [M, 1, mul_in, mul_out]"""
    return weight.detach().double().unsqueeze(1) * weight.shape[1] ** -0.5


def worth_keeping(mid: o3.Irreps, h: o3.Irreps, widths: dict[o3.Irrep, int], ir: o3.Irrep, hidden: int) -> bool:
    """Whether the readout is less work from a kept h' than from mid and h directly."""
    inputs = sum(mul for irreps in (mid, h) for mul, other in irreps if other == ir)
    return widths[ir] * (inputs + hidden) < inputs * hidden
