"""Posteriors that go on training: the run's own trainer from the run's weights, in a folder
of its own inside the new run's.

out/fit/   checkpoint, log.csv, tensorboard of the fit; --resume continues from it, and it
is gone when the new run is complete
"""

import copy
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from race.errors import RaceError
from race.files import make_folder
from race.posterior.protocol import Run
from race.train.checkpoint import mend_checkpoint
from race.train.trainer import Trainer

logger = logging.getLogger(__name__)

WORK = "fit"
KEPT = ("log.csv", "tensorboard")  # of the fit, for the new run: its learning curves


T = TypeVar("T", bound=Trainer)


def continue_training(run: Run, folder: Path, make: Callable[..., T], changes: dict[str, Any]) -> T:
    """Trains to the end, or on from the checkpoint that an earlier sitting left in `folder`.

    Args:
        run: what to start from; its model is not changed.
        make: called as a `Trainer` is.
        changes: training options that differ from the run's.

    Raises:
        RaceError: as training does.
        SystemExit: after SIGTERM or Ctrl-C, with a checkpoint written.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RaceError(
            "fits in one process", where="torchrun", remedy="run `race fit` without torchrun"
        )
    prepared = run.prepare()
    # A fit counts epochs, and its seed would draw other frames than the run's
    changes = {"minutes": None, "freeze": "none", "bootstrap": False} | changes
    config = run.config.model_copy(update={"train": run.config.train.model_copy(update=changes)})
    make_folder(folder / WORK)
    mend_checkpoint(folder / WORK)
    trainer = make(
        config, copy.deepcopy(run.model).train(), prepared.train, prepared.validation, folder / WORK
    )
    logger.info(
        f"{len(prepared.train)} training and {len(prepared.validation)} validation frames, "
        f"{config.train.epochs} epochs "
        f"from the weights of {run.path}, {config.model.n_members} member(s); writing {folder}"
    )
    trainer.fit()
    return trainer


def finish(folder: Path) -> None:
    """Keeps the learning curves for the new run and drops the checkpoint."""
    if (folder / WORK).exists():
        for name in KEPT:
            if (folder / WORK / name).exists():
                shutil.rmtree(folder / name, ignore_errors=True)
                os.replace(folder / WORK / name, folder / name)
        shutil.rmtree(folder / WORK)
