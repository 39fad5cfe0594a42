"""The documentation builds without a warning, and every code block in it works.

Commands are held to the program's own --help, as the README's are; Python and LAMMPS blocks
run in a folder with a small untrained model under the name that the pages use.
"""

import re
import shlex
import subprocess
import sys

import ase.build
import pytest
import torch
import yaml

from race.cli import main
from race.config import Config
from race.deploy.launch import plugin_path

from .lammps.harness import Lammps, thermo, write_data
from .test_project import ROOT, folder  # noqa: F401

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_generated" not in path.parts)
BLOCKS = [
    pytest.param(language, text, id=f"{page.relative_to(ROOT / 'docs')}-{k}-{language}")
    for page in PAGES
    for k, (language, text) in enumerate(
        re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    )
]
CHECKED = {"bash", "python", "lammps", "yaml"}


def blocks(language: str) -> list:
    return [block for block in BLOCKS if block.values[0] == language]


def test_pages_build_and_their_links_lead_somewhere(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", tmp_path],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stderr
    options = (tmp_path / "reference" / "options.html").read_text()
    assert "r_max" in options and "learning_rate" in options


def test_every_kind_of_block_is_checked():
    assert {block.values[0] for block in BLOCKS} <= CHECKED


@pytest.mark.parametrize(("language", "text"), blocks("yaml"))
def test_configs_are_accepted(language, text):
    Config.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize(("language", "text"), blocks("bash"))
def test_commands_are_as_the_program_says(language, text, capsys):
    for line in text.splitlines():
        words = shlex.split(re.sub(r"\$\(|\)", " ", line), comments=True)
        if "race" not in words or words[0] in ("srun", "pip"):
            continue
        words = words[words.index("race") :]
        with pytest.raises(SystemExit, match="0"):
            main([words[1], "--help"])
        text = capsys.readouterr().out
        own = words if words[1] != "lmp" else words[: words.index("-in")]
        for option in (word for word in own if word.startswith("-")):
            assert re.search(rf"(?<!\S){option}\b", text), f"race {words[1]} has no {option}"


@pytest.mark.parametrize(("language", "text"), blocks("python"))
def test_python_runs(language, text, folder, monkeypatch):  # noqa: F811
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(text, names)
    if "forces_cov" in names:
        assert (torch.linalg.eigvalsh(torch.from_numpy(names["forces_cov"])) > 0).all()


def test_the_first_page_runs_in_lammps_word_for_word(folder, monkeypatch):  # noqa: F811
    (text,) = (b.values[1] for b in blocks("lammps") if b.id.startswith("index.md"))
    atoms = ase.build.bulk("BN", "zincblende", a=3.6, cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    write_data(folder / "bn.data", atoms, ["B", "N"])
    monkeypatch.setenv("LAMMPS_PLUGIN_PATH", str(plugin_path().parent))
    finished = Lammps(plugin_path(), folder).run(text, ranks=2)
    assert finished.status == 0, finished.output
    rows = thermo(finished.output)
    assert rows[-1]["Step"] == 100 and rows[0]["c_U[1]"] > 0
