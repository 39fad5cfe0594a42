"""What the project says of itself is true: every command and example of the README works,
every link leads somewhere.

Cheap commands run as written, in a folder that holds a small untrained model under the
README's names; for expensive ones the sub-command, its options and its files are checked.
"""

import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import ase.build
import pytest
import race._race
import torch
import yaml
from packaging.requirements import Requirement

import race
from race.cli import main
from race.config import ModelConfig, read_config
from race.deploy.export import export_model
from race.deploy.launch import plugin_path
from race.model.race import RACE

from .lammps.harness import Lammps, thermo, write_data

ROOT = Path(__file__).parents[1]
MADE_BEFORE = ("demo-output/", "evaluation/")  # by the demo, by a command above


def blocks(language: str, page: str = "README.md") -> list[str]:
    """The code blocks of a page in that language."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)
    return [text for named, text in found if named == language]


COMMANDS = [line for text in blocks("bash") for line in text.splitlines() if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """bn.race.pt as the README names it: the demo's model, untrained."""
    folder = tmp_path_factory.mktemp("readme")
    model = read_config(ROOT / "examples/demo/config.yaml").model
    filled = {
        "elements": ["B", "N"],
        "avg_num_neighbors": 12.0,
        "atomic_energies": [-3.0, -4.0],
        "scale": [0.5, 0.5],
        "sigma0": 0.5,
    }
    torch.manual_seed(0)
    export_model(
        RACE.untrained(ModelConfig(**{**model.model_dump(), **filled}), torch.float32),
        folder / "bn.race.pt",
    )
    return folder


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make_target_exists(line):
    command = shlex.split(line, comments=True)
    subprocess.run(
        [*command, "--dry-run", "--always-make"], cwd=ROOT, check=True, capture_output=True
    )


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("race ")])
def test_race_command_is_as_the_program_says(line, capsys):
    """The sub-command exists, knows every option given, and the files that it reads are
    there or are made by a line before it.
    """
    words = shlex.split(line, comments=True)[1:]
    with pytest.raises(SystemExit, match="0"):
        main([words[0], "--help"])
    text = capsys.readouterr().out
    if words[0] == "lmp":  # the rest is LAMMPS's
        words = words[: words.index("-in")]
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(?<!\S){option}\b", text), (
            f"{option} is not an option of race {words[0]}"
        )
    for word in words[1:]:
        path = word.partition("=")[2] or word
        if "/" in path and not path.startswith(MADE_BEFORE):
            assert (ROOT / path).exists(), f"{path} does not exist"


def test_race_info_runs(folder):
    assert "race info bn.race.pt" in COMMANDS
    finished = subprocess.run(
        [sys.executable, "-m", "race.cli", "info", "bn.race.pt"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0 and "B N" in finished.stdout, finished.stderr


def test_python_examples_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for text in blocks("python"):
        names: dict = {}
        exec(text, names)
        n = len(names["atoms"])
        assert (
            names["forces"].shape == (n, 3)
            and names["forces_cov"].shape == (n, 3, 3)
            and names["energy_std"] > 0
        )
        # The total holds the epistemic part: the difference is a covariance too.
        assert (
            torch.linalg.eigvalsh(torch.from_numpy(names["forces_cov"] - names["epistemic"])) > 0
        ).all()


def test_lammps_input_runs_on_two_ranks(folder, monkeypatch):
    (text,) = blocks("lammps")
    atoms = ase.build.bulk("BN", "zincblende", a=3.6, cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    write_data(folder / "bn.data", atoms, ["B", "N"])
    monkeypatch.setenv("LAMMPS_PLUGIN_PATH", str(plugin_path().parent))
    finished = Lammps(plugin_path(), folder).run(text, ranks=2)
    assert finished.status == 0, finished.output
    rows = thermo(finished.output)
    assert rows[0]["Step"] == 0 and rows[-1]["Step"] == 100 and rows[0]["c_U[1]"] > 0
    frames = (folder / "bn.lammpstrj").read_text().split("ITEM: ATOMS ")[1:]
    assert len(frames) == 3 and "c_u[7]" in frames[-1].splitlines()[0]


def test_every_command_is_covered():
    known = (
        "make ",
        "race ",
        "torchrun ",
        "source .venv/bin/activate",
    )
    assert [line for line in COMMANDS if not line.startswith(known)] == []


def tracked(*patterns: str) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.split("\n") if path and (ROOT / path).is_file()]


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub and the documentation make them."""
    found: set[str] = set()
    text = re.sub(r"^( *)(`{3,}|:{3,})(.*?)\n(.*?)^\1\2$", "", page.read_text(), flags=re.M | re.S)
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        further = [slug, *(f"{slug}-{k}" for k in range(1, 100))]
        found.add(next(name for name in further if name not in found))
    return found


def dead_links(page: Path) -> list[str]:
    """Links and pictures of a page, to files of the repository and headings in them, that lead
    nowhere.
    """
    dead = []
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        if not other.exists() or anchor and anchor not in anchors(other):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", tracked("*.md"))
def test_links_lead_somewhere(page):
    assert dead_links(ROOT / page) == []


def test_dead_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# `race/kk` in *one* page\n## Twice\n## Twice\n[a](#racekk-in-one-page) [b](#twice-1)\n"
        "[c](page.md#twice) [d](https://no.where/x) `[e](code)`\n```\n# Code\n[f](code)\n```\n"
        "[g](#code) [h](#twice-2) ![i](no.png) [j](other.md#twice)\n"
    )
    assert dead_links(page) == ["#code", "#twice-2", "no.png", "other.md#twice"]


@pytest.mark.parametrize("page", tracked("*.md"))
def test_files_that_a_page_names_exist(page):
    """Paths of the repository, in prose and in code; NAME stands for any, output is of runs."""
    folders = {path.partition("/")[0] for path in tracked() if "/" in path}
    text = (ROOT / page).read_text()
    named = re.findall(rf"(?<![\w./-])(?:{'|'.join(folders)})/[\w./-]*\w", text)
    made = re.compile("NAME|/output|/results/|/_generated|^build/")
    missing = [path for path in named if not made.search(path) and not (ROOT / path).exists()]
    assert missing == []


# Pages that people write: scripts draw parts of those of benchmarks and results. CHANGELOG.md
# has one line a change.
PAGES = [
    path for path in tracked("*.md") if not re.match(r"benchmarks/|.*/results/|CHANGELOG", path)
]


@pytest.mark.parametrize("page", PAGES)
def test_prose_wraps_at_90_columns(page):
    """Except code, formulas, tables, headings and pictures, and what has no space to break at."""
    text = (ROOT / page).read_text()
    text = re.sub(r"^( *)(`{3,}|:{3,}|\${2})(.*?)\n(.*?)^\1\2$", "", text, flags=re.M | re.S)
    prose = [line for line in text.splitlines() if not re.match(r"\s*(\||#|!\[|<|\[.+\]:)", line)]
    assert [line for line in prose if len(line) > 90 and " " in line.strip()[:80]] == []


def test_versions_agree():
    assert race.__version__ == metadata.version("race-potential")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == race.__version__
    assert (
        re.search(
            r"^project\(race VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text(), flags=re.M
        )[1]
        == race.__version__
    )


def test_pins_satisfy_the_project():
    """Each dependency that pyproject.toml names has a pin for the Python in use, and the pin
    is what it allows.
    """
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate():
                pins[pin.name.lower()] = next(iter(pin.specifier)).version
    for text in metadata.requires("race-potential"):
        needed = Requirement(text)
        if needed.marker and not any(
            needed.marker.evaluate({"extra": extra}) for extra in ("", "test", "docs", "lammps")
        ):
            continue
        assert needed.name.lower() in pins, f"{needed.name} is not in constraints.txt"
        assert pins[needed.name.lower()] in needed.specifier


def test_one_file_knows_torchscript():
    """A payload other than TorchScript replaces cpp/src/segments.cpp and nothing else."""
    sources = [
        path
        for folder in ("cpp", "lammps_plugin")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".inl")
    ]
    include = re.compile(r"^#include <torch/(script\.h|jit\.h|csrc/jit/)", flags=re.M)
    knows = [str(path.relative_to(ROOT)) for path in sources if include.search(path.read_text())]
    assert len(sources) > 100 and knows == ["cpp/src/segments.cpp"]
