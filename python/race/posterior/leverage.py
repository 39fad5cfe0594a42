"""One member that tells an epistemic part of its own by the leverage of its atoms.

The head of one member has learned how large errors are where there was data. Of atoms unlike
these it knows nothing, and its variance may fall as well as rise. The head `evidential` has a
number kappa for it, with epistemic = aleatoric / kappa, but the likelihood does not tell what
kappa is: it detects nothing. Here 1 / kappa is the atom's leverage l,

    epistemic_i = c_F l_i Sigma_i,    var_epistemic(E) = c_E sum_i l_i var_i

(race.model.outputs). l is the square of the grade (race.model.grade). It needs no training: a
pass over a sample of the training set gives the mean and the covariance of the last features, by
element.

c_F and c_E are fitted together with the factors on the noise, to the CRPS of held-out errors
(race.train.noise). The calibration frames are in distribution, so that they tell the slope of
the errors with the leverage within the training set; beyond it the quadratic form is trusted.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from race.config import LeverageFactors
from race.data import Batch
from race.errors import RaceError
from race.heads import GAUSSIAN, HEADS
from race.model import grade
from race.model.layer import Readout
from race.model.race import RACE
from race.posterior.options import LeverageOptions
from race.posterior.protocol import Fitted, Run, require_head, require_one_member

COVARIANCES = [name for name in GAUSSIAN if HEADS[name].forces_noise]


def fit(runs: Sequence[Run], options: LeverageOptions, folder: Path) -> Fitted:
    """Measures the training set's features; the factors are fitted to the model it returns.

    Raises:
        RaceError: an ensemble, a head without a covariance or with an epistemic part already,
            a run without forces, energies whose variance is no sum over atoms.
    """
    (run,) = runs
    require_one_member(run, "take one: race fit RUN --posterior ensemble --take 0 --out NEW")
    require_head(run, COVARIANCES, "leverage")
    config = run.config.model
    if run.config.train.forces_weight == 0 or config.pooling != "sum":
        raise RaceError(
            "a leverage is calibrated by errors of forces",
            where=run.path,
            expected="train.forces_weight above 0 and model.pooling sum",
        )
    if config.energy_aggregation != "extensive":
        raise RaceError(
            "a leverage scales the variances of atoms' energies",
            where=f"{run.path}, model.energy_aggregation",
            expected="extensive",
            got=config.energy_aggregation,
        )
    prepared, old = run.prepare(), run.model
    constants = old.constants.model_copy(update={"leverage": LeverageFactors()})
    model = RACE(config, constants, old.embedding.dtype)
    model.load_state_dict(old.state_dict() | model.leverage.state_dict(prefix="leverage."))
    size = run.config.train.batch_size
    batches = prepared.train.sampled(size, grade.N_ATOMS, grade.N_RARE)
    features, species = last_features(old, batches)
    about = grade.fit(model.leverage, features, species, len(constants.elements))
    return Fitted(model.eval(), {"grade": about}, prepared.validation)


def last_features(
    model: RACE, batches: Iterable[Batch], sample: grade.Sample | None = None
) -> tuple[Tensor, Tensor]:
    """Features [n, W] of one member and species [n], on the CPU, of a sample of the atoms: what
    the artifact's grade is fitted to.
    """
    sample = sample or grade.Sample()
    readout = cast(Readout, model.layers[-1].readout)
    hidden: list[Tensor] = []
    hook = readout.first.register_forward_hook(lambda _, inputs, out: hidden.append(out.cpu()))
    with torch.no_grad():
        for batch in batches:
            keep = sample.wanted(batch.species)
            if not keep.any():
                continue
            model(batch.to(model.embedding.device), forces=False)
            sample.add(hidden.pop()[keep, : readout.widths[0]], batch.species[keep])
    hook.remove()
    return sample.rows()
