"""A run's folder: what training writes and everything after it reads.

run/config.yaml               every option, and the constants of the model
run/model.safetensors         the weights to use
run/summary.json              training set with the files' sha256, versions, result
run/log.csv, run/tensorboard  learning curves
run/checkpoint                what --resume continues from (race.train.checkpoint)
run/.lock                     while a process writes the folder (race.files)
"""

import hashlib
import json
import logging
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

import race
from race.config import RunConfig, read_run_config
from race.errors import RaceError
from race.files import write_atomic, write_json
from race.model.race import RACE
from race.train.checkpoint import model_of_weights, read_tensors
from race.train.reading import DTYPES

logger = logging.getLogger(__name__)


def load_run(path: str | Path) -> tuple[RACE, RunConfig, dict[str, Any]]:
    """The trained model (averaged weights, each member's best epoch by validation), its
    resolved config and its summary.

    Raises:
        RaceError: not a run, a run that has not finished an epoch, or weights that do not
            fit the config.
    """
    run = Path(path)
    if not (run / "config.yaml").exists():
        raise RaceError(
            "not a run",
            where=run,
            expected="a folder with config.yaml, as `race train` makes",
            remedy="check the path",
        )
    if not (run / "model.safetensors").exists():
        raise RaceError(
            "no weights yet",
            where=run,
            expected="model.safetensors, written after the first epoch",
            remedy="train with --resume",
        )
    config = read_run_config(run / "config.yaml")
    model = RACE(config.model, config.constants, DTYPES[config.train.dtype])
    load_weights(model, run / "model.safetensors")
    summary = read_summary(run)
    if "training" in summary and not summary.keys() & {"best_epoch", "posterior"}:
        logger.warning(
            f"{run} has not finished: its weights will change, and its uncertainties are not yet "
            "fitted to errors"
        )
    return model.eval(), config, summary


def read_summary(run: Path) -> dict[str, Any]:
    """run/summary.json.

    Raises:
        RaceError: there is none, or it is damaged.
    """
    path = run / "summary.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise RaceError(f"cannot be read ({error})", where=path) from None


def identity(run: Path) -> str:
    """What predictions depend on, and a move of the folder does not change: the SHA-256 of the
    weights and the constants.
    """
    constants = yaml.safe_load((run / "config.yaml").read_text()).get("constants")
    digest = hashlib.sha256((run / "model.safetensors").read_bytes())
    digest.update(json.dumps(constants, sort_keys=True).encode())
    return digest.hexdigest()


def trained_on(config: RunConfig, summary: Mapping[str, Any]) -> set[str]:
    """sha256 of the files of the training set; of a stack of runs, of all their training sets."""
    files = summary.get("training", {}).get("files", {})
    own = {files[str(path)] for path in config.data.train if str(path) in files}
    return own | set(summary.get("posterior", {}).get("trained_on", []))


def load_weights(model: RACE, path: Path) -> None:
    """Fills the parameters of `model`, and its leverage; names, shapes and options checked."""
    tensors, parameters = read_tensors(path), model.kept()
    options = model.config.model_dump(mode="json")
    for name, trained in model_of_weights(path).items():
        if options.get(name, trained) != trained:
            raise RaceError(
                "is not what the weights were trained with",
                where=f"{path.parent}, model.{name}",
                expected=trained,
                got=options[name],
                remedy="restore config.yaml: a change of the model is another training",
            )
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())[0]
        raise RaceError(
            f"weights do not fit the config: {odd}",
            where=path,
            expected=f"{len(parameters)} tensors",
            got=len(tensors),
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if tensors[name].shape != parameter.shape:
                expected, got = tuple(parameter.shape), tuple(tensors[name].shape)
                raise RaceError(
                    "weights do not fit the config",
                    where=f"{path}, {name}",
                    expected=expected,
                    got=got,
                )
            parameter.copy_(tensors[name])


def write_config(run: Path, config: RunConfig) -> None:
    """Writes config.yaml of a run."""
    write_atomic(
        run / "config.yaml",
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode(),
    )


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json of a run."""
    write_json(run / "summary.json", summary)


def provenance() -> dict[str, str | None]:
    """Versions of what trained the model; git: the commit of the package's own repository, not of
    another one that an environment with the package lies in.
    """
    path = Path(race.__file__)

    def git(*words: str) -> str | None:
        if shutil.which("git") is None:
            return None
        done = subprocess.run(["git", *words], cwd=path.parent, capture_output=True, text=True)
        return done.stdout.strip() or None

    commit = git("ls-files", path.name) and git("rev-parse", "HEAD")
    return {"race": race.__version__, "torch": torch.__version__, "git": commit}
