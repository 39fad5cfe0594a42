"""`race data`: the frames of a config on disk with all that training wants to know of them, made
once; and what training gets back.

    about.json    what the shards were made of and with, checks, statistics; written last
    the rest      race.data.shards
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from race.config import Config
from race.data import Dataset, summary
from race.data.io import Tolerance
from race.data.levels import offset_of
from race.data.plausibility import Report, check
from race.data.shards import Shards, ShardWriter
from race.data.statistics import elements_of
from race.errors import RaceError
from race.files import Lock, make_folder, write_json, writing
from race.train.files import ABOUT, sha256
from race.train.reading import (
    DTYPES,
    Read,
    chosen_offsets,
    labelled_frames,
    refuse_unlearnable,
    split,
    trained_labels,
)

# Options of the data that decide nothing about its frames, or are known by content
FREE = {"train", "validation", "shards", "accept", "atomic_energies"}


def build(config: Config) -> Report:
    """Makes the folder data.shards; frame by frame, so that memory holds their numbers, and their
    forces for the checks, but no structure and no edges.

    Raises:
        RaceError: the config names no folder; it cannot be written, or is written by another
            process; what `race train` refuses of the data.
    """
    folder = config.data.shards
    if folder is None:
        raise RaceError("is missing", where="data.shards", expected="the folder to make")
    make_folder(folder)
    with Lock(folder):
        return _build(config, folder)


def _build(config: Config, folder: Path) -> Report:
    data, r_max = config.data, config.model.r_max
    dtype, labels = DTYPES[config.train.dtype], trained_labels(config)
    with writing(folder):
        (folder / ABOUT).unlink(missing_ok=True)
    files = [sha256(path) for path in (*data.train, *data.validation)]
    tolerance = Tolerance(data.skip_bad_frames)
    writer = ShardWriter(folder, r_max, dtype)
    for atoms in labelled_frames(data.train, config, labels, tolerance):
        writer.append(atoms)
    n_train = len(writer.index)
    for atoms in labelled_frames(data.validation, config, labels, tolerance):
        writer.append(atoms)
    writer.close()
    shards = Shards(folder, r_max, dtype)
    frames, validation = split(shards.frames[:n_train], shards.frames[n_train:], config)
    refuse_unlearnable(frames, validation, config, labels)
    if offsets := chosen_offsets(frames, validation, config):
        mean = config.model.pooling == "mean"
        shards.index["energy"] -= [
            offset_of(atoms, offsets, data.source_key, mean=mean) for atoms in shards.frames
        ]
        shards.atoms.cache_clear()
        with writing(folder):
            np.save(folder / "index.npy", shards.index)
    elements = config.model.elements or elements_of(shards.frames)
    report = check(Dataset(frames, elements, r_max, dtype), validation, labels, data.accept)
    about = {
        "made_with": made_with(config),
        "labels": labels,
        "n_train": n_train,
        "files": files,
        "offsets": offsets,
        "left_out": tolerance.left_out,
        "rows": report.rows,
        "findings": report.findings,
        "summary": summary(frames, r_max),
    }
    write_json(folder / ABOUT, about)
    return report


def made_with(config: Config) -> dict[str, Any]:
    """The options that decide what shards hold."""
    return {
        **{f"data.{k}": v for k, v in config.data.model_dump(mode="json", exclude=FREE).items()},
        "model.r_max": config.model.r_max,
        "model.pooling": config.model.pooling,
        "train.dtype": config.train.dtype,
    }


def read_shards(config: Config, labels: Sequence[str]) -> Read:
    """Reads the data set on disk in data.shards.

    Raises:
        RaceError: there are none, they were made with other options or of other files, or the
            checks of their data did not look at a label that is trained on.
    """
    folder = config.data.shards
    assert folder is not None
    remedy = "make them with `race data`, from the config of the training"
    try:
        about = json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError):
        raise RaceError("no shards, or unfinished ones", where=folder, remedy=remedy) from None
    for key, value in made_with(config).items():
        if about["made_with"].get(key) != value:
            raise RaceError(
                f"differs from what the shards {folder} were made with",
                where=key,
                expected=about["made_with"].get(key),
                got=value,
                remedy=remedy,
            )
    if lacking := [label for label in labels if label not in about["labels"]]:
        raise RaceError(
            f"the shards {folder} were made to train on {', '.join(about['labels'])}",
            where=f"train.{lacking[0]}_weight",
            expected="0",
            got=getattr(config.train, f"{lacking[0]}_weight"),
            remedy=remedy,
        )
    paths = [*config.data.train, *config.data.validation]
    files = {}
    if len(paths) != len(about["files"]):
        raise RaceError(
            f"the shards {folder} were made of other files",
            where="data.train and data.validation",
            expected=f"{len(about['files'])} files",
            got=len(paths),
            remedy=remedy,
        )
    for path, digest in zip(paths, about["files"], strict=True):
        if path.is_file() and sha256(path) != digest:
            raise RaceError(
                f"has another content than the shards {folder} were made of",
                where=path,
                expected=f"sha256 {digest[:12]}...",
                got=f"sha256 {sha256(path)[:12]}...",
                remedy="make them again with `race data`",
            )
        files[str(path)] = digest
    files[str(folder / ABOUT)] = sha256(folder / ABOUT)
    shards = Shards(folder, config.model.r_max, DTYPES[config.train.dtype])
    n_train = about["n_train"]
    frames, validation = split(shards.frames[:n_train], shards.frames[n_train:], config)
    report = Report([tuple(row) for row in about["rows"]], [tuple(f) for f in about["findings"]])
    return Read(
        frames, validation, about["offsets"], about["left_out"], files, report, about["summary"]
    )
