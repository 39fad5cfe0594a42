"""Many labels, one after the other or several at once. Each is kept as it comes; those that fail
are left out, and listed.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import ase

from race.active.calculators import Label, LabelFailure, Oracle
from race.active.config import OracleConfig
from race.active.label_worker import label_apart
from race.active.oracle import CachedOracle, labelled
from race.data.fingerprint import fingerprint
from race.errors import RaceError
from race.files import write_json
from race.progress import progress

logger = logging.getLogger(__name__)


def failed_list(path: Path) -> Path:
    """Where the structures of a set are listed whose labels failed."""
    return path.with_name(f"failed-{path.stem}.json")


def label_frames(
    frames: Sequence[ase.Atoms],
    oracle: Oracle,
    config: OracleConfig,
    path: Path,
    known: Callable[[ase.Atoms], Label | None] = lambda atoms: None,
) -> list[ase.Atoms]:
    """The frames with labels: `known` ones, or the oracle's. Those whose label fails are left
    out, and listed in failed-NAME.json beside `path`.

    Raises:
        RaceError: more of them fail than `failures` allows; no label can be had at all.
    """
    labels: dict[int, Label] = {}
    failed = []
    for k, atoms in enumerate(frames):
        if (label := known(atoms)) is not None:
            labels[k] = label
    rest = {k: atoms for k, atoms in enumerate(frames) if k not in labels}
    found = _labels(rest, oracle, config, path)
    for k, result in progress(found, f"labels of {path.name}", len(rest)):
        if isinstance(result, LabelFailure):
            logger.warning(f"{result}; left out")
            digest = fingerprint(frames[k])
            failed.append({"frame": k, "fingerprint": digest, "reason": str(result)})
        else:
            labels[k] = result
    if failed:
        write_json(failed_list(path), sorted(failed, key=lambda entry: entry["frame"]))
    if len(failed) > config.failures * len(frames) or not labels:
        raise RaceError(
            f"{len(failed)} of {len(frames)} labels failed",
            where=path,
            expected=f"at most {config.failures:.0%}, oracle.failures",
            got=failed[0]["reason"] if failed else "no frames",
            remedy="check the oracle and give the command again: labels that it gave are kept",
        )
    return [labelled(frames[k], labels[k]) for k in sorted(labels)]


def _labels(
    frames: dict[int, ase.Atoms], oracle: Oracle, config: OracleConfig, path: Path
) -> Iterator[tuple[int, Label | LabelFailure]]:
    """The label or the failure of every frame by its number, as they come."""
    apart = config.apart and isinstance(oracle, CachedOracle)
    if not apart:
        for k, atoms in frames.items():
            try:
                yield k, oracle.label(atoms, f"{path}, frame {k}")
            except LabelFailure as error:
                yield k, error
        return
    assert isinstance(oracle, CachedOracle)
    alike: dict[str, list[int]] = {}
    for k, atoms in frames.items():
        if (label := oracle.kept(atoms)) is not None:
            yield k, label
        else:
            alike.setdefault(fingerprint(atoms), []).append(k)
    with ThreadPoolExecutor(config.workers) as executor:  # threads wait for processes
        futures = {}
        for numbers in alike.values():
            bare = frames[numbers[0]].copy()
            bare.info, bare.calc = {}, None
            where = f"{path}, frame {numbers[0]}"
            futures[executor.submit(label_apart, config, bare, where)] = numbers
        try:
            for future in as_completed(futures):
                numbers, result = futures[future], future.result()
                if "error" in result:
                    raise RaceError(result["error"])
                if "label" in result:
                    oracle.keep(frames[numbers[0]], result["label"])
                for k in numbers:
                    yield k, result.get("label") or LabelFailure(result["failure"])
        finally:
            for future in futures:
                future.cancel()
