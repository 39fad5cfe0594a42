"""A deep ensemble from models trained apart: their checkpoints become the members of one model."""

import logging
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

import torch

from race.data import Dataset
from race.errors import RaceError
from race.posterior.options import EnsembleOptions
from race.posterior.protocol import Fitted, Run, member_of
from race.train.members import stack_members
from race.train.pad import SIZES

logger = logging.getLogger(__name__)


def fit(runs: Sequence[Run], options: EnsembleOptions, folder: Path) -> Fitted:
    """Members of all runs, in order (Lakshminarayanan et al. 2017, arXiv:1612.01474). One
    that is taken alone keeps the size of its run.

    Raises:
        RaceError: runs that differ in more than weights and size (elements, E0, cutoff, ..),
            or not in weights; no such member to take.
    """
    refuse_twice(runs)
    model = stack_members([run.model for run in runs], [str(run.path) for run in runs]).eval()
    for one, other in combinations(runs, 2):
        if shared := shared_starts(one, other):
            seeds = f"train.seed {one.config.train.seed} and {other.config.train.seed}"
            logger.info(
                f"  {one.path} and {other.path} have {shared} initial weights in common ({seeds}): "
                "their members differ less than others"
            )
    if options.take is not None:
        every = [(run.model, member) for run in runs for member in range(run.model.n_members)]
        if options.take >= len(every):
            raise RaceError(
                "no such member",
                where="--take",
                expected=f"0 to {len(every) - 1}",
                got=options.take,
            )
        whole, member = every[options.take]
        model = stack_members([member_of(whole, member)]).eval()
    elif differing := sizes_that_differ(runs):
        size = ", ".join(f"{name} {getattr(model.config, name)}" for name in differing)
        logger.info(
            f"  runs of several sizes: every member is padded with zeros to {size}, and costs "
            "as much as one of that size"
        )
    return Fitted(model, validation=common_validation(runs))


def refuse_twice(runs: Sequence[Run]) -> None:
    """Raises RaceError: two runs have a member in common, which would count as a second opinion."""
    for one, other in combinations(runs, 2):
        own, others = (dict(run.model.named_parameters()) for run in (one, other))
        if own.keys() != others.keys():  # which is said when they are stacked
            continue
        for m, n in product(range(one.model.n_members), range(other.model.n_members)):
            if all(torch.equal(p[m], others[name][n]) for name, p in own.items()):
                raise RaceError(
                    f"member {n} is member {m} of {one.path}",
                    where=other.path,
                    expected="runs that were trained apart: members that agree exactly show no "
                    "uncertainty",
                    remedy="name each run once",
                )


def sizes_that_differ(runs: Sequence[Run]) -> list[str]:
    """The options of size in which runs differ."""
    return [
        name
        for name in SIZES
        if any(
            getattr(run.config.model, name) != getattr(runs[0].config.model, name) for run in runs
        )
    ]


def shared_starts(one: Run, other: Run) -> int:
    """How many members of two runs began from the same weights: member m begins from those
    of train.seed + m.

    What is trained from the same weights stays alike, whatever the order of the data: on
    3BPA the deviations of forces from the mean of all members correlate by 0.44, those of
    any other two members by -0.16. Models whose sizes differ only after their first layer
    begin alike in that one. Runs that began from other runs are not judged.
    """
    if {*sizes_that_differ([one, other])} - {"n_layers", "readout_hidden"} or any(
        run.config.train.warm_start is not None or "posterior" in run.summary
        for run in (one, other)
    ):
        return 0
    seeds = [
        {run.config.train.seed + m for m in range(run.model.n_members)} for run in (one, other)
    ]
    return len(seeds[0] & seeds[1])


def common_validation(runs: Sequence[Run]) -> Dataset | None:
    """The validation set of all the runs, by which the noise of the stack is judged; None
    where they have none in common, or it is gone.

    Frames that one run holds out may be training frames of another.
    """
    if any(run.config.data != runs[0].config.data for run in runs):
        logger.info(
            "  the runs were not trained on one division of one data set: the noise stays as the "
            "members predict it"
        )
        return None
    try:
        return runs[0].prepare().validation
    except RaceError as error:
        logger.info(
            f"  the noise stays as the members predict it, without a validation set: {error}"
        )
        return None
