"""`race train config.yaml --out run [--resume]`, alone or as one of torchrun's processes."""

import argparse
from pathlib import Path

import torch

from race.config import Config, read_config
from race.errors import RaceError
from race.train.checkpoint import has_checkpoint
from race.train.members import initial_model
from race.train.noise import fit_noise, untouched
from race.train.parallel import Ranks
from race.train.prepare import DTYPES, Prepared, prepare
from race.train.run import load_weights, provenance, warm_started, write_config, write_summary
from race.train.trainer import Trainer

# What may change when a run is continued: nothing that the weights or the order of the
# data depend on so far.
CHANGEABLE = {
    "learning_rate",
    "clip_norm",
    "patience",
    "epochs",
    "checkpoint_minutes",
    "device",
    "n_threads",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, help="YAML config; every option is documented in race.config"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("run"), help="folder of the run (default: run)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in --out, or start if there is none",
    )


def run(args: argparse.Namespace) -> None:
    config = read_config(args.config)
    with Ranks(config.train.device) as ranks:
        train(config, args.out, args.resume, ranks)


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
    if continued:
        config = continue_config(config, read_config(out / "config.yaml"))
    prepared = prepare(warm_started(config.model_copy(update={"model": untouched(config.model)})))
    config = prepared.config
    model = initial_model(config.model, config.train.seed, DTYPES[config.train.dtype])
    if config.train.warm_start is not None:
        load_weights(model, config.train.warm_start / "model.safetensors")
    about = {"training": prepared.summary, "versions": provenance()}
    if ranks.first:
        write_config(out, config)
        write_summary(out, about)
        _introduce(prepared, model, out, ranks)
    trainer = Trainer(config, model, prepared.train, prepared.validation, out, ranks)
    trainer.fit()
    load_weights(model, out / "model.safetensors")
    about["noise_factors"] = fit_noise(model, trainer.validation_batches(), ranks)
    _, metrics = trainer.validate()
    if ranks.first:
        write_config(out, config.model_copy(update={"model": model.config}))
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


def continue_config(new: Config, old: Config) -> Config:
    """The config of a continued run: as resolved before, with the changeable training
    options as given now.

    Raises:
        RaceError: another option that the user set differs from the run's.
    """
    old = old.model_copy(update={"model": untouched(old.model)})
    for section in ("data", "model", "train"):
        given, kept = getattr(new, section), getattr(old, section)
        for key in given.model_fields_set - CHANGEABLE:
            # An empty list means "fill from the data", which the run has done.
            if getattr(given, key) != getattr(kept, key) and getattr(given, key) != []:
                raise RaceError(
                    "differs from the run that --resume continues",
                    where=f"{section}.{key}",
                    expected=getattr(kept, key),
                    got=getattr(given, key),
                    remedy="restore it, or start a new run with another --out",
                )
    changes = {key: getattr(new.train, key) for key in CHANGEABLE}
    return old.model_copy(update={"train": old.train.model_copy(update=changes)})


def _introduce(prepared: Prepared, model: torch.nn.Module, out: Path, ranks: Ranks) -> None:
    config = prepared.config.model
    n_parameters = sum(p.numel() for p in model.parameters()) / config.n_members
    print(
        f"{len(prepared.train)} training and {len(prepared.validation)} validation frames of "
        f"{' '.join(config.elements)}; "
        f"{config.avg_num_neighbors:.1f} neighbours within {config.r_max:g} A; "
        f"{config.n_members} member(s) of {n_parameters:,.0f} parameters; sigma0 "
        f"{config.sigma0:.3g} eV/A; "
        + (f"{ranks.size} ranks; " if ranks.size > 1 else "")
        + f"writing {out}"
    )
