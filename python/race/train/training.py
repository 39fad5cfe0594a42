"""A run from its config to its weights: data, model, training, noise, and what the folder
keeps of them.
"""

from pathlib import Path

import torch

from race.config import Config, ModelConstants, RunConfig, read_run_config
from race.errors import RaceError
from race.train.checkpoint import has_checkpoint
from race.train.members import initial_model
from race.train.noise import fit_noise
from race.train.parallel import Ranks
from race.train.prepare import DTYPES, Prepared, prepare
from race.train.run import (
    load_weights,
    provenance,
    refuse_other_model,
    warm_started,
    write_config,
    write_summary,
)
from race.train.trainer import Trainer

# May change when a run is continued: neither weights nor the order of the data depend on it.
CHANGEABLE = {
    "learning_rate",
    "clip_norm",
    "patience",
    "epochs",
    "checkpoint_minutes",
    "device",
    "n_threads",
}


def train(config: Config, out: Path, resume: bool = False, ranks: Ranks | None = None) -> Trainer:
    """Trains in the folder `out` until done.

    Raises:
        RaceError: `out` holds a run already, bad data, a config that does not match the
            run, divergence, another rank's end.
        SystemExit: after SIGTERM or Ctrl-C, with a checkpoint written.
    """
    ranks = ranks or Ranks(config.train.device)
    if config.train.batch_size < ranks.size:
        raise RaceError(
            "fewer than ranks",
            where="train.batch_size",
            expected=f"at least {ranks.size}",
            got=config.train.batch_size,
        )
    out.mkdir(parents=True, exist_ok=True)
    if ranks.first:
        has_checkpoint(out)  # mends, once
    ranks.wait()
    continued = has_checkpoint(out)
    if not resume and (continued or (out / "model.safetensors").exists()):
        raise RaceError(
            "already holds a run",
            where=out,
            remedy="continue it with --resume, or choose another --out",
        )
    if config.train.n_threads:
        torch.set_num_threads(config.train.n_threads)
    constants: ModelConstants | None
    if continued:
        config = old = continue_config(config, read_run_config(out / "config.yaml"))
        constants = old.constants
    else:
        config, constants = warm_started(config)
    prepared = prepare(config, constants)
    resolved, train_options = prepared.config, prepared.config.train
    model = initial_model(
        resolved.model, resolved.constants, train_options.seed, DTYPES[train_options.dtype]
    )
    if train_options.warm_start is not None and not continued:
        load_weights(model, train_options.warm_start / "model.safetensors")
    about = {"training": prepared.summary, "versions": provenance()}
    if ranks.first:
        write_config(out, resolved)
        write_summary(out, about)
        _introduce(prepared, model, out, ranks)
    trainer = Trainer(resolved, model, prepared.train, prepared.validation, out, ranks)
    trainer.fit()
    load_weights(model, out / "model.safetensors")
    about["noise_factors"] = fit_noise(model, trainer.shares_of(prepared.calibration), ranks)
    _, metrics = trainer.validate()
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
        print(
            f"done: {out / 'model.safetensors'}; best epoch per member {trainer.state.best_epoch}; "
            f"{trainer.numbers(metrics)}"
        )
    return trainer


def continue_config(new: Config, old: RunConfig) -> RunConfig:
    """The config of a continued run: as it was, with the changeable training options as given
    now.

    Raises:
        RaceError: another option that the user wrote differs from the run's.
    """
    what = "differs from the run that --resume continues"
    remedy = "restore it, or start a new run with another --out"
    for section in ("data", "train"):
        given, kept = getattr(new, section), getattr(old, section)
        for key in given.model_fields_set - CHANGEABLE:
            if getattr(given, key) != getattr(kept, key):
                raise RaceError(
                    what,
                    where=f"{section}.{key}",
                    expected=getattr(kept, key),
                    got=getattr(given, key),
                    remedy=remedy,
                )
    refuse_other_model(new, old, what, remedy)
    changes = {key: getattr(new.train, key) for key in CHANGEABLE}
    return old.model_copy(
        update={
            "train": old.train.model_copy(update=changes),
            "constants": old.constants.as_trained(),
        }
    )


def _introduce(prepared: Prepared, model: torch.nn.Module, out: Path, ranks: Ranks) -> None:
    config, constants = prepared.config.model, prepared.config.constants
    n_parameters = sum(p.numel() for p in model.parameters()) / config.n_members
    print(
        f"{len(prepared.train)} training and {len(prepared.validation)} validation frames of "
        f"{' '.join(constants.elements)}; "
        f"{constants.avg_num_neighbors:.1f} neighbours within {config.r_max:g} A; "
        f"{config.n_members} member(s) of {n_parameters:,.0f} parameters; sigma0 "
        f"{constants.sigma0:.3g} eV/A; "
        + (f"{ranks.size} ranks; " if ranks.size > 1 else "")
        + f"writing {out}"
    )
    print(prepared.report.text())
