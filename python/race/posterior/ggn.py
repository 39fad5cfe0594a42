"""Generalised Gauss-Newton curvature of a run's Gaussian likelihood, for Laplace
approximations.

Observations are the energies of frames and the forces on atoms that have a label, each
times the root of its weight, and in units of its noise. `Noise.whiten` makes them
independent and of unit variance, up to one factor for all energies and one for all
forces. With J the Jacobian of the whitened predictions with respect to the weights, the
curvature is J^T J.

    diagonal    (J^T z)^2 has the expectation diag(J^T J) for any z of independent signs:
                one backward pass gives every weight of every member, and the frames of a
                batch do not mix on average. Energies and forces are probed apart.
    last layer  the energy is linear in the readouts' last weights w2, and so are the
                forces: the column of J of one weight is what the model predicts with that
                weight 1 and all others 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from race.config import RunConfig
from race.data import Batch
from race.heads import LOSSES
from race.model.outputs import ModelOutput
from race.model.race import RACE
from race.train.loss import Loss


@dataclass
class Noise:
    """Standard deviations of the observations of one batch, as the loss of the run has them
    (race.train.loss), the labels' own noise included.

    energy [n_frames, M] eV; forces [n_atoms, M, 3, 3] eV/A, lower triangular factor of
    the covariance.
    """

    energy: Tensor
    forces: Tensor

    @classmethod
    def of(cls, config: RunConfig, model: RACE, batch: Batch, out: ModelOutput) -> "Noise":
        """The head's own if the run was trained with its likelihood, else the constants of
        the `mse` loss.
        """
        energy = out.energy.detach()
        if not LOSSES[config.train.loss].energy_noise:
            size = (
                batch.n_atoms_per_frame.unsqueeze(1)
                if config.model.pooling == "sum"
                else torch.ones_like(energy)
            )
            energy_std = config.constants.sigma0_energy * size.to(energy.dtype).sqrt().expand_as(
                energy
            )
        else:
            assert out.energy_var is not None
            energy_std = out.energy_var.detach().sqrt()
        if not LOSSES[config.train.loss].forces_noise:
            identity = torch.eye(3, dtype=out.raw.dtype, device=energy.device)
            factor = (config.constants.sigma0 * identity).expand(
                batch.n_atoms, energy.shape[1], 3, 3
            )
        else:
            factor = torch.linalg.cholesky(model.forces_cov(out.raw.detach()))
        of_energy, of_forces = batch.noise_var("energy"), batch.noise_var("forces")
        if of_energy is not None and of_forces is not None:
            energy_std = (energy_std**2 + of_energy.to(energy).unsqueeze(1)).sqrt()
            eye = torch.eye(3, dtype=factor.dtype, device=factor.device)
            own = of_forces.to(factor).view(-1, 1, 1, 1) * eye
            factor = torch.linalg.cholesky(factor @ factor.mT + own)
        return cls(energy_std, factor)

    def whiten_energy(self, energy: Tensor) -> Tensor:
        """Energies [n_frames, M] or rows of derivatives [n_frames, M, D], in eV, in units of
        the noise.
        """
        return energy / (self.energy if energy.dim() == 2 else self.energy.unsqueeze(-1))

    def whiten_forces(self, forces: Tensor) -> Tensor:
        """Forces [n_atoms, M, 3] or rows of derivatives [n_atoms, M, 3, D], in eV/A: L^-1 F."""
        columns = forces.unsqueeze(-1) if forces.dim() == 3 else forces
        return torch.linalg.solve_triangular(self.forces, columns, upper=False).reshape(
            forces.shape
        )


def weighted(rows: Tensor, batch: Batch, label: str) -> Tensor:
    """Rows [n_frames, ...] or [n_atoms, ...] of "energy" or "forces" -> [n_labelled, ...], those
    that have the label, times the root of its weight.
    """
    root = batch.weights(label).sqrt().to(rows.dtype)
    return rows[batch.labelled(label)] * root.view(-1, *[1] * (rows.dim() - 1))


def squared_vjp(parameters: Sequence[Tensor], output: Tensor, z: Tensor) -> list[Tensor]:
    """(J^T z)^2 of every parameter, in float64; zero where nothing depends on it."""
    grads = torch.autograd.grad(
        (output * z).sum(), parameters, retain_graph=True, allow_unused=True
    )
    return [
        torch.zeros_like(p, dtype=torch.float64) if g is None else g.double() ** 2
        for p, g in zip(parameters, grads, strict=True)
    ]


def loss_curvature(
    config: RunConfig, model: RACE, loss: Loss, batches: Iterable[Batch], generator: torch.Generator
) -> list[Tensor]:
    """Fisher information per weight of the mean loss, float64: its curvature where the model
    is right about its noise.

    The squared gradients for labels that are drawn from the model's own predictions, one
    draw per batch. The gradients of a batch's rows are independent with mean zero, so the
    square of their sum is an estimate of the sum of their squares. The roots of the labels'
    weights make it one of the weighted mean, over the sum of the weights. A term of weight
    lambda counts lambda of it. Unlike J^T J it holds the weights of the uncertainty
    channels.
    """
    parameters = list(model.parameters())
    sums = {
        term: [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        for term in ("energy", "forces")
    }
    weight = dict.fromkeys(sums, 0.0)
    for batch in batches:
        with_forces = "forces" in loss.weights
        out = model(batch, forces=with_forces, create_graph=with_forces)
        noise = Noise.of(config, model, batch, out)
        z = torch.randn(out.energy.shape, generator=generator, device=noise.energy.device)
        errors = {"energy": noise.energy * z}
        labels: dict[str, Any] = {"energy": zero_labels(batch, "energy")}
        if with_forces:
            z = torch.randn(out.forces.shape, generator=generator, device=noise.forces.device)
            errors["forces"] = (noise.forces @ z.to(noise.forces).unsqueeze(-1)).squeeze(-1)
            labels["forces"] = zero_labels(batch, "forces")
        # Predictions with the errors of the draw and the gradients of the model, against
        # labels that are zero.
        predicted = out.tensors()
        drawn = replace(
            out,
            **{
                name: predicted[name] - predicted[name].detach() + error
                for name, error in errors.items()
            },
        )
        for term, rows in loss.rows(drawn, replace(batch, stress=None, **labels)).items():
            if rows.shape[0]:
                weights = batch.weights(term)
                roots = weights.sqrt().to(rows.dtype).unsqueeze(1).expand_as(rows)
                for into, square in zip(
                    sums[term], squared_vjp(parameters, rows, roots), strict=True
                ):
                    into += square
                weight[term] += float(weights.sum())
    total = [torch.zeros_like(square) for square in sums["energy"]]
    for term, squares in sums.items():
        for into, square in zip(total, squares, strict=True):
            into += loss.weights.get(term, 0.0) / (weight[term] or 1.0) * square
    return total


def zero_labels(batch: Batch, label: str) -> Tensor | None:
    """Labels of a batch with 0 in place of each that is there."""
    values: Tensor | None = getattr(batch, label)
    return None if values is None else values - values


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent +-1 in the shape of `like`."""
    return (
        2.0 * torch.randint(2, like.shape, generator=generator, device=like.device).to(like.dtype)
        - 1.0
    )
