"""pair_style race/kk is compiled by nvcc if Kokkos is one for CUDA: options of the host's
compiler reach nvcc behind -Xcompiler only. CMake configures the plugin here with stand-ins for
LAMMPS and Kokkos; nvcc reads each command line, but compiles nothing.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = """
cmake_minimum_required(VERSION 3.26)
set(CMAKE_CUDA_ARCHITECTURES 90)
project(plugin LANGUAGES CXX CUDA)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
function(race_ask_python variable code)
  set(${variable} "" PARENT_SCOPE)
endfunction()
add_library(race_whole INTERFACE)
add_subdirectory("%s" plugin)
"""
KOKKOS = """
add_library(Kokkos::kokkoscore INTERFACE IMPORTED)
set_target_properties(Kokkos::kokkoscore PROPERTIES
  INTERFACE_COMPILE_OPTIONS "-fopenmp;--extended-lambda;-Xcudafe;--display_error_number")
set(Kokkos_ENABLE_OPENMP ON)
set(Kokkos_ENABLE_CUDA ON)
"""
HOST = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-fopenmp"]

pytestmark = pytest.mark.skipif(
    not (shutil.which("nvcc") and shutil.which("cmake")), reason="nvcc or cmake is not installed"
)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The command line of every source of the plugin, by its name."""
    folder = tmp_path_factory.mktemp("plugin")
    files = {
        "CMakeLists.txt": PROJECT % (ROOT / "lammps_plugin"),
        "KokkosConfig.cmake": KOKKOS,
        "lammps/pair.h": "",
        "lammps/KOKKOS/pair_kokkos.h": "",
        "lammps/version.h": '#define LAMMPS_VERSION "4 Jul 2026"\n',
        "lammps/mpi.h": '#define MPICH_VERSION "4.2"\n',
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    options = {
        "RACE_LAMMPS_HEADERS": folder / "lammps",
        "RACE_MPI_INCLUDE": folder / "lammps",
        "RACE_LAMMPS_KOKKOS": "ON",
        "Kokkos_DIR": folder,
        "Python_EXECUTABLE": sys.executable,
    }
    command = ["cmake", "-S", folder, "-B", folder / "build"]
    command += [f"-D{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entries = json.loads((folder / "build" / "compile_commands.json").read_text())
    return {Path(entry["file"]).name: shlex.split(entry["command"]) for entry in entries}


def read_by_nvcc(arguments, source):
    """What nvcc says of a command line for another source; it does not compile."""
    kept = [each for each in arguments[1:] if each != "-forward-unknown-to-host-compiler"]
    for flag in ("-o", "-c", "-MF", "-MT", "--options-file"):  # the last is a list of folders
        while flag in kept:
            del kept[kept.index(flag) : kept.index(flag) + 2]
    kept = [each for each in kept if each != "-MD"]
    command = [arguments[0], "--dryrun", *kept, "-c", source, "-o", "/dev/null"]
    return subprocess.run(command, capture_output=True, text=True)


def test_nvcc_takes_every_option(commands, tmp_path):
    source = tmp_path / "empty.cu"
    source.write_text("")
    of_cuda = {name: args for name, args in commands.items() if "nvcc" in args[0]}
    assert {"pair_race_kokkos.cpp"} <= of_cuda.keys() < commands.keys()
    for name, arguments in of_cuda.items():
        done = read_by_nvcc(arguments, source)
        assert done.returncode == 0, (name, done.stderr)
        assert all(f"-Xcompiler={option}" in arguments for option in HOST), name
        assert "--extended-lambda" in arguments
        wrong = read_by_nvcc([*arguments, "-Wall"], source)
        assert wrong.returncode != 0 and "-Wall" in wrong.stderr


def test_the_host_takes_them_as_they_are(commands):
    arguments = commands["pair_race.cpp"]
    assert "nvcc" not in arguments[0] and all(option in arguments for option in HOST)
