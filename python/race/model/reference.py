"""The same function as `race.RACE`, written plainly with e3nn: one member, no fold, nothing
dropped, autograd to positions.

This is the slow obvious twin against which every fast path is tested, and the form in
which the paper counts parameters.
"""

import math
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from race.config import ModelConfig, ModelConstants
from race.model.gate import SIGMOID_NORM
from race.model.irreps import unique_irreps
from race.model.layer import POWER_SCALE
from race.model.radial import SILU_NORM
from race.model.stress import readout_channels


class ReferencePower(nn.Module):
    """P1 + P2 + P3 of A with itself, channel by channel; weights per species."""

    def __init__(self, irreps: o3.Irreps, correlation: int, n_species: int):
        super().__init__()
        self.orders = nn.ModuleList()
        self.keys: list[
            list[tuple[Any, ...]]
        ] = []  # of each order: irreps of the factors and the result
        self.weights = nn.ParameterList()
        irs = [ir for _, ir in irreps]
        for order in range(2, correlation + 1):
            paths = [
                (a, b, irs.index(out), "uuu", True)
                for a in range(len(irs))
                for b in range(a if order == 2 else 0, len(irs))
                for out in irs[a] * irs[b]
                if out in irs
            ]
            self.orders.append(
                o3.TensorProduct(
                    irreps,
                    irreps,
                    irreps,
                    paths,
                    path_normalization="none",
                    shared_weights=False,
                    internal_weights=False,
                )
            )
            self.keys.append([(order, irs[a], irs[b], irs[k]) for a, b, k, _, _ in paths])
            self.weights.append(torch.randn(n_species, len(paths), irreps[0].mul))

    def forward(self, a: Tensor, species: Tensor) -> Tensor:
        """a + P2 + P3, see race.model.product."""
        total = power = a
        for product, weight in zip(self.orders, self.weights, strict=True):
            power = product(power, a, weight[species].flatten(1))
            total = total + power
        return total


class ReferenceGate(nn.Module):
    """silu of the scalars; every other irrep times a sigmoid, one to a channel."""

    def __init__(self, irreps: o3.Irreps):
        super().__init__()
        scalar = o3.Irrep("0e")
        self.slices = irreps.slices()
        self.position = [ir for _, ir in irreps].index(scalar)
        self.gated = o3.Irreps([(mul, ir) for mul, ir in irreps if ir != scalar])
        self.gates = o3.Irreps([(self.gated.num_irreps, scalar)])
        self.product = o3.ElementwiseTensorProduct(self.gated, self.gates)

    def forward(self, u: Tensor, gates: Tensor) -> Tensor:
        """SiLU on scalars, the other irreps times the sigmoids of `gates`."""
        blocks = [u[:, s] for s in self.slices]
        scalars = SILU_NORM * torch.nn.functional.silu(blocks.pop(self.position))
        gated = self.product(torch.cat(blocks, dim=1), SIGMOID_NORM * torch.sigmoid(gates))
        widths = [block.shape[1] for block in blocks]
        parts = list(gated.split(widths, dim=1))
        parts.insert(self.position, scalars)
        return torch.cat(parts, dim=1)


class ReferenceLayer(nn.Module):
    """One layer, one e3nn module per step: h <- W_prod (a (x) W_down sum_i m_ij / N) + W_skip h."""

    def __init__(
        self,
        irreps_in: o3.Irreps,
        hidden: o3.Irreps,
        config: ModelConfig,
        constants: ModelConstants,
    ):
        super().__init__()
        S, F = len(constants.elements), config.n_features
        widths = {ir: mul for mul, ir in hidden}
        irreps_g = o3.Irreps([(widths[ir], ir) for _, ir in irreps_in])
        irreps_sh = o3.Irreps.spherical_harmonics(config.lmax)
        self.identity = [(k, ir) for k, (_, ir) in enumerate(irreps_g) if ir in hidden]
        self.slices = irreps_g.slices()
        paths: list[tuple[Any, ...]] = []
        mid: list[tuple[int, o3.Irrep]] = []
        for k, (mul, ir) in enumerate(irreps_g):
            for l2, (_, ir_sh) in enumerate(irreps_sh):
                for out in ir * ir_sh:
                    if out in hidden:
                        paths.append((k, l2, len(mid), "uvu", True))
                        mid.append((mul, out))
        self.keys = [("identity", ir, 0, ir) for _, ir in self.identity]
        self.keys += [("product", irreps_g[k].ir, l2, mid[slot][1]) for k, l2, slot, _, _ in paths]
        irreps_identity = o3.Irreps([irreps_g[k] for k, _ in self.identity])
        irreps_mid = irreps_identity + o3.Irreps(mid)
        self.muls = [mul for mul, _ in irreps_mid]

        self.up = o3.Linear(irreps_in, irreps_g)
        self.product_sh = o3.TensorProduct(
            irreps_g, irreps_sh, o3.Irreps(mid), paths, shared_weights=False, internal_weights=False
        )
        sizes = [config.n_radial_basis, *config.radial_mlp, sum(self.muls)]
        self.radial_scale = config.radial_scale
        self.radial = nn.ParameterList(
            [torch.randn(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        )
        self.expand = o3.ElementwiseTensorProduct(
            irreps_identity, o3.Irreps([(irreps_identity.num_irreps, "0e")])
        )
        features, species = o3.Irreps([(F, "0e")]), o3.Irreps([(S, "0e")])
        aggregated = hidden
        self.power = None
        if config.correlation > 1:
            aggregated = o3.Irreps([(max(widths.values()), ir) for _, ir in hidden])
            self.power = ReferencePower(aggregated, config.correlation, S)
        self.down = o3.Linear(irreps_mid, aggregated)
        self.product = o3.FullyConnectedTensorProduct(features, aggregated, hidden)
        self.skip = o3.FullyConnectedTensorProduct(irreps_in, species, hidden)
        self.gate = None
        if config.gate:
            self.gate = ReferenceGate(hidden)
            self.product_gate = o3.FullyConnectedTensorProduct(
                features, aggregated, self.gate.gates
            )
            self.skip_gate = o3.FullyConnectedTensorProduct(irreps_in, species, self.gate.gates)
        scalars = widths[o3.Irrep("0e")]
        self.w1 = nn.Parameter(torch.randn(scalars, config.readout_hidden))
        n_scalars, n_tensors = readout_channels(config.head, config.stress_head)
        self.w2 = nn.Parameter(torch.randn(config.readout_hidden, n_scalars))
        self.wt = (
            nn.Parameter(torch.randn(widths[o3.Irrep("2e")], n_tensors)) if n_tensors else None
        )
        self.n = constants.avg_num_neighbors
        self.scalar_slice = hidden.slices()[list(ir for _, ir in hidden).index(o3.Irrep("0e"))]
        if self.wt is not None:
            self.tensor_slice = hidden.slices()[list(ir for _, ir in hidden).index(o3.Irrep("2e"))]

    def mlp(self, x: Tensor) -> Tensor:
        """The radial MLP: basis functions [E, n] -> weights R."""
        x = x * self.radial_scale
        for k, weight in enumerate(self.radial):
            x = x @ weight / math.sqrt(weight.shape[0])
            if k < len(self.radial) - 1:
                x = torch.nn.functional.silu(x) * 1.6790
        return x / self.radial_scale

    def forward(
        self,
        a: Tensor,
        attributes: Tensor,
        h: Tensor,
        radial: Tensor,
        sh: Tensor,
        edge_index: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Features of the next layer, and what its readout reads."""
        g = self.up(h)[edge_index[0]]
        weights = self.mlp(radial)
        n_identity = sum(self.muls[: len(self.identity)])
        copy = torch.cat([g[:, self.slices[k]] for k, _ in self.identity], dim=1)
        message = torch.cat(
            [
                self.expand(copy, weights[:, :n_identity]),
                self.product_sh(g, sh, weights[:, n_identity:]),
            ],
            dim=1,
        )
        total = torch.zeros(h.shape[0], message.shape[1], dtype=h.dtype).index_add(
            0, edge_index[1], message
        )
        aggregated = self.down(total)
        if self.power is None:
            aggregated = aggregated / self.n
        else:
            aggregated = self.power(
                aggregated * POWER_SCALE / math.sqrt(self.n), attributes.argmax(1)
            )
        u = self.product(a, aggregated) + self.skip(h, attributes)
        if self.gate is not None:
            u = self.gate(u, self.product_gate(a, aggregated) + self.skip_gate(h, attributes))
        h = u
        x = h[:, self.scalar_slice] @ self.w1 / math.sqrt(self.w1.shape[0])
        out = (torch.nn.functional.silu(x) * 1.6790) @ self.w2 / math.sqrt(self.w2.shape[0])
        if self.wt is not None:
            t = h[:, self.tensor_slice].unflatten(1, (-1, 5))  # e3nn keeps channels before m
            out = torch.cat(
                [
                    out,
                    torch.einsum("ncm,cd->ndm", t, self.wt).flatten(1)
                    / math.sqrt(self.wt.shape[0]),
                ],
                dim=1,
            )
        return h, out


class Reference(nn.Module):
    """One member of RACE in plain e3nn. `energy(positions)` is differentiable; use
    torch.autograd for forces.
    """

    def __init__(self, config: ModelConfig, constants: ModelConstants | None = None):
        super().__init__()
        constants = constants or ModelConstants.given(config)
        self.config, self.constants = config, constants
        S, F = len(constants.elements), config.n_features
        hidden = unique_irreps(config.irreps_hidden)
        self.embedding = nn.Parameter(torch.randn(S, F))
        self.weight_a = nn.Parameter(torch.randn(F, F))
        first = o3.Irreps([(F, "0e")])
        self.layers = nn.ModuleList(
            ReferenceLayer(first if t == 0 else hidden, hidden, config, constants)
            for t in range(config.n_layers)
        )
        degrees = o3.Irreps.spherical_harmonics(config.lmax)
        self.sh = o3.SphericalHarmonics(degrees, normalize=True, normalization="component")
        self.sh_scale = [ir.dim**-config.angular_decay for _, ir in degrees for _ in range(ir.dim)]

    def basis(self, r: Tensor) -> Tensor:
        """Bessel functions, scaled by n^-p, times the envelope: distances [E, 1] -> [E, n]."""
        x, p = r / self.config.r_max, self.config.envelope_p
        u = (
            1
            - (p + 1) * (p + 2) / 2 * x**p
            + p * (p + 2) * x ** (p + 1)
            - p * (p + 1) / 2 * x ** (p + 2)
        )
        n = torch.arange(1, self.config.n_radial_basis + 1, dtype=r.dtype)
        decay = n**-self.config.bessel_decay
        return (
            math.sqrt(2)
            * decay
            * (len(n) / decay.square().sum()).sqrt()
            * torch.sin(n * math.pi * x)
            / x
            * torch.where(x < 1, u, torch.zeros_like(u))
        )

    def forward(
        self, species: Tensor, edge_vector: Tensor, edge_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-> node energies [n] eV, outputs summed over layers [n, n_out]"""
        attributes = torch.nn.functional.one_hot(species, len(self.constants.elements)).to(
            edge_vector.dtype
        )
        h = attributes @ self.embedding
        a = h @ self.weight_a / math.sqrt(self.weight_a.shape[0])
        radial = self.basis(edge_vector.norm(dim=1, keepdim=True))
        sh = self.sh(edge_vector) * edge_vector.new_tensor(self.sh_scale)
        out = edge_vector.new_zeros(())
        for layer in self.layers:
            h, extra = layer(a, attributes, h, radial, sh, edge_index)
            out = out + extra
        scale = torch.tensor(self.constants.scale, dtype=edge_vector.dtype)
        shift = torch.tensor(
            self.constants.base_energies,
            dtype=edge_vector.dtype,
        )
        return out[:, 0] * scale[species] + shift[species], out

    @torch.no_grad()
    def load_member(self, model: nn.Module, member: int) -> "Reference":
        """Copies member `member` of a RACE model; weights that RACE drops because nothing
        reads them become zero.
        """
        from race.model.reference_weights import copy_member

        copy_member(self, model, member)
        return self
