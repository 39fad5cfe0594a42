"""Laplace approximations of a trained run (MacKay 1992; Daxberger et al. 2021, arXiv:2106.14806).

    q(theta) = N( theta*, T H^-1 ),      H = A_E / s_E + A_F / s_F + delta I

A_E and A_F are the generalised Gauss-Newton curvatures of energies and forces
(race.posterior.ggn), of all weights on the diagonal or of the readouts' last weights in
full. The noise factors s_E and s_F are variances, in units of the head's own or the loss's.
They and the prior's precision delta maximise the marginal likelihood of
race.posterior.evidence. The mean square error of held-out frames, in the same units, bounds
the noise from above: of the validation set, without those that chose the epoch where there
are enough others (race.train.prepare). s_E and s_F also scale the aleatoric variances of the new
run, by its sigma0_energy and sigma0, where its head predicts these.

Weights on which no energy or force depends (the readouts of uncertainty channels) have no
curvature, and stay as trained. The mean is the trained weights in any case.

The full posterior of the last layer is exact: predictions are linear in it. The diagonal
one is not, in two ways. It ignores that weights can compensate each other: with more
weights than observations, even its linearised predictions vary more than the noise. And its
samples go through the network as it is. Therefore its temperature T is chosen by
the samples' predictions of the same held-out frames.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from race.config import RunConfig
from race.data import Dataset
from race.heads import GAUSSIAN, LOSSES
from race.model.race import RACE
from race.posterior.evidence import Evidence, Observations
from race.posterior.ggn import Noise, signs, squared_vjp, weighted
from race.posterior.last_layer import force_features, frame_features, weights
from race.posterior.options import LaplaceOptions
from race.posterior.protocol import (
    Fitted,
    Run,
    assigned_members,
    model_of,
    normal_draws,
    require_head,
)
from race.progress import progress

logger = logging.getLogger(__name__)

TEMPERATURES = [4.0**-k for k in range(11)]  # tried: 1 to 1e-6


@dataclass
class Gaussian:
    """N(theta*, T H^-1) but for its hyperparameters: `draw` takes their logarithms and T,
    and gives `members` samples by name.
    """

    evidence: Evidence
    draw: Callable[[Tensor, float], dict[str, Tensor]]


def fit(runs: Sequence[Run], options: LaplaceOptions, folder: Path) -> Fitted:
    """Curvature at the trained weights, its hyperparameters, and `members` samples.

    Raises:
        RaceError: head evidential or eip, whose likelihoods are not Gaussian.
    """
    (run,) = runs
    require_head(run, GAUSSIAN, "laplace")
    prepared, config = run.prepare(), run.config
    model = run.model.to(config.train.device)
    gaussian = (diagonal if options.structure == "diagonal" else last_layer)(
        config, model, prepared.train, options
    )
    held_out = Observations(config, model)
    for batch in prepared.calibration.batches(options.batch_size):
        held_out.add(batch.to(config.train.device))
    logs, best = gaussian.evidence.maximise(held_out.mean_square())
    s_energy, s_forces, delta = torch.exp(logs).tolist()
    scaled = rescaled(model, config, s_energy, s_forces)
    temperature = options.temperature or 1.0
    if options.temperature is None and options.structure == "diagonal":
        scores = []
        for t in progress(TEMPERATURES, "temperature", len(TEMPERATURES)):
            tried = model_of(scaled, gaussian.draw(logs, t))
            scores.append(
                predictive_score(
                    tried, config, prepared.calibration, (s_energy, s_forces), options.batch_size
                )
            )
        temperature = TEMPERATURES[scores.index(max(scores))]
        if temperature == TEMPERATURES[-1]:
            logger.info(
                "the validation set wants no spread from the diagonal at all: try --structure "
                "last-layer, or swag"
            )
    about = {
        "noise_energy": s_energy,
        "noise_forces": s_forces,
        "prior_precision": delta,
        "temperature": temperature,
        "log_marginal_likelihood": best,
    }
    logger.info(
        "ln p(D) "
        f"{gaussian.evidence.log_likelihood(torch.zeros(3, dtype=torch.float64)).item():.1f} -> "
        f"{best:.1f}: noise variances times "
        f"{s_energy:.3g} (energies) and {s_forces:.3g} (forces), prior precision {delta:.3g}, "
        f"temperature {temperature:.2g}"
    )
    fitted, changes = model_of(scaled, gaussian.draw(logs, temperature)), {}
    if not model.has_energy_var and model.config.pooling == "sum":
        fitted = with_noise(fitted, s_energy, s_forces, forces=config.train.forces_weight > 0)
        changes = {"loss": "nll_jef" if fitted.has_forces_cov else "nll_e"}
    return Fitted(fitted, about, prepared.validation, changes)


def diagonal(config: RunConfig, model: RACE, train: Dataset, options: LaplaceOptions) -> Gaussian:
    """The posterior of all weights that an energy or a force depends on."""
    data, parameters = Observations(config, model), dict(model.named_parameters())
    tensors = list(parameters.values())
    curvature = [[torch.zeros_like(p, dtype=torch.float64) for p in tensors] for _ in range(2)]
    generator = torch.Generator(tensors[0].device).manual_seed(options.seed)
    for batch in progress(
        train.batches(options.batch_size), "curvature", train.n_batches(options.batch_size)
    ):
        batch = batch.to(tensors[0].device)
        out, noise = data.add(batch, create_graph=True)
        whitened = [weighted(noise.whiten_energy(out.energy), batch, "energy")] + (
            [weighted(noise.whiten_forces(out.forces), batch, "forces")]
            if out.forces is not None
            else []
        )
        for total, output in zip(curvature, whitened, strict=False):
            for _ in range(options.probes):
                for into, square in zip(
                    total, squared_vjp(tensors, output, signs(output, generator)), strict=True
                ):
                    into += square / options.probes
    energy, forces = (torch.cat([part.flatten() for part in total]).cpu() for total in curvature)
    flat = torch.cat([p.detach().flatten() for p in tensors]).double().cpu()
    sampled = energy + forces > 0
    evidence = Evidence(
        energy[sampled],
        forces[sampled],
        data.residuals,
        data.counts,
        float((flat[sampled] ** 2).sum()),
    )

    def draw(logs: Tensor, temperature: float) -> dict[str, Tensor]:
        std = torch.zeros_like(flat)
        std[sampled] = (temperature / evidence.precision(logs)).sqrt()
        members, generator = (
            assigned_members(options.members, model.n_members),
            torch.Generator().manual_seed(options.seed),
        )
        samples = {}
        for (name, p), part in zip(
            parameters.items(), std.split([p.numel() for p in tensors]), strict=True
        ):
            z = normal_draws(members, p.shape[1:], generator)
            samples[name] = p.detach().cpu().double()[members] + part.view(p.shape)[members] * z
        return samples

    return Gaussian(evidence, draw)


def last_layer(config: RunConfig, model: RACE, train: Dataset, options: LaplaceOptions) -> Gaussian:
    """The posterior of the last weights of the energy readouts, with their full covariance."""
    data, trained = Observations(config, model), weights(model).detach()
    (n_members, n_weights), device = trained.shape, trained.device
    energy, forces = (
        torch.zeros(n_members, n_weights, n_weights, dtype=torch.float64, device=device)
        for _ in range(2)
    )
    for batch in progress(
        train.batches(options.batch_size),
        f"{n_weights} derivatives",
        train.n_batches(options.batch_size),
    ):
        batch = batch.to(device)
        _, noise = data.add(batch)
        rows = weighted(noise.whiten_energy(frame_features(model, batch)).double(), batch, "energy")
        energy += torch.einsum("nmd,nme->mde", rows, rows)
        if data.with_forces:
            by_forces = force_features(model, batch).to(noise.forces)
            rows = weighted(noise.whiten_forces(by_forces).double(), batch, "forces")
            forces += torch.einsum("nmad,nmae->mde", rows, rows)
    square = float((trained.double() ** 2).sum())
    evidence = Evidence(energy.cpu(), forces.cpu(), data.residuals, data.counts, square)

    def draw(logs: Tensor, temperature: float) -> dict[str, Tensor]:
        # H = L L^T, so that L^-T z has the covariance H^-1
        factor = torch.linalg.cholesky(evidence.precision(logs))
        members, generator = (
            assigned_members(options.members, n_members),
            torch.Generator().manual_seed(options.seed),
        )
        z = normal_draws(members, (n_weights, 1), generator)
        shift = (
            torch.linalg.solve_triangular(factor[members].transpose(-1, -2), z, upper=True).squeeze(
                -1
            )
            * temperature**0.5
        )
        samples = {name: p.detach().cpu().double()[members] for name, p in model.named_parameters()}
        for t, part in enumerate(shift.split(model.config.readout_hidden, dim=-1)):
            samples[f"layers.{t}.readout.w2"][..., 0] += part
        return samples

    return Gaussian(evidence, draw)


def predictive_score(
    model: RACE,
    config: RunConfig,
    dataset: Dataset,
    noise_factors: tuple[float, float],
    batch_size: int,
) -> float:
    """Log predictive density of a data set under the samples' mean and variance, each number
    taken alone; larger is better.

    The noise is that of `Noise`, whose constants are multiplied by `noise_factors` where
    they are not the model's own.
    """
    total = 0.0
    device = config.train.device
    with_forces = config.train.forces_weight > 0
    model = model.to(device)
    for batch in dataset.batches(batch_size):
        batch = batch.to(device)
        out = model(batch, forces=with_forces).detach()
        noise = Noise.of(config, model, batch, out)
        observed = [("energy", out.energy, noise.energy**2)]
        if with_forces:
            observed.append(("forces", out.forces, (noise.forces**2).sum(-1)))
        for (label, members, noise_var), factor, own_noise in zip(
            observed, noise_factors, carried(config), strict=False
        ):
            if not (known := batch.labelled(label)).any():
                continue
            members, noise_var = members[known].double(), noise_var[known].double()
            var = members.var(1, correction=0) + noise_var.mean(1) * (1.0 if own_noise else factor)
            square = (members.mean(1) - getattr(batch, label)[known]) ** 2
            rows = (square / var + var.log()).reshape(len(members), -1).sum(1)
            total -= 0.5 * float(batch.weights(label) @ rows)
    return total if total == total else -float("inf")  # samples so wide that they overflow


def carried(config: RunConfig) -> tuple[bool, bool]:
    """Whether the head was trained to predict the noise of energies and of forces, in units
    that can be changed.
    """
    form = LOSSES[config.train.loss]
    extensive = config.model.energy_aggregation == "extensive"
    return form.energy_noise and extensive, form.forces_noise


def rescaled(model: RACE, config: RunConfig, s_energy: float, s_forces: float) -> RACE:
    """The model with its heads' units multiplied by the noise factors, where it carries
    the noise.
    """
    changes, (by_energy, by_forces) = {}, carried(config)
    if by_energy:
        changes["sigma0_energy"] = config.constants.sigma0_energy * s_energy**0.5
    if by_forces:
        changes["sigma0"] = config.constants.sigma0 * s_forces**0.5
    constants = model.constants.model_copy(update=changes)
    twin = RACE(model.config, constants, next(model.parameters()).dtype)
    twin.load_state_dict(model.state_dict())
    return twin


def with_noise(model: RACE, s_energy: float, s_forces: float, forces: bool) -> RACE:
    """A `point` model whose head predicts the noise that was found, the same for every atom.

    Its head becomes `cholesky` (`energy` without forces), which reads scalar features alone
    as `point` does. All channels except the energy are zero: Sigma = sigma0^2 I and
    sigma_E^2 = n_atoms sigma0_energy^2, the constants of the loss `mse` times the factors.
    """
    head, old = "cholesky" if forces else "energy", model.constants
    twin = RACE(
        model.config.model_copy(update={"head": head, "energy_aggregation": "extensive"}),
        old.model_copy(
            update={
                "sigma0": old.sigma0 * s_forces**0.5,
                "sigma0_energy": old.sigma0_energy * s_energy**0.5,
            }
        ),
        next(model.parameters()).dtype,
    )
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.zero_()[..., : own[name].shape[-1]] = own[name]
    return twin.eval()
