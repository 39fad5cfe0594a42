"""Losses, one value per member: the members of an ensemble never see each other's gradients.

    L = lambda_E mean_frames NLL_E + lambda_F mean_atoms NLL_F
        + lambda_S mean_frames (MSE_S or NLL_S)
    NLL_E = 1/2 [ dE^2 / sigma_E^2 + ln sigma_E^2 ]
    NLL_F = 1/2 [ e^T Sigma^-1 e + ln det Sigma ]
    NLL_S = 1/2 [ w^T C^-1 w + ln det C ]

Means are weighted (race.data.weights). The heads `evidential` and `eip` have the Student-t
losses of race.model.heads instead of NLL_F. w are the six components of the virial error;
models with a stress_head have NLL_S, others MSE_S.

The weight is on the whole term: on the quadratic part alone it would move the optimum to
lambda * Sigma.

`mse` is the same with constant variances, so both kinds are dimensionless, of like size, and
share their weights. The variances are

    force     sigma0^2 I
    energy    n_atoms sigma0_energy^2 of a frame: errors of independent atoms add in
              quadrature; without n_atoms for mean pooling
    virial    n_atoms (STRESS_LENGTH * sigma)^2 of each component. sigma is the force
              deviation in the frame: sigma0, or if the head predicts it, that (detached,
              aleatoric and epistemic together)

Labels with noise of their own (race.data.label_noise) add its variance to each of these:
Sigma + s^2 I, sigma_E^2 + s_E^2, and in `mse` and the units of beta to the constants.

beta-NLL (Seitzer et al., ICLR 2022, arXiv:2203.09168) multiplies each row by its detached
variance^beta, in the units above. beta = 0 is the likelihood. beta = 1 gives the mean the
gradient of `mse` (exactly, if Sigma is isotropic) while the variance learns. The MSE
warm-up is therefore beta falling from 1: no loss, gradient or optimiser state jumps where
the likelihood takes over.
"""

import math

import torch
from torch import Tensor

from race.config import Config, RunConfig
from race.data import Batch
from race.data.graph import chosen
from race.heads import LOSSES
from race.model.heads import ForceCovariance
from race.model.outputs import ModelOutput
from race.predict.moments import mahalanobis

# Angstrom, over which a force error acts in a virial. 1 Angstrom weighs a stress like ten
# forces: on 140 frames of B2O3 forces then err by 342 meV/A instead of 271, at one stress.
STRESS_LENGTH = 3.5


class Loss:
    """The training loss of a run.

    Args:
        config: resolved config.
        covariance: the model's `ForceCovariance`.
    """

    def __init__(self, config: RunConfig, covariance: ForceCovariance):
        self.form = LOSSES[config.train.loss]
        self.covariance = covariance
        self.sigma0, self.sigma0_energy = config.constants.sigma0, config.constants.sigma0_energy
        self.extensive = config.model.pooling == "sum"
        # The other energy variance has no unit that a factor would scale
        self.extensive_noise = config.model.energy_aggregation == "extensive"
        self.stress_noise = config.model.stress_head != "none"
        weights = {
            "energy": config.train.energy_weight,
            "forces": config.train.forces_weight,
            "stress": config.train.stress_weight,
        }
        self.weights = {term: weight for term, weight in weights.items() if weight > 0}

    def __call__(self, out: ModelOutput, batch: Batch, beta: float = 0.0) -> dict[str, Tensor]:
        """`loss` and its terms without their lambda, each [n_members]."""
        sums = self.sums(out, batch, beta)
        return self.means(sums, {term: float(batch.weights(term).sum()) for term in sums})

    def sums(
        self, out: ModelOutput, batch: Batch, beta: float = 0.0, draws: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The `rows` of a batch added up by the weights of their labels, [n_members].

        draws: int64 [n_frames, n_members], how often a member counts a frame; None: once.
        """
        sums = {}
        for term, value in self.rows(out, batch, beta).items():
            weights = batch.weights(term).to(value.dtype).unsqueeze(1)
            if draws is not None:
                each = draws[batch.frame] if term == "forces" else draws
                weights = weights * chosen(each, batch.labelled_rows(term))
            sums[term] = (weights * value).sum(0)
        return sums

    def means(self, sums: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
        """`loss` and its terms from their `sums`, divided by `weights`: those of the whole
        batch, where these are sums over some of its rows.
        """
        # 0 where no row is labelled
        terms = {term: value / (weights[term] or 1.0) for term, value in sums.items()}
        return {"loss": self.total(terms)} | terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """sum_k lambda_k term_k."""
        return torch.stack([self.weights[term] * value for term, value in terms.items()]).sum(0)

    def rows(self, out: ModelOutput, batch: Batch, beta: float = 0.0) -> dict[str, Tensor]:
        """Terms before averaging, [n_labelled, n_members] each: frames, atoms, frames.
        Frames and atoms without a label (NaN, or None of the whole batch) have no row.
        """
        rows = {}
        force_var = None
        if "energy" in self.weights:
            rows["energy"] = self._energy(out, batch, beta)
        if "forces" in self.weights:
            rows["forces"], force_var = self._forces(out, batch, beta)
        if "stress" in self.weights:
            rows["stress"] = self._stress(out, batch, force_var, beta)
        return rows

    def score(self, terms: dict[str, Tensor], errors: dict[str, Tensor]) -> Tensor:
        """By what an epoch is chosen, the least: the mean logarithm of the RMS errors of a
        validation set, [n_members].

        Not the likelihood: noise that is learned from shrinking training errors becomes wrong
        for other frames while the mean still gets better, and it is scaled after the training
        (race.train.noise). Terms count alike, whatever their weights: to any member the
        error that falls by a tenth is worth as much in each.

        Args:
            terms: `rows`, averaged over the validation set.
            errors: RMS errors [n_members] by term; those that are not in `weights` are left out.
        """
        found = [errors[term] for term in self.weights if term in errors]
        return torch.stack(found).clamp(min=1e-12).log().mean(0)

    def _energy_square(self, out: ModelOutput, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Which frames have an energy, None: all; their square errors [n_labelled, n_members]."""
        if batch.energy is None:  # no frame of this batch has one
            nothing = torch.zeros(0, dtype=torch.long, device=out.energy.device)
            return nothing, out.energy.new_zeros(0, out.energy.shape[1])
        labelled = batch.labelled_rows("energy")
        return labelled, (
            chosen(out.energy, labelled) - chosen(batch.energy, labelled).unsqueeze(1)
        ) ** 2

    def _force_error(self, out: ModelOutput, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Which atoms have a force, None: all; errors of all atoms [n_atoms, n_members, 3], zero
        without a label.
        """
        assert out.forces is not None
        labelled = batch.labelled_rows("forces")
        if batch.forces is None:
            return labelled, torch.zeros_like(out.forces)
        if labelled is None:
            return labelled, out.forces - batch.forces.unsqueeze(1)
        return labelled, out.forces - torch.where(
            batch.labelled("forces").unsqueeze(1), batch.forces, out.forces.detach().mean(1)
        ).unsqueeze(1)

    def _energy(self, out: ModelOutput, batch: Batch, beta: float) -> Tensor:
        labelled, square = self._energy_square(out, batch)
        if batch.energy is None:
            return square
        # An integer times a number is float32
        n_atoms = chosen(batch.n_atoms_per_frame, labelled).to(square.dtype).unsqueeze(1)
        unit = (n_atoms if self.extensive else 1) * self.sigma0_energy**2
        own = own_noise(batch, "energy", labelled, square.dtype)
        unit = unit + own
        if not self.form.energy_noise:
            return 0.5 * square / unit
        assert out.energy_var is not None, "a likelihood of energies needs a head with their noise"
        var = chosen(out.energy_var, labelled) + own
        return (var.detach() / unit) ** beta * 0.5 * (square / var + torch.log(var))

    def _forces(self, out: ModelOutput, batch: Batch, beta: float) -> tuple[Tensor, Tensor | None]:
        """Rows, and the detached scalar variance det(Sigma)^(1/3) [n_atoms, n_members] of the
        total covariance, where the head has one.
        """
        labelled, error = self._force_error(out, batch)
        own = own_noise(batch, "forces", labelled, error.dtype)
        unit = self.sigma0**2 + own
        if not self.form.forces_noise:
            return 0.5 * (chosen(error, labelled) ** 2).sum(-1) / unit, None
        quadratic, logdet = self.covariance.mahalanobis_logdet(out.raw, error)
        # With the aleatoric part alone the stress would swamp the loss as the evidence falls
        var = torch.exp(self.covariance.total_logdet(out.raw, logdet).detach() / 3.0)
        nll = (
            self.covariance.evidence_nll(out.raw, error)
            if self.covariance.own_epistemic
            else 0.5 * (quadratic + logdet)
        )
        if batch.noise is None:
            return chosen((var / unit) ** beta * nll, labelled), var
        # The sum has no closed inverse
        eye = torch.eye(3, dtype=error.dtype, device=error.device)
        total = chosen(self.covariance.matrix(out.raw), labelled) + own[..., None, None] * eye
        quadratic, logdet = mahalanobis(chosen(error, labelled), total)
        rows = (torch.exp(logdet.detach() / 3.0) / unit) ** beta * 0.5 * (quadratic + logdet)
        return rows, var

    def _stress(
        self, out: ModelOutput, batch: Batch, force_var: Tensor | None, beta: float
    ) -> Tensor:
        if batch.stress is None:  # no frame of this batch has one
            return out.energy.new_zeros(0, out.energy.shape[1])
        assert out.stress is not None
        labelled = batch.labelled_rows("stress")
        volume = chosen(batch.volume, labelled).view(-1, 1, 1)
        virial = volume * (
            chosen(out.stress, labelled) - chosen(batch.stress, labelled).unsqueeze(1)
        )
        # An integer times a number is float32
        n_atoms = chosen(batch.n_atoms_per_frame, labelled).unsqueeze(1).to(virial.dtype)
        own = own_noise(batch, "stress", labelled, virial.dtype)
        own = own * volume.squeeze(2).to(own.dtype) ** 2  # of the virial
        if out.virial_cov is not None:
            eye = torch.eye(6, dtype=virial.dtype, device=virial.device)
            total = chosen(out.virial_cov, labelled) + own[..., None, None] * eye
            quadratic, logdet = mahalanobis(virial, total)
            # of isotropic noise of variance c an off-diagonal component has c/2: det C = c^6 / 8
            var = torch.exp((logdet.detach() + math.log(8.0)) / 6.0)
            return (
                (var / (n_atoms * (self.sigma0 * STRESS_LENGTH) ** 2 + own)) ** beta
                * 0.5
                * (quadratic + logdet)
            )
        if force_var is None:
            unit = n_atoms * self.sigma0**2
        else:
            unit = force_var.new_zeros(batch.n_frames, force_var.shape[1]).index_add_(
                0, batch.frame, force_var
            )
            unit = chosen(unit, labelled)
        return 0.5 * (virial * virial).sum(-1) / (unit * STRESS_LENGTH**2 + own)


def own_noise(batch: Batch, label: str, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The variance of the labels' own noise [n, 1], of the given rows, None: all; zero without
    any.
    """
    var = batch.noise_var(label)
    if var is None:
        return torch.zeros(1, 1, dtype=dtype, device=batch.species.device)
    return (var if rows is None else var[rows]).to(dtype).unsqueeze(1)


def warmup_beta(config: Config, epoch: float) -> float:
    """beta at a (fractional) epoch: 1 falling linearly to train.beta over train.warmup_epochs."""
    beta, warmup = config.train.beta, config.train.warmup_epochs
    return beta + (1.0 - beta) * max(0.0, 1.0 - epoch / warmup) if warmup else beta
