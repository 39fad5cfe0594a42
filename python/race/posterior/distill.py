"""Distillation: one member that predicts what an ensemble does, mean, aleatoric and epistemic
covariance, at the cost of one.

The student is a member with the `evidential` head. Only its two covariances are used:
aleatoric and epistemic = aleatoric / kappa. A teacher without an epistemic part has an
`equivariant` student. The student learns the ensemble's moments instead of labels: mean F
and total covariance Sigma of each force, mean E and variance var of the energy. Its loss is
the Kullback-Leibler divergence of its own Gaussian from the ensemble's,

    KL(N(F, Sigma) || N(F_s, Sigma_s)) = 1/2 [ tr(Sigma_s^-1 Sigma) - 3
        + (F - F_s)^T Sigma_s^-1 (F - F_s) + ln det Sigma_s / det Sigma ],

one-dimensional for the energy. Sigma_s thus comes to hold the student's own deviation from
the mean, too. How much of the total is epistemic, rho = tr Sigma_epistemic / tr Sigma
of each atom, is taught like the probability of one of two outcomes,

    KL(rho || rho_s) = rho ln(rho / rho_s) + (1 - rho) ln((1 - rho) / (1 - rho_s)),
    rho_s = 1 / (1 + kappa),

so that kappa, which labels do not identify, is that of the teacher: the student is as
uncertain as the teacher about each atom. Both parts have the shape of the total.

Members disagree away from the training data. The student therefore sees copies of the
training frames with rattled atoms, too, which need no labels. The copies of a training set
on disk are on disk.

The variance of the energy is the total, and `aleatoric` in name. At the end one factor on
each of the two totals makes them as wide as the student errs on labels (race.train.noise).
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from torch import Tensor

from race.config import RunConfig
from race.data import Batch, Dataset
from race.data.label_noise import frame_noise
from race.data.shards import StoredFrame, stored
from race.data.weights import label_weights
from race.errors import RaceError
from race.heads import HEADS, Capabilities
from race.model.heads import evidential_kappa, evidential_spread
from race.model.outputs import ModelOutput
from race.model.race import RACE
from race.posterior.continued import continue_training
from race.posterior.options import DistillOptions
from race.posterior.protocol import Fitted, Run, member_of
from race.predict.moments import log_determinant
from race.predict.predictor import predict_batch, predict_dataset
from race.progress import progress
from race.train.loss import Loss
from race.train.members import initial_model
from race.train.noise import MIN_ENERGIES, Errors, width_factors
from race.train.trainer import Trainer

logger = logging.getLogger(__name__)

# Floor of the teacher's deviations, in units of sigma0 and sigma0_energy: members that agree
# exactly have none
FLOOR = 0.01


@dataclass(kw_only=True)
class TaughtBatch(Batch):
    """A batch whose labels are an ensemble's means, with its total variances.

    energy_var: float64 [n_frames] eV^2; forces_cov: float64 [n_atoms, 3, 3] (eV/Angstrom)^2;
    epistemic: float64 [n_atoms], its epistemic share rho.
    """

    energy_var: Tensor
    forces_cov: Tensor
    epistemic: Tensor


class Taught(Dataset):
    """Frames with a teacher's moments in place of labels.

    Args:
        frames: labels are not read.
        teacher: an ensemble, asked once.
        floor: least standard deviation of a force component, eV/Angstrom, and of the
            energy per root of atoms, eV; added in quadrature.
    """

    def __init__(
        self,
        frames: Sequence[ase.Atoms],
        teacher: RACE,
        dtype: torch.dtype,
        floor: tuple[float, float],
    ):
        super().__init__(frames, teacher.constants.elements, teacher.config.r_max, dtype)
        self.moments: list[tuple[Tensor, ...]] = []
        device = next(teacher.parameters()).device
        for k in progress(
            range(len(frames)), f"predictions of {teacher.n_members} members", len(frames)
        ):
            prediction = predict_batch(teacher, super().batch([k]).to(device))
            energy, forces = prediction.energy, prediction.forces
            assert forces is not None
            var = energy.total + len(frames[k]) * floor[1] ** 2
            cov = forces.total + floor[0] ** 2 * np.eye(3)
            share = np.trace(forces.epistemic, axis1=1, axis2=2) / np.trace(cov, axis1=1, axis2=2)
            arrays = (energy.mean, var, forces.mean, cov, share)
            self.moments.append(tuple(map(torch.from_numpy, arrays)))

    def batch(self, indices: Iterable[int]) -> TaughtBatch:
        """The structures with what the teacher predicts of them."""
        indices = [int(index) for index in indices]
        plain = super().batch(indices)
        energy, var, forces, cov, share = (
            torch.cat(parts) for parts in zip(*(self.moments[k] for k in indices), strict=True)
        )
        labels = {"energy": energy, "forces": forces.to(self.dtype), "stress": None}
        for name in ("frame_weight", "atom_weight"):  # the teacher's labels are all alike
            labels[name] = torch.ones_like(getattr(plain, name))
        labels["noise"] = None
        return TaughtBatch(
            **{**vars(plain), **labels}, energy_var=var, forces_cov=cov, epistemic=share
        )


class DivergenceLoss(Loss):
    """Kullback-Leibler divergence of the student from the teacher's moments of a
    `TaughtBatch`; beta as in `Loss`.
    """

    def rows(self, out: ModelOutput, batch: Batch, beta: float = 0.0) -> dict[str, Tensor]:
        """The divergence from the teacher, a row for each structure or atom."""
        assert (
            isinstance(batch, TaughtBatch) and batch.energy is not None and batch.forces is not None
        )
        rows = {}
        if "energy" in self.weights:
            assert out.energy_var is not None
            var, taught = out.energy_var, batch.energy_var.unsqueeze(1)
            square = (out.energy - batch.energy.unsqueeze(1)) ** 2
            unit = batch.n_atoms_per_frame.unsqueeze(1) * self.sigma0_energy**2
            rows["energy"] = (
                (var.detach() / unit) ** beta
                * 0.5
                * ((taught + square) / var - 1.0 + torch.log(var / taught))
            )
        if "forces" in self.weights:
            assert out.forces is not None
            # e^T Sigma_s^-1 e for the deviation and the columns of the teacher's Cholesky
            # factor: the latter sum to the trace
            factor = torch.linalg.cholesky(batch.forces_cov).to(batch.forces.dtype)
            deviation = (out.forces - batch.forces.unsqueeze(1)).unsqueeze(2)  # [n, M, 1, 3]
            columns = factor.transpose(1, 2).unsqueeze(1).expand(-1, deviation.shape[1], -1, -1)
            quadratic, logdet = self.covariance.mahalanobis_logdet(
                out.raw.unsqueeze(2), torch.cat([deviation, columns], 2)
            )
            quadratic, logdet = quadratic.sum(2), logdet.squeeze(2)
            two_parts = self.covariance.own_epistemic
            if two_parts:  # those were of Sigma0
                total = evidential_spread(out.raw)
                quadratic, logdet = quadratic / total, logdet + 3.0 * torch.log(total)
            taught = log_determinant(batch.forces_cov).to(factor).unsqueeze(1)
            divergence = 0.5 * (quadratic - 3.0 + logdet - taught)
            var = torch.exp(logdet.detach() / 3.0)
            rows["forces"] = (var / self.sigma0**2) ** beta * divergence
            if two_parts:
                share = batch.epistemic.to(factor).unsqueeze(1)
                rows["forces"] = rows["forces"] + share_divergence(share, out.raw)
        return rows

    def score(self, terms: dict[str, Tensor], errors: dict[str, Tensor]) -> Tensor:
        """The divergence: the student is to have the teacher's noise, too."""
        return self.total(terms)


def share_divergence(taught: Tensor, raw: Tensor) -> Tensor:
    """KL(rho || 1 / (1 + kappa)), nats: rho [n, 1], channels [n, M, n_out] -> [n, M]."""
    kappa = evidential_kappa(raw)
    entropy = torch.special.entr(taught) + torch.special.entr(1.0 - taught)
    return torch.log1p(kappa) - (1.0 - taught) * torch.log(kappa) - entropy


class Distiller(Trainer):
    """Trains a student on what its teacher says."""

    def make_loss(self) -> Loss:
        """The divergence from the teacher."""
        return DivergenceLoss(self.config, self.model.force_covariance)


def fit(runs: Sequence[Run], options: DistillOptions, folder: Path) -> Fitted:
    """Trains the student on the run's training set and its rattled copies; the validation
    set chooses its best epoch.

    Raises:
        RaceError: a run without uncertainty or without forces, a member that it does not
            have, features without l=2.
    """
    (run,) = runs
    old = run.model.config
    if not Capabilities(old.model_dump()).forces:
        raise RaceError(
            "the run predicts no force uncertainty to distil",
            where=run.path,
            expected="several members, or a covariance head",
        )
    if run.config.train.forces_weight == 0 or old.pooling != "sum":
        raise RaceError(
            "distillation needs forces",
            where=run.path,
            expected="train.forces_weight above 0 and model.pooling sum",
        )
    if options.member >= old.n_members:
        raise RaceError(
            "no such member",
            where="--member",
            expected=f"0 .. {old.n_members - 1}",
            got=options.member,
        )
    warm = reads_as_student(old.head)
    if not warm and "member" in options.model_fields_set:
        logger.warning(
            f"--member is not used: no weights of head {old.head} are those of a student"
        )
    student = student_of(run.model, options.member, options.seed)

    def make(
        config: RunConfig, model: RACE, train: Dataset, validation: Dataset, work: Path
    ) -> Distiller:
        teacher = run.model.to(config.train.device)
        constants = run.model.constants
        floor = (FLOOR * constants.sigma0, FLOOR * constants.sigma0_energy)
        copies: Iterable[ase.Atoms] = rattled(
            train.frames, options.copies, options.rattle, options.seed
        )
        if any(isinstance(frame, StoredFrame) for frame in train.frames):
            copies = stored(copies, work / "copies", old.r_max, train.dtype)
        frames = [*train.frames, *copies]
        config = config.model_copy(update={"model": student.config})
        lessons, examination = (
            Taught(part, teacher, train.dtype, floor) for part in (frames, validation.frames)
        )
        return Distiller(config, student.train(), lessons, examination, work)

    changes = {
        "epochs": options.epochs,
        "learning_rate": options.learning_rate
        or (0.2 if warm else 1.0) * run.config.train.learning_rate,
        "stress_weight": 0.0,
        "loss": "nll_jef",
        "seed": options.seed,
        # Where a member meets what the others think of rattled atoms, the divergence of
        # its narrow covariance is in the thousands.
        "warmup_epochs": max(1, options.epochs // 5),
        "beta": 0.0,
    }
    trainer = continue_training(run, folder, make, changes)
    with torch.no_grad():
        for name, p in trainer.parameters.items():
            p.copy_(trainer.best[name])
    about: dict[str, Any] = {
        "best_epoch": trainer.state.best_epoch[0],
        "divergence": trainer.state.best[0],
        "seconds": trainer.state.seconds,
    }
    prepared, model = run.prepare(), trainer.model.eval()
    if model.own_epistemic:
        calibration = prepared.calibration
        about["total_factors"] = fit_total(model, calibration, run.config.train.batch_size)
    loss = "evidential" if model.own_epistemic else "nll_jef"
    return Fitted(model, about, prepared.validation, {"loss": loss})


def fit_total(model: RACE, labelled: Dataset, batch_size: int) -> dict[str, float]:
    """Factors on the total standard deviations, both parts alike, by the errors on labels; in
    place.
    """
    prediction, labels = predict_dataset(model, labelled, batch_size)
    noise = np.array([frame_noise(atoms) for atoms in labelled.frames]) ** 2
    own, factors = {"energy": noise[:, 0], "forces": noise[labels.frame, 1]}, {}
    for name in ("energy", "forces"):
        estimate, label = getattr(prediction, name), getattr(labels, name)
        if label is None:
            continue
        d = label.shape[1] if label.ndim > 1 else 1
        error, total = (label - estimate.mean).reshape(-1, d), estimate.total.reshape(-1, d, d)
        known = np.isfinite(error).all(1)
        if known.sum() >= (MIN_ENERGIES if name == "energy" else 1):
            total, weights = total[known], label_weights(labelled.frames, name)
            errors = Errors(error[known], total, np.zeros_like(total), weights, own[name][known])
            factors[name] = width_factors(*errors).noise
    model.scale_noise(factors.get("energy", 1.0), factors.get("forces", 1.0))
    return factors


def reads_as_student(head: str) -> bool:
    """Whether the channels of a teacher's head are those of the student."""
    return HEADS[head].covariance == "log-Euclidean"


def student_of(teacher: RACE, member: int, seed: int) -> RACE:
    """A model of one member with the `evidential` head; `equivariant` where the teacher has no
    epistemic part.

    It has the member's weights if the teacher's head reads the same features
    (`equivariant`, `evidential`). Other heads leave out the l=2 features that the student
    needs, or mean other things by them: it then starts from random weights. If the member
    has no nu and kappa, they start alike for all atoms. The total covariance starts from
    that of the member.

    Raises:
        RaceError: hidden features without 2e.
    """
    two_parts = teacher.n_members > 1 or teacher.own_epistemic
    changes = {
        "n_members": 1,
        "head": "evidential" if two_parts else "equivariant",
        "stress_head": "none",
        "energy_aggregation": "extensive",
    }
    config = teacher.config.model_copy(update=changes)
    dtype = next(teacher.parameters()).dtype
    if not reads_as_student(teacher.head):
        return initial_model(config, teacher.constants, seed, dtype)
    constants = teacher.constants
    shared = HEADS[teacher.head].scalars
    if two_parts and not teacher.own_epistemic:
        start = float(evidential_spread(torch.zeros(5, dtype=torch.float64)))
        constants = constants.model_copy(update={"sigma0": constants.sigma0 / start**0.5})
    student = RACE(config, constants, dtype)
    own = dict(member_of(teacher, member).named_parameters())
    with torch.no_grad():
        for name, p in student.named_parameters():
            # The noise of the stress comes after the scalars of the head in w_2, and before
            # t in w_t
            if name.endswith("readout.wt"):
                p.copy_(own[name][..., -p.shape[-1] :])
            elif name.endswith("readout.w2"):
                p.zero_()
                p[..., :shared] = own[name][..., :shared]
            else:
                p.copy_(own[name])
    return student


def rattled(
    frames: Sequence[ase.Atoms], copies: int, largest: float, seed: int
) -> Iterator[ase.Atoms]:
    """Copies of every frame with Gaussian displacements, of a standard deviation drawn
    uniformly up to `largest` Angstrom for each.
    """
    rng = np.random.RandomState(seed)
    for _ in range(copies):
        for frame in frames:
            copy = ase.Atoms(frame.symbols, cell=frame.cell, pbc=frame.pbc)
            copy.positions = frame.positions + rng.uniform(0, largest) * rng.standard_normal(
                (len(frame), 3)
            )
            yield copy
