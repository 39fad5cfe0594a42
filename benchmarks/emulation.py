"""The CUDA kernels on the CPU, as their sources are now: race_on_cpu.so of tests/cpp."""

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

from race.errors import RaceError

ROOT = Path(__file__).parents[1]
LIBRARY = Path(os.environ.get("RACE_ON_CPU", ROOT / "build" / "cuda-on-cpu" / "race_on_cpu.so"))


def update(library: Path = LIBRARY) -> None:
    """Builds the library anew if its sources are newer: one process does, others wait."""
    command = [sys.executable, "-m", "cmake", "--build", library.parent, "--target", "race_on_cpu"]
    with (library.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        build = subprocess.run(command, text=True, **pipes)
    if build.returncode:
        raise RaceError(
            "cannot be brought up to date",
            where=library,
            expected="a build of its sources as they are now",
            got=f"status {build.returncode} of cmake --build ({summary(build.stdout)})",
            remedy="run `make cuda-check`",
        )


def summary(output: str) -> str:
    """The first line that tells of an error, or else the last one."""
    lines = output.strip().splitlines() or ["no output"]
    told = (line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE))
    return next(told, lines[-1]).strip()
