"""From finished runs to a new one whose members are samples of a posterior: what `race fit`
calls.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from race.config import RunConfig
from race.data import Dataset
from race.errors import RaceError
from race.files import FIT, LOCK, Lock, make_folder, write_json
from race.model.race import RACE
from race.posterior.continued import finish
from race.posterior.options import FitOptions
from race.posterior.protocol import Run
from race.posterior.registry import POSTERIORS
from race.progress import progress
from race.train.checkpoint import write_tensors
from race.train.log import headline
from race.train.metrics import Metrics, total_forces_cov
from race.train.noise import fit_noise
from race.train.parallel import Ranks
from race.train.run import identity, provenance, trained_on, write_config, write_summary

logger = logging.getLogger(__name__)


def fit(
    name: str,
    paths: Sequence[str | Path],
    out: Path,
    options: Mapping[str, Any],
    resume: bool = False,
) -> None:
    """Fits posterior `name` to finished runs and writes the new run `out`, whose config
    appears last.

    Args:
        paths: folders of runs; one, unless the posterior takes several.
        options: by field name; values may be strings.
        resume: `out` may hold an interrupted fit of the same.

    Raises:
        RaceError: unknown or bad options, runs that the posterior cannot be fitted to,
            `out` holds something else.
        SystemExit: after SIGTERM or Ctrl-C; 130 where the fit keeps no checkpoint.
    """
    posterior = POSTERIORS[name]
    chosen = parse_options(name, posterior.options, options)
    for key, reason in chosen.silenced().items():
        if reason and key in chosen.model_fields_set:
            logger.warning(f"{_flag(key)} is not used: {reason}")
    if len(paths) > 1 and not posterior.several_runs:
        raise RaceError(
            f"posterior {name} is fitted to one run",
            got=f"{len(paths)} runs",
            remedy="stack runs with --posterior ensemble",
        )
    runs = [Run.load(path).as_trained() for path in paths]
    content = {
        "posterior": name,
        "runs": [str(path.resolve()) for path in map(Path, paths)],
        "weights": [identity(path) for path in map(Path, paths)],
        "options": chosen.model_dump(mode="json"),
    }
    if (out / "config.yaml").exists():
        raise RaceError("already holds a run", where=out, remedy="choose another --out")
    make_folder(out)
    with Lock(out):
        _fit(name, runs, out, chosen, content, resume)


def _fit(
    name: str,
    runs: Sequence[Run],
    out: Path,
    chosen: FitOptions,
    content: dict[str, Any],
    resume: bool,
) -> None:
    posterior = POSTERIORS[name]
    open_folder(out, content, resume)
    if runs[0].config.train.n_threads:
        torch.set_num_threads(runs[0].config.train.n_threads)
    start = time.monotonic()
    try:
        fitted = posterior.fit()(runs, chosen, out)
    except (RaceError, KeyboardInterrupt) as error:
        if {path.name for path in out.iterdir()} <= {FIT, LOCK}:
            # Nothing to continue from: leave no folder behind
            shutil.rmtree(out)
        if isinstance(error, RaceError):
            raise
        logger.info("interrupted: nothing written")
        raise SystemExit(130) from None
    # Sum over all sittings if a fit was resumed
    seconds = fitted.about.pop("seconds", time.monotonic() - start)

    if fitted.validation:
        device = next(fitted.model.parameters()).device
        # As in training: not the frames that chose an epoch, where there are enough of them
        calibration = runs[0].prepare().calibration
        batches = calibration.batches(runs[0].config.train.batch_size)
        fitted.about["noise_factors"] = fit_noise(
            fitted.model, (batch.to(device) for batch in batches)
        )
    validation = (
        compare_validation(runs[0], fitted.model, fitted.validation) if fitted.validation else {}
    )
    model = fitted.model.cpu()
    summary = {
        "training": runs[0].summary.get("training", {}),
        "versions": provenance(),
        "seconds": sum(run.summary.get("seconds", 0.0) for run in runs) + seconds,
        "posterior": {
            "name": name,
            "options": content["options"],
            "runs": content["runs"],
            "weights": content["weights"],
            "fit_seconds": seconds,
            "trained_on": sorted(set().union(*(trained_on(r.config, r.summary) for r in runs))),
            **fitted.about,
        },
    }
    if validation:
        summary["validation"] = validation
    config = runs[0].config
    train = config.train.model_copy(update=fitted.train)
    write_summary(out, summary)
    write_tensors(out / "model.safetensors", model.kept(), model.config)
    # Last: without it the folder is no run.
    write_config(
        out,
        RunConfig.model_validate(
            config.model_copy(
                update={"model": model.config, "train": train, "constants": model.constants}
            ).model_dump()
        ),
    )
    finish(out)
    (out / FIT).unlink()
    logger.info(
        f"done: {out / 'model.safetensors'}; {name}, {model.n_members} member(s); {seconds:.1f} s"
    )


def compare_validation(run: Run, fitted: RACE, validation: Dataset) -> dict[str, float]:
    """Validation metrics of the samples, printed beside those of the run: a posterior that
    is too wide shows in its mean.
    """
    with_forces = run.config.train.forces_weight > 0
    row: dict[str, float] = {}
    for label, model in (("before", run.model), ("after", fitted)):
        metrics = Metrics(model.config, model.constants)
        device = next(model.parameters()).device
        batches = validation.batches(run.config.train.batch_size)
        for batch in progress(
            batches,
            f"validation {label} the fit",
            validation.n_batches(run.config.train.batch_size),
        ):
            batch = batch.to(device)
            out = model(batch, forces=with_forces).detach()
            with torch.no_grad():
                metrics.update(
                    batch, out, total_forces_cov(model, out.raw) if with_forces else None
                )
        row = {
            f"validation/{name}": float(values[-1])
            for name, values in metrics.result(Ranks()).items()
        }
        logger.info(f"  {headline(row, run.config.model.pooling)}")
    return row


def open_folder(out: Path, content: dict[str, Any], resume: bool) -> None:
    """Makes the folder of a new run, or enters that of an interrupted fit of the same."""
    if (out / FIT).exists():
        if not resume:
            raise RaceError(
                "holds an interrupted fit",
                where=out,
                remedy="continue it with --resume, or choose another --out",
            )
        before = json.loads((out / FIT).read_text())
        for key, value in content.items():
            if before.get(key, value) != value:
                raise RaceError(
                    "differs from the fit that --resume continues",
                    where=key,
                    expected=before.get(key),
                    got=value,
                )
    write_json(out / FIT, content)


def parse_options(name: str, kind: type[FitOptions], given: Mapping[str, Any]) -> FitOptions:
    """The options of a posterior.

    Raises:
        RaceError: with one line for every option that the posterior does not have or that is
            out of range.
    """
    known = " or ".join(map(_flag, kind.model_fields)) or "no options"
    problems = [
        RaceError(f"posterior {name} has no such option", where=_flag(key), expected=known)
        for key in given
        if key not in kind.model_fields
    ]
    try:
        options = kind.model_validate({k: v for k, v in given.items() if k in kind.model_fields})
    except ValidationError as error:
        problems += [
            RaceError(
                detail["msg"], where=_flag(detail["loc"][0]), got=repr(detail.get("input"))[:80]
            )
            if detail["loc"]
            else RaceError(detail["msg"].removeprefix("Value error, "), where=f"posterior {name}")
            for detail in error.errors()  # without a place: fine alone, not together
        ]
    if problems:
        raise RaceError.of(problems)
    return options


def _flag(key: str | int) -> str:
    return f"--{str(key).replace('_', '-')}"
