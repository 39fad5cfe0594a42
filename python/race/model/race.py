"""The RACE potential: E = sum_j ( sum_t E_j^t scale[Z_j] + E0[Z_j] ), forces, stress,
uncertainty (paper section 4.3).

Members are channels: M members are one network whose channel axis is M times as wide.
This is the form that is trained; race.deploy.folded is the same function as it runs
afterwards.
"""

from dataclasses import replace
from typing import cast

import torch
from e3nn import o3
from torch import Tensor, nn

from race.config import LeverageFactors, ModelConfig, ModelConstants
from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.data.graph import Batch
from race.errors import RaceError
from race.heads import Capabilities
from race.model.edges import EdgeBasis
from race.model.fused import HAS_FUSED
from race.model.irreps import Layout, alive_irreps, unique_irreps
from race.model.layer import Layer, Readout
from race.model.linear import BlockLinear, Linear
from race.model.outputs import ModelOutput, Outputs
from race.model.radial import Radial
from race.model.scatter import segment_sum
from race.model.stress import readout_channels


class RACE(Outputs):
    """M members of one architecture; see `ModelConfig` for every option. Parameters carry
    the member axis first.

    Args:
        config: the architecture; constants that it gives are not read.
        constants: what the data decided, the order of species included.
        dtype: of parameters and features.
    """

    six_rows: Tensor
    six_columns: Tensor

    def __init__(
        self,
        config: ModelConfig,
        constants: ModelConstants,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(config, constants, dtype)
        self.config, self.constants = config, constants
        M, S, F = config.n_members, len(constants.elements), config.n_features
        hidden = unique_irreps(config.irreps_hidden)
        if o3.Irrep("0e") not in hidden:
            raise RaceError(
                "hidden features need scalars",
                where="model.irreps_hidden",
                expected="some 0e",
                got=config.irreps_hidden,
            )
        read = [o3.Irrep("0e")]
        channels = readout_channels(config.head, config.stress_head)
        if channels[1] > 0:
            read.append(o3.Irrep("2e"))
            if o3.Irrep("2e") not in hidden or config.lmax < 2:
                reader = (
                    f"head {config.head}"
                    if config.stress_head == "none"
                    else f"stress_head {config.stress_head}"
                )
                raise RaceError(
                    f"{reader} reads l=2 features",
                    where="model.irreps_hidden",
                    expected="2e channels and lmax >= 2",
                    got=f"{config.irreps_hidden}, lmax {config.lmax}",
                    remedy="add 2e, or use head cholesky without a stress_head",
                )

        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            self.edge_basis = EdgeBasis(
                config.r_max,
                config.n_radial_basis,
                config.envelope_p,
                config.lmax,
                config.radial_knots > 0,
            )
            self.embedding = nn.Parameter(torch.randn(M, S, F))
            # A = W_a h0, a function of the species alone
            self.weight_a = nn.Parameter(torch.randn(M, F, F))
            outputs, aggregated = alive_irreps(
                F, hidden, config.lmax, config.n_layers, read, config.correlation
            )
            inputs = [o3.Irreps([(F, "0e")]), *outputs[:-1]]
            widths = {ir: mul for mul, ir in hidden}
            g_irreps = [o3.Irreps([(widths[ir], ir) for _, ir in irreps]) for irreps in inputs]
            self.linear_up = Linear(inputs[0], g_irreps[0], M)
            self.layers = nn.ModuleList(
                Layer(
                    g_irreps[t],
                    inputs[t],
                    aggregated[t],
                    outputs[t],
                    g_irreps[t + 1] if t + 1 < config.n_layers else None,
                    lmax=config.lmax,
                    angular_decay=config.angular_decay,
                    correlation=config.correlation,
                    gate=config.gate,
                    n_species=S,
                    n_features=F,
                    radial_widths=[config.n_radial_basis, *config.radial_mlp],
                    radial_knots=config.radial_knots,
                    envelope_p=config.envelope_p,
                    bessel_decay=config.bessel_decay,
                    radial_scale=config.radial_scale,
                    readout_hidden=config.readout_hidden,
                    readout_channels=channels,
                    avg_num_neighbors=constants.avg_num_neighbors,
                    n_members=M,
                )
                for t in range(config.n_layers)
            )
        finally:
            torch.set_default_dtype(previous)
        for name, index in (("six_rows", SIX_ROWS), ("six_columns", SIX_COLUMNS)):
            self.register_buffer(name, torch.tensor(index), persistent=False)
        self.g_dims = [Layout(irreps, M).dim for irreps in g_irreps]  # width of each halo exchange
        self.mean_pooling = config.pooling == "mean"

    @classmethod
    def untrained(cls, config: ModelConfig, dtype: torch.dtype = torch.float32) -> "RACE":
        """A model that has seen no data: the constants that its options give, and neutral
        values of the others.
        """
        return cls(config, ModelConstants.given(config), dtype)

    @property
    def gives(self) -> Capabilities:
        """The uncertainties that the model gives."""
        return Capabilities(self.config.model_dump(), self.own_epistemic)

    def kept(self) -> dict[str, Tensor]:
        """What a run's folder keeps of the model, by name: its parameters, and what its leverage
        is measured by.
        """
        of_leverage = self.leverage.named_buffers("leverage") if self.has_leverage else ()
        return {**dict(self.named_parameters()), **dict(of_leverage)}

    def flat_matrices(self) -> dict[str, list[tuple[int, int]]]:
        """The shapes of the matrices that each parameter holds flat in its last dimension."""
        shapes = {}
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                shapes[f"{name}.weight"] = module.shapes
            elif isinstance(module, Layer):
                shapes[f"{name}.weight_product"] = module.product_shapes
                shapes[f"{name}.weight_skip"] = module.skip_shapes
        return shapes

    def embed(self, species: Tensor) -> tuple[Tensor, Tensor]:
        """species [n] -> h_0 [n, M * F], g_0 [n, dim]"""
        table = self.embedding.transpose(0, 1).reshape(self.embedding.shape[1], -1)  # [S, M * F]
        return table.index_select(0, species), self.linear_up(table).index_select(0, species)

    def species_features(self) -> Tensor:
        """a = W_a h_0 [M, S, F]"""
        return torch.bmm(self.embedding, self.weight_a) * self.weight_a.shape[1] ** -0.5

    def forward(
        self, batch: Batch, forces: bool = True, create_graph: bool = False, stress: bool = True
    ) -> ModelOutput:
        """Energies and, on request, forces and with them stress (and the noise of the virial,
        with a stress_head). `create_graph` keeps forces differentiable with respect to the
        weights.
        """
        M, (sender, receiver) = self.n_members, batch.edge_index
        vector = batch.edge_vector
        with torch.no_grad():
            radial_one, sh_one, radial_grad, sh_grad = self.edge_basis(vector)
        # One leaf per member on the group axis: one backward of sum_m E_m returns every
        # member's own adjoints.
        radial = radial_one.unsqueeze(1).expand(-1, M, -1).requires_grad_(forces)
        sh = sh_one.unsqueeze(1).expand(-1, M, -1).requires_grad_(forces)

        with torch.set_grad_enabled(forces or torch.is_grad_enabled()):
            h, g = self.embed(batch.species)
            a = self.species_features()
            h, g, out = self.layers[0](a, h, g, radial, sh, sender, batch.row_ptr, batch.species)
            for layer in self.layers[1:]:
                h, g, extra = layer(a, h, g, radial, sh, sender, batch.row_ptr, batch.species)
                out = out + extra
            if self.has_leverage:
                z = cast(Readout, self.layers[-1].readout).hidden(h)[0].detach()
                out = self.with_leverage(out, z, batch.species, True)
            node_energy = self.node_energy(out, batch.species)
            raw = self.raw_channels(out)
            own = self.node_energy_epistemic(raw) if self.has_leverage else None
            result = ModelOutput(
                energy=self.pool(node_energy, batch),
                node_energy=node_energy,
                raw=raw,
                energy_var=self.energy_var(raw, batch) if self.has_energy_var else None,
                energy_epistemic=None if own is None else self.of_frames(own, batch),
            )
        if not forces:
            return result

        # The energy of a single layer does not depend on sh: without fusion autograd has
        # nothing to give for it.
        bar_radial, bar_sh = torch.autograd.grad(
            node_energy.sum(),
            [radial, sh],
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        # [E, M, 3]
        edge_grad = self.edge_basis.vjp(vector, radial_grad, sh_grad, bar_radial, bar_sh)
        atom_forces = segment_sum(edge_grad, batch.row_ptr, receiver).index_add(
            0, sender, edge_grad, alpha=-1
        )
        if not stress:
            return replace(result, forces=atom_forces)
        # strain derivative: sum_e vector_a dE/dvector_b, symmetric for an invariant energy
        virial = vector.index_select(1, self.six_rows).unsqueeze(1) * edge_grad.index_select(
            2, self.six_columns
        )
        # A frame's receivers are consecutive
        frame_virial = segment_sum(virial, batch.row_ptr[batch.frame_ptr])
        # NaN without 3D periodicity: no stress, and no NaN in gradients
        volume = batch.volume.to(virial.dtype)[:, None, None]
        virial_cov = None
        if self.has_stress_cov:
            noise = self.stress_covariance(raw).flatten(2)
            virial_cov = self.of_frames(noise, batch).unflatten(2, (6, 6))
        return replace(
            result,
            forces=atom_forces,
            stress=torch.where(volume.isnan(), volume, frame_virial / volume.nan_to_num(1.0)),
            virial_cov=virial_cov,
        )

    def of_frames(self, node: Tensor, batch: Batch) -> Tensor:
        """Sums over the atoms of each frame, [n_atoms, ...] -> [n_frames, ...]"""
        return segment_sum(node, batch.frame_ptr, batch.frame)

    def pool(self, node: Tensor, batch: Batch) -> Tensor:
        """[n_atoms, M] -> [n_frames, M]: sum, or mean where the target is intensive."""
        total = self.of_frames(node, batch)
        return total / batch.n_atoms_per_frame[:, None] if self.mean_pooling else total

    def energy_var(self, raw: Tensor, batch: Batch) -> Tensor:
        """Aleatoric variance of the frame's target, [n_frames, M] eV^2."""
        total = self.of_frames(self.node_energy_var(raw), batch)
        n = batch.n_atoms_per_frame[:, None]
        if self.paper_energy_var:
            return torch.exp(total / n)
        return total / n**2 if self.mean_pooling else total

    def forces_cov(self, raw: Tensor) -> Tensor:
        """Aleatoric force covariance [n_atoms, M, 3, 3], (eV/A)^2."""
        return self.force_covariance.matrix(raw)

    def own_forces_cov(self, raw: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Each member's own covariances of the force: aleatoric and epistemic covariance
        [n_atoms, M, 3, 3], (eV/A)^2; None where the head does not tell.
        """
        if not self.has_forces_cov:
            return None, None
        aleatoric = self.forces_cov(raw)
        return aleatoric, self.epistemic_of(aleatoric, raw) if self.own_epistemic else None

    def scale_noise(self, energy: float, forces: float) -> "RACE":
        """Multiplies the aleatoric standard deviations, and the factors on them in the
        constants. In place.
        """
        self.sigma0_energy_squared *= energy**2
        self.force_covariance.sigma0_squared *= forces**2
        self.constants = self.constants.scaled(
            energy_noise_factor=energy, forces_noise_factor=forces
        )
        return self

    def scale_spread(self, energy: float, forces: float) -> "RACE":
        """Multiplies the factors on the members' standard deviations in the constants. In place."""
        self.constants = self.constants.scaled(
            energy_spread_factor=energy, forces_spread_factor=forces
        )
        return self

    def scale_leverage(self, energy: float, forces: float) -> "RACE":
        """Multiplies c_E and c_F, by which a leverage makes an epistemic part of the aleatoric
        one. In place.
        """
        assert self.constants.leverage is not None
        self.leverage_energy *= energy
        self.leverage_forces *= forces
        factors = LeverageFactors(energy=self.leverage_energy, forces=self.leverage_forces)
        self.constants = self.constants.model_copy(update={"leverage": factors})
        return self

    def set_fused(self, fused: bool) -> "RACE":
        """Compiled operators (race::conv, race::linear, ..), or stock torch operations
        only. In place.
        """
        for module in self.modules():
            if isinstance(module, (EdgeBasis, Layer, BlockLinear, Radial)):
                module.fused = fused and HAS_FUSED
        return self
