"""Writing: whole files, outputs tried before the work, one writer of a folder."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from race import files
from race.errors import RaceError
from race.files import (
    LOCK,
    XYZ,
    Lock,
    check_output,
    is_device,
    make_folder,
    write_atomic,
    write_json,
)

HOLD = """
import sys, time
from pathlib import Path
from race.files import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_refused_and_told_of_the_first(tmp_path, holder):
    with pytest.raises(RaceError, match="another process is writing this folder") as error:
        Lock(tmp_path).__enter__()
    assert f"process {holder.pid} on {socket.gethostname()}, since 20" in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process(tmp_path, holder, number):
    holder.send_signal(number)
    holder.wait()
    assert (tmp_path / LOCK).exists()  # left behind, and stale
    with Lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_without_flock_the_owner_decides(tmp_path, monkeypatch):
    """A file system that knows no locks: by process id and start, on this machine alone."""

    def unsupported(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    mine = files.this_process()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(0.1)
    live = mine | {"pid": sleeper.pid, "started": files.started(sleeper.pid)}
    refused = [live, live | {"host": "elsewhere"}]
    taken = [live | {"started": 1}, live | {"pid": 2**22 + 1}]  # an id used again; none
    try:
        for owner in refused:
            (tmp_path / LOCK).write_text(json.dumps(owner))
            with pytest.raises(RaceError, match="another process"):
                Lock(tmp_path).__enter__()
        for owner in taken:
            (tmp_path / LOCK).write_text(json.dumps(owner))
            with Lock(tmp_path):
                pass
    finally:
        sleeper.kill()
        sleeper.wait()


def test_outputs_are_tried_before_the_work(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(RaceError, match="cannot be written.*a file stands where"):
            make_folder(path)
    with pytest.raises(RaceError, match="no such folder"):
        check_output(tmp_path / "nowhere" / "x.xyz")
    with pytest.raises(RaceError, match="is a folder"):
        check_output(tmp_path)
    assert make_folder(tmp_path / "a" / "b").is_dir()
    file.write_text("as it was")
    check_output(file)
    assert file.read_text() == "as it was" and not list((tmp_path / "a" / "b").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"file", "a"}


def test_an_output_is_no_input_and_called_as_what_it_is(tmp_path):
    pool, link = tmp_path / "pool.xyz", tmp_path / "link.xyz"
    pool.touch()
    link.symlink_to(pool)
    for output in (pool, link):
        with pytest.raises(RaceError, match="the output is one of the inputs"):
            check_output(output, [tmp_path / "other.xyz", pool])
    for name in ("x.traj", "x.xyz.gz", "x.race.pt"):
        with pytest.raises(RaceError, match="another format; expected NAME.extxyz or NAME.xyz"):
            check_output(tmp_path / name, suffixes=XYZ)
    for name in ("x.xyz", "x.extxyz", "x"):
        check_output(tmp_path / name, [pool], XYZ)
    check_output(Path("/dev/stdout"), [pool], XYZ)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(os, call, full)
    with pytest.raises(RaceError, match=r"x.json: cannot be written \(No space left.*free some"):
        write_atomic(path, b"new")
    assert json.loads(path.read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_json_has_plain_numbers(tmp_path):
    content = {"nan": np.float64("nan"), "row": np.arange(2), "inf": [float("inf"), 1]}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "nan": None,
        "row": [0, 1],
        "inf": [None, 1],
    }


def test_links_stay_links(tmp_path):
    (tmp_path / "scratch").mkdir()
    for name in ("there.xyz", "not yet.xyz"):
        target, link = tmp_path / "scratch" / name, tmp_path / name
        link.symlink_to(target)
        if name == "there.xyz":
            target.write_text("old")
        check_output(link)
        write_atomic(link, b"new")
        assert link.is_symlink() and target.read_text() == "new"
    (tmp_path / "lost.xyz").symlink_to(tmp_path / "nowhere" / "x.xyz")
    with pytest.raises(RaceError, match="nowhere: no such folder"):
        check_output(tmp_path / "lost.xyz")


def test_devices_and_pipes_are_written_to(tmp_path):
    """A file in the place of /dev/null would be the end of a machine: a pipe stands for it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_output(pipe)
    write_atomic(pipe, b"content")
    assert os.read(reader, 100) == b"content" and pipe.is_fifo()
    os.close(reader)
    assert is_device(Path("/dev/null")) and is_device(Path("/dev/stdout"))
    assert not is_device(tmp_path) and not is_device(tmp_path / "new")
    with pytest.raises(RaceError, match="for standard output write /dev/stdout"):
        check_output(Path("-"))
