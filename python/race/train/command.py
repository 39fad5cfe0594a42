"""`race train config.yaml --out run [--resume]`."""

import argparse
from pathlib import Path

import torch

from race.config import Config, read_config
from race.errors import RaceError
from race.train.checkpoint import has_checkpoint
from race.train.members import initial_model
from race.train.prepare import DTYPES, Prepared, prepare
from race.train.run import load_weights, provenance, write_config, write_summary
from race.train.trainer import Trainer

# What may change when a run is continued: nothing that the weights or the order of the data depend on so far.
CHANGEABLE = {"learning_rate", "clip_norm", "patience", "epochs", "checkpoint_minutes", "device", "n_threads"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML config; every option is documented in race.config")
    parser.add_argument("--out", type=Path, default=Path("run"), help="folder of the run (default: run)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out, or start if there is none")


def run(args: argparse.Namespace) -> None:
    train(read_config(args.config), args.out, args.resume)


def train(config: Config, out: Path, resume: bool = False) -> Trainer:
    """Trains in the folder `out` until done.

    Raises:
        RaceError: `out` holds a run already, bad data, a config that does not match the run, divergence.
        SystemExit: after SIGTERM or Ctrl-C, with a checkpoint written.
    """
    out.mkdir(parents=True, exist_ok=True)
    continued = has_checkpoint(out)
    if not resume and (continued or (out / "model.safetensors").exists()):
        raise RaceError("already holds a run", where=out, remedy="continue it with --resume, or choose another --out")
    if config.train.n_threads:
        torch.set_num_threads(config.train.n_threads)
    device = _device(config.train.device)
    if continued:
        config = continue_config(config, read_config(out / "config.yaml"))
    prepared = prepare(config)
    config = prepared.config
    write_config(out, config)
    about = {"training": prepared.summary, "versions": provenance()}
    write_summary(out, about)

    model = initial_model(config.model, config.train.seed, DTYPES[config.train.dtype]).to(device)
    _introduce(prepared, model, out)
    trainer = Trainer(config, model, prepared.train, prepared.validation, out)
    trainer.fit()
    load_weights(model, out / "model.safetensors")
    _, metrics = trainer.validate()
    write_summary(out, about | {"validation": metrics, "best_epoch": trainer.state.best_epoch, "seconds": trainer.state.seconds})
    print(f"done: {out / 'model.safetensors'}; best epoch per member {trainer.state.best_epoch}; {trainer.numbers(metrics)}")
    return trainer


def continue_config(new: Config, old: Config) -> Config:
    """The config of a continued run: as resolved before, with the changeable training options as given now.

    Raises:
        RaceError: another option that the user set differs from the run's.
    """
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


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RaceError("device is not available", where="train.device", got=name, remedy=str(error).splitlines()[0]) from None
    return device


def _introduce(prepared: Prepared, model: torch.nn.Module, out: Path) -> None:
    config = prepared.config.model
    n_parameters = sum(p.numel() for p in model.parameters()) / config.n_members
    print(
        f"{len(prepared.train)} training and {len(prepared.validation)} validation frames of {' '.join(config.elements)}; "
        f"{config.avg_num_neighbors:.1f} neighbours within {config.r_max:g} A; "
        f"{config.n_members} member(s) of {n_parameters:,.0f} parameters; sigma0 {config.sigma0:.3g} eV/A; writing {out}"
    )
