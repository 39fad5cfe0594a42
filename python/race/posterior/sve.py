"""Singular value ensembles (Turkoglu et al. 2026, arXiv:2601.22068): members that share the
singular vectors of every matrix and differ in the singular values.

Every matrix of weights is W_m = U diag(s_m) V^T. U and V are those of the run and stay;
s_m is trained, from the run's values times 1 + factor * noise, by the run's loss for each
member alone. A weight that multiplies one channel (those of products) is a diagonal matrix:
its entries are trained. Members of one run see the same batches; as in the paper each has
frames of its own, by a bootstrap (race.train.members.bootstrap_draws). The factor makes
their forces spread on a batch as much as they err.

The paper's gain is in stored weights. An artifact holds M whole members.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from race.config import RunConfig
from race.data import Dataset
from race.model.race import RACE
from race.posterior.continued import continue_training
from race.posterior.options import SveOptions
from race.posterior.perturbed import as_wide_as_errors
from race.posterior.protocol import Fitted, Run, normal_draws, replicated, require_one_member
from race.train.trainer import Trainer

START = 0.01  # relative change of singular values, from which the initial one is scaled


class SingularValues(nn.Module):
    """A parameter [M, ..., a, b], or [M, ..., sum of a * b] of several matrices, by its singular
    values [M, ..., sum of min(a, b)].

    Args:
        one: [1, ...], whose singular vectors are kept.
        shapes: of the matrices that lie flat in its last dimension; None: its last two
            dimensions are one.
    """

    def __init__(self, one: Tensor, shapes: Sequence[tuple[int, int]] | None):
        super().__init__()
        self.shapes = shapes
        self.n_matrices = len(shapes) if shapes else 1
        for k, matrix in enumerate(self._matrices(one.detach().double())):
            u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
            self.register_buffer(f"u{k}", u.to(one.dtype))
            self.register_buffer(f"vt{k}", vt.to(one.dtype))

    def _matrices(self, weight: Tensor) -> list[Tensor]:
        if self.shapes is None:
            return [weight]
        parts = weight.split([a * b for a, b in self.shapes], dim=-1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _vectors(self) -> list[tuple[Tensor, Tensor]]:
        """U [1, ..., a, k] and V^T [1, ..., k, b] of each matrix."""
        return [
            (self.get_buffer(f"u{k}"), self.get_buffer(f"vt{k}")) for k in range(self.n_matrices)
        ]

    def forward(self, values: Tensor) -> Tensor:
        """U diag(s) V^T."""
        vectors = self._vectors()
        parts = values.split([u.shape[-1] for u, _ in vectors], dim=-1)
        matrices = [(u * s.unsqueeze(-2)) @ vt for s, (u, vt) in zip(parts, vectors, strict=True)]
        if self.shapes is None:
            return matrices[0]
        return torch.cat([matrix.flatten(-2) for matrix in matrices], dim=-1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The diagonal of U^T W V."""
        pairs = zip(self._matrices(weight), self._vectors(), strict=True)
        return torch.cat(
            [torch.einsum("...ak,...ab,...kb->...k", u, w, vt) for w, (u, vt) in pairs], dim=-1
        )


def by_singular_values(model: RACE, n_members: int) -> RACE:
    """Members that are all the model's one, whose matrices are given by their singular values."""
    members, flat = replicated(model, n_members), model.flat_matrices()
    members.to(model.embedding.device)
    for name, one in model.named_parameters():
        if one.numel() and (name in flat or one.dim() == 3):
            path, _, attribute = name.rpartition(".")
            values = SingularValues(one, flat.get(name))
            module = members.get_submodule(path)
            parametrize.register_parametrization(module, attribute, values, unsafe=True)
    return members


def perturbed(model: RACE, n_members: int, factor: float, seed: int) -> RACE:
    """The same, with values and diagonal weights times 1 + factor * noise, which is centred."""
    members = by_singular_values(model, n_members)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in members.parameters():
            noise = normal_draws([0] * n_members, p.shape[1:], generator)
            p.mul_(1.0 + factor * noise.to(p))
    return members


def fit(runs: Sequence[Run], options: SveOptions, folder: Path) -> Fitted:
    """Trains on `members` sets of singular values.

    Raises:
        RaceError: an ensemble.
    """
    (run,) = runs
    require_one_member(run, "take one: race fit RUN --posterior ensemble --take 0 --out NEW")

    def make(
        config: RunConfig, model: RACE, train: Dataset, validation: Dataset, work: Path
    ) -> Trainer:
        batch = train.batch(train.order(options.seed, 0)[: config.train.batch_size])
        start = as_wide_as_errors(
            lambda factor: perturbed(model, options.members, factor, options.seed), batch, START
        )
        config = config.model_copy(update={"model": start.config})
        return Trainer(config, start.train(), train, validation, work)

    changes = {
        "epochs": options.epochs,
        "learning_rate": options.learning_rate or 0.1 * run.config.train.learning_rate,
        "warmup_epochs": 0,
        "bootstrap": True,
        "seed": options.seed,
    }
    trainer = continue_training(run, folder, make, changes)
    model = trainer.model
    with torch.no_grad():
        for name, p in trainer.parameters.items():
            p.copy_(trainer.best[name])
    for module in list(model.modules()):
        for attribute in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
    about = {"best_epochs": trainer.state.best_epoch, "seconds": trainer.state.seconds}
    return Fitted(model.eval(), about, trainer.validation_set)
