"""The data files of a run, known by their content: found again wherever run and data were
copied, and refused where they have changed.
"""

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from race.config import DataConfig, RunConfig
from race.errors import RaceError

ABOUT = "about.json"  # of a folder of shards (race.train.shards)


def sha256(path: Path) -> str:
    """The SHA-256 of the content, in hexadecimal digits.

    Raises:
        RaceError: it cannot be read.
    """
    try:
        status = path.stat()
        return _sha256(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise RaceError(f"cannot be read ({error.strerror})", where=path) from None


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, time: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def found_again(
    config: RunConfig, files: Mapping[str, str], run: Path, places: Sequence[Path] = ()
) -> RunConfig:
    """The config of a run with its data where it is now.

    Files are sought under their names and the ends of their paths: where they were, in
    `places`, in the folders around the run, in the working directory and in RACE_DATA.

    Args:
        config: of the run.
        files: sha256 by path, as run/summary.json has it.
        run: the folder of the run.
        places: further folders, or the files themselves.

    Raises:
        RaceError: a file is nowhere, or only with another content.
    """
    data = config.data
    around = [*places, run.resolve(), *run.resolve().parents[:2], Path.cwd()]
    if "RACE_DATA" in os.environ:
        around.append(Path(os.environ["RACE_DATA"]))
    if data.shards is not None:  # whatever became of the files that they were made of
        digest = files.get(str(data.shards / ABOUT))
        about = _found(data.shards / ABOUT, digest, around, run)
        return config.model_copy(update={"data": data.model_copy(update={"shards": about.parent})})
    parts = {
        name: [_found(path, files.get(str(path)), around, run) for path in getattr(data, name)]
        for name in ("train", "validation")
    }
    return config.model_copy(update={"data": data.model_copy(update=parts)})


def _found(path: Path, digest: str | None, around: Sequence[Path], run: Path) -> Path:
    if digest is None:  # of a run that does not say
        return path
    there = [place for place in _places(path, around) if place.is_file()]
    for place in there:
        if sha256(place) == digest:
            return place
    expected = f"sha256 {digest[:12]}..., as {run} was trained on"
    if there:
        raise RaceError(
            "the data has changed since the training",
            where=there[0],
            expected=expected,
            got=f"sha256 {sha256(there[0])[:12]}...",
            remedy="restore the file, or start a new run from this one with train.warm_start",
        )
    raise RaceError(
        "no such file, nor one of its content nearby",
        where=path,
        expected=expected,
        remedy="copy it into the folder of the run, or beside that",
    )


def _places(path: Path, around: Sequence[Path]) -> Iterator[Path]:
    """Where a file may be: its path, and in every folder the ends of its path."""
    yield path
    for place in around:
        if place.is_file():
            yield place
        for k in range(1, min(4, len(path.parts))):
            yield place.joinpath(*path.parts[-k:])


def same_data(given: DataConfig, old: RunConfig, files: Mapping[str, str], run: Path) -> DataConfig:
    """The data of a continued run where the user says that it is now.

    Raises:
        RaceError: other files than the run was trained on, by their content.
    """
    data = old.data
    if data.shards is not None:
        return found_again(old, files, run, [(given.shards or data.shards) / ABOUT]).data
    for name in ("train", "validation"):
        new, kept = getattr(given, name), getattr(data, name)
        if name not in given.model_fields_set:
            new = kept
        if len(new) != len(kept):
            raise RaceError(
                "differs from the run that --resume continues",
                where=f"data.{name}",
                expected=f"{len(kept)} files: {' '.join(map(str, kept))}",
                got=f"{len(new)} files",
                remedy="restore it, or start a new run from this one with train.warm_start",
            )
        for path, before in zip(new, kept, strict=True):
            if (digest := files.get(str(before))) and path.is_file() and sha256(path) != digest:
                raise RaceError(
                    "the data has changed since the training",
                    where=path,
                    expected=f"sha256 {digest[:12]}..., as {run} was trained on",
                    got=f"sha256 {sha256(path)[:12]}...",
                    remedy="restore the file, or start a new run from this one with "
                    "train.warm_start",
                )
    return found_again(old, files, run, [*given.train, *given.validation]).data
