"""race::conv against e3nn's own tensor products for every convolution of the paper's five
models: values, first and second derivatives.
"""

import pytest
import torch
from e3nn import o3

from race.config import ModelConfig
from race.model.conv import conv_fused
from race.model.irreps import Layout
from race.model.layer import Layer
from race.model.race import RACE
from race.presets import PRESETS, preset

from .conv_cases import TOLERANCE, derivatives
from .operators import worst

pytest.importorskip(
    "race._race", reason="race._race is not built: there is no fused convolution to test"
)


def convolutions() -> list:
    """(layer, lmax) of every different convolution, wide ones included, with the paper's
    own channels.
    """
    found = {}
    for name in PRESETS:
        config = ModelConfig(**preset(name))
        for t, layer in enumerate(RACE.untrained(config).layers):
            assert isinstance(layer, Layer)
            key = (*layer.path_rows, config.lmax)
            found.setdefault(key, pytest.param(layer, config.lmax, id=f"{name}-layer{t + 1}"))
    return list(found.values())


class E3nn:
    """The convolution of one member as the sum over receivers of o3.TensorProduct messages,
    in the rows and columns of ours.
    """

    def __init__(self, layer: Layer, lmax: int, dtype: torch.dtype):
        self.table = [layer.path_rows[p : p + 10] for p in range(0, len(layer.path_rows), 10)]
        self.layout_in, self.layout_out = Layout(layer.irreps_g, 1), Layout(layer.irreps_mid, 1)
        starts_in = [block.offset for block in self.layout_in.blocks]
        starts_out = [block.offset for block in self.layout_out.blocks]
        self.sinks = [starts_out.index(row[5]) for row in self.table]
        instructions = [
            (starts_in.index(row[4]), row[1], k, "uvu", True) for k, row in enumerate(self.table)
        ]
        per_path = o3.Irreps(
            [
                (row[3], layer.irreps_mid[sink].ir)
                for row, sink in zip(self.table, self.sinks, strict=True)
            ]
        )
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # e3nn bakes its coefficients in
        try:
            self.product = o3.TensorProduct(
                layer.irreps_g,
                o3.Irreps.spherical_harmonics(lmax),
                per_path,
                instructions,
                shared_weights=False,
                internal_weights=False,
                irrep_normalization="component",
                path_normalization="none",
            )
        finally:
            torch.set_default_dtype(previous)

    def __call__(self, g, radial, table, sh, sender, row_ptr, rows, cg, dim_out):
        sh = torch.cat([sh[:, 0, :1].detach(), sh[:, 0, 1:]], 1)  # Y_0 is a constant
        columns = [
            g[:, b.offset : b.offset + b.width].view(-1, b.ir.dim, b.mul).transpose(1, 2).flatten(1)
            for b in self.layout_in.blocks
        ]
        message = self.product(torch.cat(columns, 1)[sender], sh, radial[0])
        receiver = torch.repeat_interleave(torch.arange(row_ptr.numel() - 1), row_ptr.diff())
        summed = message.new_zeros(row_ptr.numel() - 1, message.shape[1]).index_add(
            0, receiver, message
        )
        blocks: list[list[torch.Tensor]] = [[] for _ in self.layout_out.blocks]
        for part, row, sink in zip(
            summed.split([row[3] * (2 * row[2] + 1) for row in self.table], 1),
            self.table,
            self.sinks,
            strict=True,
        ):
            blocks[sink].append(part.view(part.shape[0], row[3], -1))  # [n, mul, 2l + 1]
        return torch.cat([torch.cat(parts, 1).transpose(1, 2).flatten(1) for parts in blocks], 1)


def operands_of(layer: Layer, lmax: int, dtype: torch.dtype, n_nodes: int, counts: list[int]):
    """Random operands; `counts`: edges of each receiver."""
    gen = torch.Generator().manual_seed(0)
    n_edges, n_weights = sum(counts), layer.radial.weights[-1].shape[2]
    g = torch.randn(n_nodes, Layout(layer.irreps_g, 1).dim, dtype=dtype, generator=gen)
    radial = torch.randn(1, n_edges, n_weights, dtype=dtype, generator=gen)
    sh = torch.randn(n_edges, 1, (lmax + 1) ** 2, dtype=dtype, generator=gen)
    sender = torch.randint(0, n_nodes, (n_edges,), generator=gen)
    row_ptr = torch.tensor([0, *counts]).cumsum(0)
    return [g.requires_grad_(), radial.requires_grad_(), None, sh.requires_grad_()], (
        sender,
        row_ptr,
        layer.path_rows,
        layer.cg,
        layer.dim_mid,
    )


@pytest.mark.parametrize("layer, lmax", convolutions())
def test_equals_e3nn(layer, lmax):
    for dtype, tolerance in TOLERANCE.items():
        reference = E3nn(layer, lmax, dtype)
        for n_nodes, counts in ((5, [4, 0, 3]), (1, [1])):  # a receiver without edges; one atom
            operands, rest = operands_of(layer, lmax, dtype, n_nodes, counts)
            assert (
                worst(
                    derivatives(conv_fused, operands, rest), derivatives(reference, operands, rest)
                )
                < tolerance
            )
    operands, rest = operands_of(layer, lmax, torch.float64, 3, [0, 0])
    assert all((value == 0).all() for value in derivatives(conv_fused, operands, rest))  # no edges
    operands, rest = operands_of(layer, lmax, torch.float64, 5, [4, 0, 3])
    expected = derivatives(E3nn(layer, lmax, torch.float64), operands, rest)
    cg = rest[3].clone()
    cg[cg.nonzero()[-1]] *= 1 + 1e-8  # a planted error is seen
    assert (
        worst(derivatives(conv_fused, operands, (*rest[:3], cg, rest[4])), expected)
        > TOLERANCE[torch.float64]
    )
