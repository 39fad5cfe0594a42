"""Linear maps of flat features, one set of matrices per member (and per species where asked).

    out[i, d, m, v] = sum_u x[i, d, m, u] weight[m, species_i, u, v]          per irrep, d = 0 .. 2l

`linear_fused` is the compiled operator race::linear, `linear_aten` its slow twin in stock
torch operations: the oracle of the tests and the body of portable artifacts. Both are
TorchScript and differentiable twice. They are two functions, so that a caller branching
on a Final attribute compiles only one.

Arguments of both:
    x: [n, dim_in] rows. weight: [M, S, numel], used as it is. species: int64 [n] in [0,
        S); None: S = 1.
    blocks: rows of six integers (d, mul_in, mul_out, in_offset, out_offset,
        weight_offset): reads x[:, in_offset:] viewed [d, M, mul_in], writes out[:,
        out_offset:] viewed [d, M, mul_out], with weight[m, s, weight_offset:] viewed
        [mul_in, mul_out]. Several may read the same, no two write the same column;
        columns left out are zero.
    dim_out: width of the result [n, dim_out].
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from race.model.fused import HAS_FUSED
from race.model.irreps import Layout


def linear_aten(
    x: Tensor, weight: Tensor, species: Tensor | None, blocks: list[int], dim_out: int
) -> Tensor:
    """See the module: stock torch operations only; [n, dim_out]."""
    n, n_members, n_species = x.shape[0], weight.shape[0], weight.shape[1]
    counts = [n]  # atoms of each species, which are grouped: a few plain products of matrices
    order = torch.zeros(0, dtype=torch.long, device=x.device)
    if species is not None and n_species > 1:
        counts = torch.jit.annotate(
            list[int], torch.bincount(species, minlength=n_species).tolist()
        )
        order = torch.argsort(species, stable=True)
        x = x.index_select(0, order)
    parts: list[Tensor] = []
    column = 0
    n_blocks = len(blocks) // 6
    for key in sorted([blocks[6 * k + 4] * n_blocks + k for k in range(n_blocks)]):  # by out_offset
        p = 6 * (key % n_blocks)
        d, mul_in, mul_out, in_offset, out_offset = (
            blocks[p],
            blocks[p + 1],
            blocks[p + 2],
            blocks[p + 3],
            blocks[p + 4],
        )
        rows = x.narrow(1, in_offset, d * n_members * mul_in).reshape(n, d, n_members, mul_in)
        rows = rows.permute(2, 0, 1, 3).reshape(n_members, n * d, mul_in)
        matrix = weight.narrow(2, blocks[p + 5], mul_in * mul_out).reshape(
            n_members, n_species, mul_in, mul_out
        )
        pieces: list[Tensor] = []
        start = 0
        for s, count in enumerate(counts):
            pieces.append(torch.bmm(rows[:, start : start + count * d], matrix[:, s]))
            start += count * d
        result = torch.cat(pieces, dim=1).reshape(n_members, n, d, mul_out)
        parts.append(x.new_zeros((n, out_offset - column)))
        parts.append(result.permute(1, 2, 0, 3).reshape(n, d * n_members * mul_out))
        column = out_offset + d * n_members * mul_out
    parts.append(x.new_zeros((n, dim_out - column)))
    out = torch.cat(parts, dim=1)
    if order.shape[0] > 0:
        back = torch.empty_like(order)
        back[order] = torch.arange(n, device=x.device)
        out = out.index_select(0, back)
    return out


if HAS_FUSED and hasattr(torch.ops.race, "linear"):

    def linear_fused(
        x: Tensor, weight: Tensor, species: Tensor | None, blocks: list[int], dim_out: int
    ) -> Tensor:
        """See the module: the compiled operator race::linear; [n, dim_out]."""
        return torch.ops.race.linear(x, weight, species, blocks, dim_out)

else:
    linear_fused = linear_aten


class BlockLinear(nn.Module):
    """The map itself; weights come from the caller, who normalises them."""

    __constants__ = ["fused"]

    def __init__(self, blocks: list[int], dim_out: int):
        super().__init__()
        self.fused = True
        self.blocks = blocks
        self.dim_out = dim_out

    def forward(self, x: Tensor, weight: Tensor, species: Tensor | None = None) -> Tensor:
        """[n, dim_in], [M, S, numel] -> [n, dim_out]"""
        if self.fused:
            return linear_fused(x, weight, species, self.blocks, self.dim_out)
        else:
            return linear_aten(x, weight, species, self.blocks, self.dim_out)


def block_linear(irreps_in: o3.Irreps, irreps_out: o3.Irreps, n_members: int) -> BlockLinear:
    """Each irrep of the output from the same irrep of the input, or zero; matrices follow
    each other in the output's order.
    """
    source, sink = Layout(irreps_in, n_members), Layout(irreps_out, n_members)
    blocks: list[int] = []
    weight_offset = 0
    for out in sink.blocks:
        k = source.find(out.ir)
        if k >= 0:
            mul_in = source.blocks[k].mul
            blocks += [
                out.ir.dim,
                mul_in,
                out.mul,
                source.blocks[k].offset,
                out.offset,
                weight_offset,
            ]
            weight_offset += mul_in * out.mul
    return BlockLinear(blocks, sink.dim)


def block_linear_gated(
    irreps_in: o3.Irreps, irreps_out: o3.Irreps, n_gates: int, n_members: int
) -> tuple[BlockLinear, list[tuple[int, int]]]:
    """`block_linear`, then from the scalars of the input `n_gates` further scalars, which
    follow the output's irreps; and the shapes of its matrices.
    """
    shapes = [shape for shape in weight_shapes(irreps_in, irreps_out) if shape[0] > 0]
    linear = block_linear(irreps_in, irreps_out, n_members)
    if n_gates == 0:
        return linear, shapes
    source, dim = Layout(irreps_in, n_members), linear.dim_out
    scalar = source.blocks[source.find(o3.Irrep("0e"))]
    offset = sum(a * b for a, b in shapes)
    gates = [1, scalar.mul, n_gates, scalar.offset, dim, offset]
    return (
        BlockLinear(linear.blocks + gates, dim + n_members * n_gates),
        [*shapes, (scalar.mul, n_gates)],
    )


def weight_shapes(irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> list[tuple[int, int]]:
    """(mul_in, mul_out) for each output irrep; mul_in = 0 where the input lacks it."""
    count = {ir: mul for mul, ir in irreps_in}
    return [(count.get(ir, 0), mul) for mul, ir in irreps_out]


def fan_in_norm(shapes: list[tuple[int, int]], n_features: int = 1) -> Tensor:
    """(n_features mul_in)^-1/2 for each weight, flat."""
    return torch.cat([torch.full((a * b,), float(n_features * a) ** -0.5) for a, b in shapes])


class Linear(nn.Module):
    """Equivariant linear map x_k -> x_k W_k / sqrt(fan_in), per irrep k and member; weights
    are kept flat [M, numel].
    """

    norm: Tensor

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, n_members: int):
        super().__init__()
        self.shapes = weight_shapes(irreps_in, irreps_out)
        if any(rows == 0 for rows, _ in self.shapes):
            raise ValueError(
                f"Linear: output {irreps_out} has irreps that the input {irreps_in} lacks"
            )
        self.map = block_linear(irreps_in, irreps_out, n_members)
        self.register_buffer("norm", fan_in_norm(self.shapes), persistent=False)
        self.weight = nn.Parameter(torch.randn(n_members, self.norm.numel()))

    def forward(self, rows: Tensor) -> Tensor:
        """[n, dim_in] -> [n, dim_out]"""
        return self.map(rows, self.matrices())

    def matrices(self) -> Tensor:
        """W / sqrt(fan_in), [M, 1, numel]"""
        return (self.weight * self.norm).unsqueeze(1)
