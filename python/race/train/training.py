"""A run from its config to its weights: data, model, training, noise, and what the folder
keeps of them.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from race.config import Config, ModelConstants, RunConfig, read_run_config
from race.data import Dataset
from race.errors import RaceError
from race.files import FIT, Lock, make_folder
from race.model.race import RACE
from race.train.checkpoint import has_checkpoint, mend_checkpoint
from race.train.files import same_data, sha256
from race.train.log import headline
from race.train.members import initial_model
from race.train.noise import fit_noise
from race.train.parallel import Ranks
from race.train.prepare import Prepared, prepare
from race.train.reading import DTYPES
from race.train.run import (
    load_weights,
    provenance,
    read_summary,
    write_config,
    write_summary,
)
from race.train.trainer import Trainer
from race.train.warm_start import (
    adapted,
    earlier_validation,
    load_grown,
    refuse_other_model,
    warm_started,
)
from race.unused import unused

logger = logging.getLogger(__name__)

# May change when a run is continued: neither weights nor the order of the data depend on it.
CHANGEABLE = {
    "learning_rate",
    "clip_norm",
    "patience",
    "epochs",
    "minutes",
    "checkpoint_minutes",
    "device",
    "n_threads",
}


def train(config: Config, out: Path, resume: bool = False, ranks: Ranks | None = None) -> Trainer:
    """Trains in the folder `out` until done.

    Raises:
        RaceError: `out` cannot be written, is written by another process or holds a run
            already; bad data; a config that does not match the run; divergence; another
            rank's end.
        SystemExit: after SIGTERM or Ctrl-C, with a checkpoint written.
    """
    ranks = ranks or Ranks(config.train.device)
    if config.train.batch_size < ranks.size:
        raise RaceError(
            "the batch is smaller than the number of processes",
            where="train.batch_size",
            expected=f"at least {ranks.size}",
            got=config.train.batch_size,
        )
    if not ranks.first:
        ranks.wait()  # for the first to enter the folder
        return _train(config, out, resume, ranks)
    fresh = not out.exists()
    make_folder(out)
    try:
        with Lock(out):
            mend_checkpoint(out)
            ranks.wait()
            return _train(config, out, resume, ranks)
    except (RaceError, KeyboardInterrupt):
        if fresh and not any(out.iterdir()):
            out.rmdir()
        raise


def refuse_fit(out: Path) -> None:
    """Raises RaceError: the folder is one of `race fit`, which has no training to continue."""
    name = None
    if (out / FIT).exists():
        name = "one under way"
    elif (out / "summary.json").exists():
        name = read_summary(out).get("posterior", {}).get("name")
    if name is not None:
        raise RaceError(
            "cannot be continued by `race train`",
            where=out,
            expected="a run of `race train`",
            got=f"a fit of `race fit`, {name}",
            remedy="go on from the weights of a run with train.warm_start and another --out",
        )


def _train(config: Config, out: Path, resume: bool, ranks: Ranks) -> Trainer:
    refuse_fit(out)
    continued = has_checkpoint(out)
    if not resume and (continued or (out / "model.safetensors").exists()):
        raise RaceError(
            "already holds a run",
            where=out,
            remedy="continue it with --resume, or choose another --out",
        )
    if not continued and (out / "summary.json").exists() and "best_epoch" in read_summary(out):
        raise RaceError(
            "is a finished run without its checkpoint: --resume would begin it anew",
            where=out,
            remedy="go on from its weights with train.warm_start and another --out",
        )
    if config.train.n_threads:
        torch.set_num_threads(config.train.n_threads)
    if ranks.first:
        for line in unused(config):
            logger.warning(line)
    about: dict[str, Any] = {}
    constants: ModelConstants | None = None
    source: RACE | None = None
    if continued:
        before = read_summary(out)
        config = old = continue_config(config, read_run_config(out / "config.yaml"), before, out)
        constants = old.constants
        about = {key: before[key] for key in ("warm_start",) if key in before}
    else:
        config, source = warm_started(config)
    prepared = prepare(config, constants or (source and partial(adapted, source.constants)))
    resolved, options = prepared.config, prepared.config.train
    model = initial_model(resolved.model, resolved.constants, options.seed, DTYPES[options.dtype])
    if source is not None and options.warm_start is not None:
        load_grown(model, source)
        about = {"warm_start": sha256(options.warm_start / "model.safetensors")}
        if options.freeze == "trunk" and len(resolved.constants.elements) > len(
            source.constants.elements
        ):
            raise RaceError(
                "the rows of new elements would never be trained",
                where="train.freeze",
                expected="none, or data without new elements",
                got=options.freeze,
            )
    about |= {"training": prepared.summary, "versions": provenance()}
    if ranks.first:
        write_config(out, resolved)
        write_summary(out, about)
        _introduce(prepared, model, out, ranks)
    trainer = Trainer(resolved, model, prepared.train, prepared.validation, out, ranks)
    trainer.fit()
    load_weights(model, out / "model.safetensors")
    about["noise_factors"] = fit_noise(model, trainer.shares_of(prepared.calibration), ranks)
    metrics = final_metrics(trainer)
    if earlier := earlier_validation(resolved):
        after = final_metrics(trainer, earlier[0])
        about["earlier_validation"] = {"before": earlier[1], "after": after}
        if ranks.first:
            pooling = resolved.model.pooling
            logger.info(
                f"validation set of {options.warm_start}: before {headline(earlier[1], pooling)}; "
                f"after {headline(after, pooling)}"
            )
    if ranks.first:
        write_config(out, resolved.model_copy(update={"constants": model.constants}))
        write_summary(
            out,
            about
            | {
                "validation": metrics,
                "best_epoch": trainer.state.best_epoch,
                "seconds": trainer.state.seconds,
            },
        )
    return trainer


def final_metrics(trainer: Trainer, dataset: Dataset | None = None) -> dict[str, float]:
    """Metrics of the trained model, of its validation set or another.

    The loss is left out where there are several members: it is that of each by itself, and
    the factors on noise and spread are those of all together.
    """
    _, metrics = trainer.validate(dataset)
    if trainer.config.model.n_members == 1:
        return metrics
    return {k: x for k, x in metrics.items() if not k.startswith("validation/loss")}


def continue_config(
    new: Config, old: RunConfig, summary: Mapping[str, Any], run: Path
) -> RunConfig:
    """The config of a continued run: as it was, with the changeable training options as given
    now, and the data where it is now.

    Raises:
        RaceError: another option that the user wrote differs from the run's, or the data does.
    """
    what = "differs from the run that --resume continues"
    remedy = "restore it, or start a new run from this one with train.warm_start"
    for section, by_content in (("data", {"train", "validation"}), ("train", {"warm_start"})):
        given, kept = getattr(new, section), getattr(old, section)
        for key in given.model_fields_set - CHANGEABLE - by_content:
            pair = getattr(given, key), getattr(kept, key)
            if pair[0] != pair[1] and not all(isinstance(value, Path) for value in pair):
                raise RaceError(
                    what, where=f"{section}.{key}", expected=pair[1], got=pair[0], remedy=remedy
                )
    refuse_other_model(new, old, what, remedy)
    source, weights = new.train.warm_start, summary.get("warm_start")
    if source is not None and weights and (source / "model.safetensors").is_file():
        if sha256(source / "model.safetensors") != weights:
            raise RaceError(
                "has other weights than the run started from",
                where=f"train.warm_start {source}",
                remedy=remedy,
            )
    files = summary.get("training", {}).get("files", {})
    changes = {key: getattr(new.train, key) for key in CHANGEABLE}
    return old.model_copy(
        update={
            "data": same_data(new.data, old, files, run),
            "train": old.train.model_copy(update=changes),
            "constants": old.constants.as_trained(),
        }
    )


def _introduce(prepared: Prepared, model: torch.nn.Module, out: Path, ranks: Ranks) -> None:
    config, constants = prepared.config.model, prepared.config.constants
    n_parameters = sum(p.numel() for p in model.parameters()) / config.n_members
    logger.info(
        f"{len(prepared.train)} training and {len(prepared.validation)} validation frames of "
        f"{' '.join(constants.elements)}; "
        f"{constants.avg_num_neighbors:.1f} neighbours within {config.r_max:g} A; "
        f"{config.n_members} member(s) of {n_parameters:,.0f} parameters; sigma0 "
        f"{constants.sigma0:.3g} eV/A; "
        + (f"{ranks.size} ranks; " if ranks.size > 1 else "")
        + f"writing {out}"
    )
    logger.info(prepared.report.text())
