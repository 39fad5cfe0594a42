"""From readout channels to energies, variances and covariances: what a model in training and
its deployed form share.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from race.config import ModelConfig, ModelConstants
from race.errors import RaceError
from race.heads import HEADS
from race.model.grade import Grade
from race.model.heads import (
    ENERGY_BOUND,
    ForceCovariance,
    soft_bound,
)
from race.model.stress import StressCovariance, readout_channels


@dataclass(frozen=True)
class ModelOutput:
    """Predictions of M members for a batch; None where it was not asked for or the head does
    not give it.

    energy: [n_frames, M] eV; node_energy: [n_atoms, M] eV; raw: [n_atoms, M, n_out]
    channels of the head; energy_var: [n_frames, M] eV^2, aleatoric; forces: [n_atoms, M,
    3] eV/A; stress: [n_frames, M, 6] eV/A^3 in SIX_ORDER, NaN without a volume;
    virial_cov: [n_frames, M, 6, 6] eV^2 in SIX_ORDER, noise of stress times volume;
    energy_epistemic: [n_frames, M] eV^2, what the member itself holds to be epistemic.
    """

    energy: Tensor
    node_energy: Tensor
    raw: Tensor
    energy_var: Tensor | None = None
    forces: Tensor | None = None
    stress: Tensor | None = None
    virial_cov: Tensor | None = None
    energy_epistemic: Tensor | None = None

    @property
    def energy_total_var(self) -> Tensor | None:
        """Of the energy, [n_frames, M] eV^2: all that each member says of its own error."""
        if self.energy_var is None or self.energy_epistemic is None:
            return self.energy_var
        return self.energy_var + self.energy_epistemic

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    def detach(self) -> "ModelOutput":
        """Without their graph."""
        return replace(self, **{name: tensor.detach() for name, tensor in self.tensors().items()})


def node_energy_aten(out: Tensor, species: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """shift + scale times the energy channel of out [n, M, n_out], by species: float64 [n, M]."""
    energy = out.select(2, 0).to(torch.float64)
    scales, shifts = scale.index_select(0, species), shift.index_select(0, species)
    return torch.addcmul(shifts.unsqueeze(1), energy, scales.unsqueeze(1))


# Of an atom's leverage: one of an element that the training set does not have is infinite,
# which no determinant survives. The deviation is a thousand times that at the set's edge.
LARGEST_LEVERAGE = 1e6


class Outputs(nn.Module):
    """Readout channels out [n, M, n_out], summed over layers, and what they mean.

    The epistemic part of one member may be of its atoms' leverage. The leverage l_i of an
    atom is the square of its grade (race.model.grade), a Mahalanobis distance of its last
    features. That is the variance which a Gaussian posterior of last linear maps gives their
    outputs, up to a factor: it grows with the square of the distance from the training set.
    Then

        epistemic_i = c_F l_i Sigma_i    and    var_epistemic(E) = c_E sum_i l_i var_i,

    Sigma_i and var_i being what the head holds to be noise, c_F and c_E among the constants.
    l_i is one more channel, after the scalars of the head; it comes with the last layer.
    """

    scale: Tensor
    atomic_energies: Tensor

    def __init__(self, config: ModelConfig, constants: ModelConstants, dtype: torch.dtype):
        super().__init__()
        self.n_members, self.n_layers = config.n_members, config.n_layers
        self.head = config.head
        n_scalars, n_tensors = readout_channels(config.head, config.stress_head)
        self.has_leverage = constants.leverage is not None
        self.leverage_at = HEADS[config.head].scalars
        self.n_out = n_scalars + int(self.has_leverage) + 5 * n_tensors
        self.has_energy_var = HEADS[config.head].energy_noise
        self.has_forces_cov = HEADS[config.head].forces_noise
        self.head_epistemic = HEADS[config.head].own_epistemic
        self.own_epistemic = self.head_epistemic or self.has_leverage
        self.leverage_energy = self.leverage_forces = self.largest_leverage = 0.0
        self.leverage = Grade()
        if constants.leverage is not None:
            if config.n_members != 1:
                raise RaceError(
                    "a leverage is of one member",
                    where="model.n_members",
                    expected=1,
                    got=config.n_members,
                )
            self.leverage_energy = constants.leverage.energy
            self.leverage_forces = constants.leverage.forces
            self.largest_leverage = LARGEST_LEVERAGE
            self.leverage = Grade(config.readout_hidden, len(constants.elements))
        self.paper_energy_var = config.energy_aggregation == "paper"
        self.energy_bound = ENERGY_BOUND
        self.sigma0_energy_squared = (constants.sigma0_energy * constants.energy_noise_factor) ** 2
        self.force_covariance = ForceCovariance(
            config.head,
            constants.sigma0 * constants.forces_noise_factor,
            dtype,
            constants.noise_bound,
        )
        self.has_stress_cov = config.stress_head != "none"
        self.stress_covariance = StressCovariance(
            config.head, constants.sigma0, dtype, int(self.has_leverage), constants.noise_bound
        )
        by_species = {"scale": constants.scale, "atomic_energies": constants.base_energies}
        for name, values in by_species.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    def node_energy(self, out: Tensor, species: Tensor) -> Tensor:
        """Node energies [n, M] in float64, eV"""
        return node_energy_aten(out, species, self.scale, self.atomic_energies)

    def with_leverage(self, out: Tensor, z: Tensor, species: Tensor, last: bool) -> Tensor:
        """out [n, M, ...] of a layer with the channel of the leverage, from the hidden channels
        z [n, H] of the last layer's readout before their activation; zero of the other layers.
        """
        channel = torch.zeros_like(out[..., :1])
        if last:
            leverage = self.leverage(z, species).square().clamp(max=self.largest_leverage)
            # `raw_channels` will take the mean over layers
            channel = channel + (self.n_layers * leverage).to(out.dtype).view(-1, 1, 1)
        k = self.leverage_at
        return torch.cat([out[..., :k], channel, out[..., k:]], dim=-1)

    def raw_channels(self, out: Tensor) -> Tensor:
        """Raw head channels: uncertainty channels averaged over layers."""
        return torch.cat([out[..., :1], out[..., 1:] / self.n_layers], dim=-1)

    def node_energy_var(self, raw: Tensor) -> Tensor:
        """[n, M] eV^2 (sums to the frame's variance); zero for the point head. `paper`: ln
        of the intensive variance.
        """
        if not self.has_energy_var:
            return torch.zeros_like(raw[..., 0])
        s = raw[..., 1]
        if self.paper_energy_var:
            return s
        return self.sigma0_energy_squared * torch.exp(soft_bound(s, self.energy_bound))

    def node_energy_epistemic(self, raw: Tensor) -> Tensor:
        """Likewise of the part that is of the leverage, of a model that has one."""
        return self.leverage_energy * raw[..., self.leverage_at] * self.node_energy_var(raw)

    def epistemic_of(self, aleatoric: Tensor, raw: Tensor) -> Tensor:
        """The member's own epistemic covariances [n, M, ...] of those that are noise."""
        if self.has_leverage:
            factor = self.leverage_forces * raw[..., self.leverage_at]
            for _ in range(aleatoric.dim() - factor.dim()):
                factor = factor.unsqueeze(-1)
            return factor * aleatoric
        return self.force_covariance.epistemic(aleatoric, raw)

    def moments(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Node energy variance [n, M], the epistemic part included; force covariances [n, M, 6]
        (eV/A)^2: aleatoric, epistemic (where one member tells it by itself).
        """
        raw = self.raw_channels(out)
        zero = torch.zeros(out.shape[0], out.shape[1], 6, dtype=out.dtype, device=out.device)
        aleatoric, epistemic = zero, zero
        if self.has_forces_cov:
            aleatoric = self.force_covariance.columns(raw)
            if self.own_epistemic:
                epistemic = self.epistemic_of(aleatoric, raw)
        energy_var = self.node_energy_var(raw)
        if self.has_leverage:
            energy_var = energy_var + self.node_energy_epistemic(raw)
        return energy_var, aleatoric, epistemic

    def virial_noise(self, out: Tensor) -> Tensor:
        """Noise of these atoms' virial, mean over members: [6, 6] eV^2 in SIX_ORDER,
        float64; 0 without a stress_head.
        """
        if not self.has_stress_cov:
            return torch.zeros(6, 6, dtype=torch.float64, device=out.device)
        return self.stress_covariance(self.raw_channels(out)).to(torch.float64).mean(1).sum(0)
