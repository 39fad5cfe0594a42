"""Many labels, one after the other or several at once. Each is kept as it comes; those that fail
are left out, and listed.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
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

CONNECT = 30  # seconds, to a scheduler


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
    failed_list(path).unlink(missing_ok=True)  # of an earlier call
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
    with _executor(config) as executor:
        futures = {}
        for numbers in alike.values():
            bare = frames[numbers[0]].copy()
            bare.info, bare.calc = {}, None
            where = f"{path}, frame {numbers[0]}"
            futures[executor.submit(label_apart, config, bare, where)] = numbers
        try:
            for future in as_completed(futures):
                numbers = futures[future]
                try:
                    result = future.result()
                except Exception as error:  # a worker that dies again and again, a lost cluster
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    result = {"failure": f"{path}, frame {numbers[0]}: {reason}"}
                if "error" in result:
                    raise RaceError(result["error"])
                if "label" in result:
                    oracle.keep(frames[numbers[0]], result["label"])
                for k in numbers:
                    yield k, result.get("label") or LabelFailure(result["failure"])
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def _executor(config: OracleConfig) -> Iterator[Executor]:
    """Threads that wait for the processes of labels, or Dask's workers.

    Raises:
        RaceError: there is no Dask, or no such cluster.
    """
    if config.executor == "local":
        with ThreadPoolExecutor(config.workers) as executor:
            yield executor
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise RaceError(
            f"no Dask ({error})",
            where="oracle.executor",
            remedy="pip install distributed, or set it to local",
        ) from None
    if config.scheduler is None:
        # Each worker is a process with a nanny, which starts it again if it is killed
        cluster = LocalCluster(
            n_workers=config.workers,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )
        with cluster, Client(cluster) as client:
            yield client.get_executor(pure=False)
        return
    is_file = Path(config.scheduler).is_file()
    where = {"scheduler_file" if is_file else "address": config.scheduler}
    try:
        client = Client(**where, timeout=CONNECT)
    except (OSError, ValueError) as error:
        raise RaceError(
            f"no Dask scheduler ({error})", where="oracle.scheduler", got=config.scheduler
        ) from None
    with client:
        yield client.get_executor(pure=False)
