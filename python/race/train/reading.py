"""The labelled frames that a config names: read, split, without the baseline, and with energies on
one level.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import torch

from race.config import Config, DataConfig
from race.data.baseline import Baseline
from race.data.io import Tolerance, iter_frames
from race.data.label_noise import refuse_unknown_sources, set_noise
from race.data.levels import (
    Offsets,
    fit_offsets,
    given_offsets,
    source_of,
    subtract_offsets,
)
from race.data.notes import log
from race.data.plausibility import Report
from race.data.splits import validation_split
from race.data.weights import CONFIG_TYPE, WEIGHT
from race.errors import RaceError
from race.train.files import sha256

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class Read:
    """offsets: what energies of each source have lost; left_out: bad frames; files: sha256 by
    path. report, summary: of shards, whose data was asked when they were made.
    """

    frames: list[ase.Atoms]
    validation: list[ase.Atoms]
    offsets: Offsets
    left_out: list[str]
    files: dict[str, str]
    report: Report | None = None
    summary: dict[str, Any] | None = None


def trained_labels(config: Config) -> list[str]:
    """Those of "energy", "forces", "stress" that are trained on."""
    names = ("energy", "forces", "stress")
    return [name for name in names if getattr(config.train, f"{name}_weight") > 0]


def read_files(config: Config, labels: Sequence[str], offsets: Offsets | None = None) -> Read:
    """Everything in memory; `offsets` where they are known.

    Raises:
        RaceError: unreadable or unlabelled data.
    """
    data = config.data
    tolerance = Tolerance(data.skip_bad_frames)
    frames = [*labelled_frames(data.train, config, labels, tolerance)]
    others = [*labelled_frames(data.validation, config, labels, tolerance)]
    frames, validation = split(frames, others, config)
    refuse_unlearnable(frames, validation, config, labels)
    if config.is_users:
        for name, key in unfound_keys([*frames, *validation], data):
            log.warning("data.%s is not used: no frame has %s", name, key)
    if offsets is None:
        offsets = chosen_offsets(frames, validation, config)
    mean = config.model.pooling == "mean"
    subtract_offsets([*frames, *validation], offsets, data.source_key, mean=mean)
    return Read(frames, validation, offsets, tolerance.left_out, digests(config))


def labelled_frames(
    paths: Sequence[Path], config: Config, labels: Sequence[str], tolerance: Tolerance
) -> Iterator[ase.Atoms]:
    """The frames of all files, without the baseline's part, with the noise of their source."""
    how, noise, key = config.data.reading(), config.data.label_noise, config.data.source_key
    mean = config.model.pooling == "mean"
    baseline = None if config.data.baseline is None else Baseline(config.data.baseline)
    for path in paths:
        for atoms in iter_frames(path, require=(), wanted=labels, tolerance=tolerance, **how):
            try:
                if baseline is not None:
                    baseline.subtract(atoms)
            except RaceError as error:
                tolerance.leave_out(error)
            else:
                if own := noise.get(source_of(atoms, key)):
                    set_noise(atoms, own, mean=mean)
                yield atoms


def split(
    frames: list[ase.Atoms], others: list[ase.Atoms], config: Config
) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """(training, validation) of the frames of data.train and data.validation."""
    data = config.data
    if data.validation:
        return frames, others
    return validation_split(frames, data.validation_fraction, data.split_seed)


def refuse_unlearnable(
    frames: Sequence[ase.Atoms],
    validation: Sequence[ase.Atoms],
    config: Config,
    labels: Sequence[str],
) -> None:
    """Raises RaceError: a config_type or a source that there is not, or a label that a part has
    not.
    """
    data = config.data
    refuse_unknown_types(data.config_weights, [*frames, *validation])
    if data.label_noise:
        sources = [source_of(atoms, data.source_key) for atoms in (*frames, *validation)]
        refuse_unknown_sources(data.label_noise, sources)
    for label in labels:
        for part, of in ((frames, "training"), (validation, "validation")):
            if not any(label in (a.arrays if label == "forces" else a.info) for a in part):
                raise RaceError(
                    f"no {label} labels in the {of} frames",
                    where=f"train.{label}_weight",
                    expected=f"0, or training and validation frames with {label}",
                    got=getattr(config.train, f"{label}_weight"),
                    remedy=f"set data.{label}_key, or data.split_seed if the other part has them",
                )


def unfound_keys(frames: Sequence[ase.Atoms], data: DataConfig) -> Iterator[tuple[str, str]]:
    """(option, key) of keys that the user wrote and nothing stands under."""
    for label in ("energy", "forces", "stress", "weight"):
        name = f"{label}_key"
        key = getattr(data, name)
        if key == WEIGHT:  # of `race active`, whose frames may have none
            continue
        # What is read keeps its name, but for labels and weights of atoms
        known = (key, WEIGHT if label == "weight" else label)
        places = (place for atoms in frames for place in (atoms.info, atoms.arrays))
        if name in data.model_fields_set and not any(
            found in place for place in places for found in known
        ):
            yield name, key


def refuse_unknown_types(weights: Mapping[str, float], frames: Sequence[ase.Atoms]) -> None:
    """Raises RaceError: data.config_weights names a config_type that no frame has."""
    if not weights:
        return
    known = {str(atoms.info[CONFIG_TYPE]) for atoms in frames if CONFIG_TYPE in atoms.info}
    # Frames of weight 0 have been left out
    unknown = [name for name, weight in weights.items() if weight > 0 and name not in known]
    if unknown:
        raise RaceError(
            f"no frame of config_type {unknown[0]}",
            where="data.config_weights",
            expected=", ".join(sorted(known)) or "frames with a config_type",
            got=", ".join(weights),
        )


def chosen_offsets(
    frames: Sequence[ase.Atoms], validation: Sequence[ase.Atoms], config: Config
) -> Offsets:
    """As data.energy_offsets says."""
    data, mean = config.data, config.model.pooling == "mean"
    if data.energy_offsets == "none":
        return {}
    if data.energy_offsets == "fit":
        return fit_offsets(frames, data.source_key, mean=mean)
    return given_offsets(data.energy_offsets, [*frames, *validation], data.source_key)


def digests(config: Config) -> dict[str, str]:
    """sha256 of every file that there is, by path."""
    data = config.data
    paths = [*data.train, *data.validation]
    if isinstance(data.atomic_energies, Path):
        paths.append(data.atomic_energies)
    return {str(path): sha256(path) for path in paths if path.is_file()}
