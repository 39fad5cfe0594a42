"""The readout of a deployed model: from a layer's hidden channels to energies and the channels
of the heads, and back.

`*_fused` are compiled operators (cpp/src/readout.h has their equations and shapes), `*_aten`
their slow twins in stock torch operations. None records autograd.
"""

import torch
from torch import Tensor

from race.model.fused import HAS_FUSED
from race.model.linear import linear_aten
from race.model.outputs import node_energy_aten


def readout_aten(z: Tensor, tensor: Tensor, weight: Tensor, n_scalars: int) -> Tensor:
    """z [n, T * H] before its activation, tensor [n, 5 * T * R * Q], weight [T, H, R *
    n_scalars] -> out [n, R * T, n_scalars + 5 * Q]. Member r T + t reads trunk t.
    """
    n, T, H, width = z.shape[0], weight.shape[0], weight.shape[1], weight.shape[2]
    R = width // n_scalars
    Q = tensor.shape[1] // (5 * T * R)
    active = torch.nn.functional.silu(z)
    matrices = weight.flatten(1).unsqueeze(1)
    out = linear_aten(active, matrices, None, [1, H, width, 0, 0, 0], T * width)
    out = out.view(n, T, R, n_scalars).transpose(1, 2)
    if Q > 0:
        out = torch.cat([out, tensor.view(n, 5, T, R, Q).permute(0, 3, 2, 4, 1).flatten(3)], dim=3)
    return out.reshape(n, R * T, n_scalars + 5 * Q)


def readout_vjp_aten(bar_energy: Tensor, weight: Tensor, z: Tensor) -> Tensor:
    """The adjoint of z [n, T * H] from that of the members' energies [n, R * T]; weight
    [R, T, H].
    """
    R, T = weight.shape[0], weight.shape[1]
    if R == 1:
        bar = bar_energy.unsqueeze(2) * weight[0]
    else:
        # [T, n, R]
        by_trunk = bar_energy.unflatten(1, [R, T]).permute(2, 0, 1)
        # [n, T, H]
        bar = torch.bmm(by_trunk, weight.transpose(0, 1)).transpose(0, 1)
    return torch.ops.aten.silu_backward(bar.flatten(1), z)


def node_energy_vjp_aten(
    species: Tensor, scale: Tensor, bar_energy: Tensor, like: Tensor
) -> Tensor:
    """The adjoint of the energy channel of every layer's out, [n, M], from that of the
    members' total energies, float64 [M]; in the dtype of `like`.
    """
    return (scale.index_select(0, species).unsqueeze(1) * bar_energy).to(like.dtype)


if HAS_FUSED and hasattr(torch.ops.race, "readout"):

    def readout_fused(z: Tensor, tensor: Tensor, weight: Tensor, n_scalars: int) -> Tensor:
        """As `readout_aten`, by race::readout."""
        return torch.ops.race.readout(z, tensor, weight, n_scalars)

    def readout_vjp_fused(bar_energy: Tensor, weight: Tensor, z: Tensor) -> Tensor:
        """As `readout_vjp_aten`, by race::readout_vjp."""
        return torch.ops.race.readout_vjp(bar_energy, weight, z)

    def node_energy_fused(out: Tensor, species: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """As `node_energy_aten`, by race::node_energy."""
        return torch.ops.race.node_energy(out, species, scale, shift)

    def node_energy_vjp_fused(
        species: Tensor, scale: Tensor, bar_energy: Tensor, like: Tensor
    ) -> Tensor:
        """As `node_energy_vjp_aten`, by race::node_energy_vjp."""
        return torch.ops.race.node_energy_vjp(species, scale, bar_energy, like)

else:
    readout_fused, readout_vjp_fused = readout_aten, readout_vjp_aten
    node_energy_fused, node_energy_vjp_fused = node_energy_aten, node_energy_vjp_aten
