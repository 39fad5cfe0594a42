"""Shallow ensembles (Kellner and Ceriotti 2024, Mach. Learn.: Sci. Technol. 5, 035006): M
readouts on one trunk, trained together.

The members differ in the last linear maps of every layer's readout (w_2 and, where the
head has one, the map of l=2 features); all else is shared. In training the shared
parameters are those of one member, expanded to M, so that autograd sums the gradients of
all. The members are not trained each by its own loss, but all by the Gaussian likelihood
of their mean and total variance:

    mean = <E_m>,   var = <(E_m - mean)^2>;      F likewise with 3x3 covariances,
                    <.>: average over members

(the paper's is diagonal in the force components, which does not rotate). A noise that the
heads predict is no part of it, and learns nothing. The likelihood of a sum of both would not
tell noise and spread apart: if the head explained the errors already, the members would have
no reason to differ. After training, the factors on noise and spread are fitted to other
frames; they say how much of the noise stays. Training starts from a run. Its readouts get
random changes, which make the spread of the forces on a batch as large as their errors.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from race.config import RunConfig
from race.data import Batch, Dataset
from race.heads import GAUSSIAN
from race.model.layer import is_last_layer
from race.model.outputs import ModelOutput
from race.model.race import RACE
from race.posterior import last_layer
from race.posterior.continued import continue_training
from race.posterior.options import ShallowOptions
from race.posterior.perturbed import as_wide_as_errors
from race.posterior.protocol import (
    Fitted,
    Run,
    model_of,
    normal_draws,
    replicated,
    require_head,
    require_one_member,
)
from race.predict.moments import mahalanobis, total_variance
from race.train.loss import Loss, own_noise
from race.train.trainer import Trainer

# Added in quadrature, in units of sigma0 and sigma0_energy: forces that vanish by
# symmetry have no spread
FLOOR = 0.01


class Expanded(nn.Module):
    """A parameter of one member [1, ...] as that of M, [M, ...]; a view."""

    def __init__(self, n_members: int):
        super().__init__()
        self.n_members = n_members

    def forward(self, one: Tensor) -> Tensor:
        """One tensor [1, ...] as that of all members."""
        return one.expand(self.n_members, *one.shape[1:])

    def right_inverse(self, all_members: Tensor) -> Tensor:
        """The tensor that all members share."""
        return all_members[:1].clone()


def share_trunk(model: RACE) -> RACE:
    """Replaces all parameters but the members' own by those of the first member,
    expanded. In place.
    """
    for name, _ in list(model.named_parameters()):
        if not is_last_layer(name):
            path, _, attribute = name.rpartition(".")
            parametrize.register_parametrization(
                model.get_submodule(path), attribute, Expanded(model.n_members), unsafe=True
            )
    return model


class JointLoss(Loss):
    """The likelihood of all members together: one column where `Loss` has one per member, and a
    row for each label.
    """

    def rows(self, out: ModelOutput, batch: Batch, beta: float = 0.0) -> dict[str, Tensor]:
        """The joint likelihood, a row for each structure or atom."""
        rows, force_var = {}, None
        if "energy" in self.weights:
            rows["energy"] = self._joint_energy(out, batch)
        if "forces" in self.weights:
            rows["forces"], force_var = self._joint_forces(out, batch)
        if "stress" in self.weights:
            assert out.stress is not None
            mean = replace(out, stress=out.stress.mean(1, keepdim=True), virial_cov=None)
            rows["stress"] = self._stress(mean, batch, force_var, 0.0)
        return rows

    def score(self, terms: dict[str, Tensor], errors: dict[str, Tensor]) -> Tensor:
        """The joint likelihood, which is of the members' spread."""
        return self.total(terms)

    def _joint_energy(self, out: ModelOutput, batch: Batch) -> Tensor:
        if batch.energy is None:
            return out.energy.new_zeros(0, 1)
        known = batch.labelled("energy")
        size = batch.n_atoms_per_frame if self.extensive else torch.ones_like(batch.energy)
        noise = size * (FLOOR * self.sigma0_energy) ** 2
        moments = total_variance(out.energy[known], noise[known])
        square = (moments.mean - batch.energy[known]) ** 2
        total = moments.total + own_noise(batch, "energy", known, square.dtype).squeeze(1)
        return (0.5 * (square / total + torch.log(total))).unsqueeze(1)

    def _joint_forces(self, out: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rows [n_labelled, 1], and the detached det(Sigma)^(1/3) [n_atoms, 1]."""
        assert out.forces is not None
        # Two members' covariance has rank one: beside a spread of 1000 floors its Cholesky factor
        # does not exist in float32
        forces, known = out.forces.double(), batch.labelled("forces")
        floor = (FLOOR * self.sigma0) ** 2 * torch.eye(3, dtype=forces.dtype, device=forces.device)
        moments = total_variance(forces, floor)
        mean = moments.mean
        reference = mean.detach() if batch.forces is None else batch.forces
        # NaN in a branch that is not taken would be NaN in the gradient
        error = mean - torch.where(known.unsqueeze(1), reference, mean.detach())
        quadratic, logdet = mahalanobis(error, moments.total)
        var = torch.exp(logdet.detach() / 3.0).unsqueeze(1)
        if batch.noise is not None:
            eye = torch.eye(3, dtype=error.dtype, device=error.device)
            own = own_noise(batch, "forces", known, error.dtype).unsqueeze(2) * eye
            quadratic, logdet = mahalanobis(error[known], moments.total[known] + own)
            return 0.5 * (quadratic + logdet).unsqueeze(1), var
        return 0.5 * (quadratic + logdet)[known].unsqueeze(1), var


class ShallowTrainer(Trainer):
    """Trains a model whose trunk is shared: one loss, one gradient norm, one best epoch for
    all members.
    """

    @property
    def n_scores(self) -> int:
        """One: members are trained together."""
        return 1

    def make_loss(self) -> Loss:
        """The joint likelihood."""
        return JointLoss(self.config, self.model.force_covariance)

    def clip(self) -> Tensor:
        """Caps the norm of the gradient of all members together; returns it, [1]."""
        return nn.utils.clip_grad_norm_(self.parameters.values(), self.options.clip_norm).reshape(1)


def fit(runs: Sequence[Run], options: ShallowOptions, folder: Path) -> Fitted:
    """Trains on with `members` readouts.

    Raises:
        RaceError: an ensemble, or the evidential head, whose variances are no sum of
            members' spread and noise.
    """
    (run,) = runs
    require_one_member(run, "take one: race fit RUN --posterior ensemble --take 0 --out NEW")
    require_head(run, GAUSSIAN, "shallow")

    def make(
        config: RunConfig, model: RACE, train: Dataset, validation: Dataset, work: Path
    ) -> ShallowTrainer:
        start = perturbed(
            model,
            train.batch(train.order(options.seed, 0)[: config.train.batch_size]),
            options.members,
            options.seed,
        )
        config = config.model_copy(update={"model": start.config})
        return ShallowTrainer(config, share_trunk(start.train()), train, validation, work)

    changes = {
        "epochs": options.epochs,
        "learning_rate": options.learning_rate or 0.1 * run.config.train.learning_rate,
        "warmup_epochs": 0,
        "beta": 0.0,
        "seed": options.seed,
    }
    trainer = continue_training(run, folder, make, changes)
    best = {
        name.replace("parametrizations.", "").removesuffix(".original"): p
        for name, p in trainer.best.items()
    }
    members = {name: p.expand(options.members, *p.shape[1:]) for name, p in best.items()}
    about = {"best_epoch": trainer.state.best_epoch[0], "seconds": trainer.state.seconds}
    return Fitted(model_of(run.model, members), about, trainer.validation_set)


def perturbed(model: RACE, batch: Batch, n_members: int, seed: int) -> RACE:
    """`n_members` copies whose energy readouts differ by centred noise: on a batch their
    forces (else energies) spread as they err.
    """
    w = last_layer.weights(model).detach().double().cpu()
    noise = (
        normal_draws([0] * n_members, (w.shape[1],), torch.Generator().manual_seed(seed)) * w.std()
    )

    def moved(factor: float) -> RACE:
        out = replicated(model, n_members).to(model.embedding.device)
        last_layer.set_weights(out, (w + factor * noise).to(model.embedding.dtype))
        return out

    return as_wide_as_errors(moved, batch)
