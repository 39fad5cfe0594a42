"""Writing that a kill, a full disk or a second process cannot spoil: files appear whole, an
output is tried before the work, and a folder has one writer.
"""

import errno
import fcntl
import json
import math
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from race.errors import RaceError

LOCK = ".lock"
# In the folder of a fit under way: what is being fitted, so that --resume continues that and
# nothing else
FIT = "fit.json"
XYZ = (".extxyz", ".xyz")  # suffixes of extended xyz
# Errors of the file system itself, after which nothing else can be expected to be written
REMEDIES = {
    errno.ENOSPC: "free some space, and give the command again",
    errno.EDQUOT: "free some of your quota, and give the command again",
    errno.EROFS: "choose another output",
    errno.EACCES: "choose another output",
    errno.EPERM: "choose another output",
    errno.ENOTDIR: "choose another output: a file stands where a folder should",
    errno.EEXIST: "choose another output: a file stands where a folder should",
}


# ---- files ---------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, an error of the file system is a RaceError that names `path`."""
    try:
        yield
    except OSError as error:
        raise RaceError(
            f"cannot be written ({error.strerror or error})",
            where=path,
            remedy=REMEDIES.get(error.errno or 0),
        ) from None


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` in one step: a reader, or a crash, sees the old file or the new one.

    Raises:
        RaceError: the file cannot be written; the old one, if any, is as it was.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when all of it is written. A link stays one, and a
    device or a pipe, which a file must not replace, is written to.

    Raises:
        RaceError: the file cannot be written; the old one, if any, is as it was.
    """
    if is_device(path):
        with writing(path), open(path, "wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def is_device(path: Path) -> bool:
    """Whether a name is that of a device, a pipe, or a stream such as /dev/stdout."""
    streams = ("/dev/", "/proc/")
    return (
        path.exists()
        and not path.is_dir()
        and (not path.is_file() or os.path.abspath(path).startswith(streams))
    )


def write_json(path: Path, content: Any) -> Path:
    """Replaces `path` in one step."""
    write_atomic(path, (as_json(content) + "\n").encode())
    return path


def as_json(content: Any) -> str:
    """Numbers that are not finite become null; numpy's are Python's."""
    return json.dumps(plain(content), indent=1, allow_nan=False)


def plain(content: Any) -> Any:
    """Lists, dictionaries and numbers as JSON knows them."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if hasattr(content, "tolist"):  # numpy's, without importing it
        return plain(content.tolist())
    return None if isinstance(content, float) and not math.isfinite(content) else content


# ---- outputs, before the work --------------------------------------------------------------------


def make_folder(path: Path) -> Path:
    """Makes a folder of results, and tries that it can be written.

    Raises:
        RaceError: it cannot be made, or nothing can be written in it.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        _try(path)
    return path


def check_output(path: Path, inputs: Sequence[Path] = (), suffixes: Sequence[str] = ()) -> Path:
    """Tries that the file `path` can be written when the work is done; it is left as it is.

    Args:
        path: the output.
        inputs: files that it would destroy.
        suffixes: those of its format, by which it is read again; none at all is right, too.

    Raises:
        RaceError: its folder is not there or cannot be written, or it is a folder itself; it is
            one of the inputs, or called as if it were of another format.
    """
    if path.is_dir():
        raise RaceError("is a folder", where=path, expected="the name of a file")
    if any(known.exists() and path.exists() and path.samefile(known) for known in inputs):
        raise RaceError(
            "the output is one of the inputs", where=path, expected="another file: it would be lost"
        )
    if path.name == "-":
        raise RaceError(
            "is no name of a file", where=path, remedy="for standard output write /dev/stdout"
        )
    if is_device(path):
        return path
    if suffixes and path.suffix not in ("", *suffixes):
        raise RaceError(
            f"{path.suffix} is the suffix of another format",
            where=path,
            expected=" or ".join(f"NAME{suffix}" for suffix in suffixes),
        )
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise RaceError("no such folder", where=folder, remedy="make it, or choose another")
    with writing(path):
        _try(folder)
    return path


def _try(folder: Path) -> None:
    """A block of a file system is what a full disk does not have."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".race-try-") as file:
        file.write(b"\0" * 4096)
        file.flush()


# ---- one writer ----------------------------------------------------------------------------------


class Lock:
    """Context in which this process alone writes the folder `path`.

    The kernel holds the lock (flock), across the machines of a network file system too, and
    lets go when its process ends, however it ends. Where a file system knows no flock, a
    lock is stale if its process ran on this machine and has ended.

    Raises:
        RaceError: another process writes the folder; with its id, machine and start.
    """

    def __init__(self, path: Path):
        self.path, self.file = path / LOCK, -1

    def __enter__(self) -> "Lock":
        with writing(self.path):
            while True:
                self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._refuse(self._owner())
                except OSError:  # no flock here
                    owner = self._owner()
                    if owner and not ended(owner):
                        self._refuse(owner)
                if self._is_current():
                    break
                os.close(self.file)  # its owner removed it while this process waited
            os.ftruncate(self.file, 0)
            os.write(self.file, json.dumps(this_process()).encode())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.file)

    def _is_current(self) -> bool:
        try:
            return os.fstat(self.file).st_ino == os.stat(self.path).st_ino
        except FileNotFoundError:
            return False

    def _owner(self) -> dict[str, Any]:
        try:
            return dict(json.loads(os.pread(self.file, 4096, 0)))
        except (ValueError, TypeError):  # none yet, or being written
            return {}

    def _refuse(self, owner: dict[str, Any]) -> None:
        os.close(self.file)
        pid, host = owner.get("pid", "unknown"), owner.get("host", "unknown")
        remedy = "wait for it, end it, or choose another folder"
        if host != socket.gethostname():
            remedy += f"; if it has ended, remove {self.path}"
        raise RaceError(
            "another process is writing this folder",
            where=self.path.parent,
            got=f"process {pid} on {host}, since {owner.get('since', 'unknown')}",
            remedy=remedy,
        )


def this_process() -> dict[str, Any]:
    """The owner that a lock names."""
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "since": datetime.now().isoformat(sep=" ", timespec="seconds"),
        "started": started(pid),
    }


def ended(owner: dict[str, Any]) -> bool:
    """Whether the process that a lock names is known to have ended: one of this machine."""
    if owner.get("host") != socket.gethostname():
        return False
    return started(int(owner.get("pid", -1))) != owner.get("started")


def started(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None: there is no such process.
    Ids are used again, beginnings are not.
    """
    try:
        # The name, which may hold anything, is in parentheses
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None
