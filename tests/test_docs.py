"""The documentation builds without a warning, and every code block in it works.

A tutorial runs block for block, in a quick form that its page states. Of the other pages,
Python and LAMMPS blocks run in a folder with a small untrained model under the name that the
pages use, configs are validated, and commands are held to the program's own --help.
"""

import json
import re
import shlex
import subprocess
import sys

import ase.build
import pytest
import race._race
import torch

from race.active.config import OracleConfig
from race.cli import main
from race.config import read_config
from race.deploy.artifact import read_metadata
from race.deploy.launch import plugin_path
from race.options import read_raw, validated

from .lammps.harness import Lammps, thermo, write_data
from .test_project import ROOT, folder  # noqa: F401

DOCS = ROOT / "docs"
sys.path[:0] = [str(DOCS), str(ROOT / "benchmarks")]
import generate  # noqa: E402
from execute import blocks, execute  # noqa: E402
from provenance import stamp  # noqa: E402

PAGES = sorted(path for path in DOCS.rglob("*.md") if "_generated" not in path.parts)
FIRST = DOCS / "tutorials/first-potential.md"
# In its folder, in this order
CONTINUED = [
    *(f"tutorials/{name}.md" for name in ("error-bars", "trust", "npt", "averages", "fine-tuning")),
    "howto/posterior.md",
    "howto/cluster.md",
]
RUN = [FIRST, *(DOCS / name for name in CONTINUED)]
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(DOCS)}-{k}-{block.language}")
    for page in PAGES
    for k, block in enumerate(blocks(page))
    if page not in RUN
]
CHECKED = {"bash", "python", "lammps", "yaml", "text"}


def of_language(language: str) -> list:
    return [block for block in BLOCKS if block.values[0].language == language]


def test_pages_build_and_their_links_lead_somewhere(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", DOCS, tmp_path],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stderr
    options = (tmp_path / "reference" / "options.html").read_text()
    assert "r_max" in options and "learning_rate" in options
    quantities = (tmp_path / "reference" / "quantities.html").read_text()
    for row in race._race.quantities():
        assert not row["property"] or f">{row['property']}<" in quantities


def test_the_table_of_posteriors_is_drawn_from_a_record_as_it_is_stamped(tmp_path, monkeypatch):
    """The committed record has a note, which no new one gets."""
    measured = json.loads(generate.POSTERIORS.read_text())
    assert measured["about"]["note"] in generate.posteriors()
    monkeypatch.setattr(generate, "POSTERIORS", tmp_path / "b2o3.json")
    generate.POSTERIORS.write_text(json.dumps(measured | {"about": stamp()}))
    assert generate.posteriors().endswith(f"commit {stamp()['versions']['commit']}.*\n")


@pytest.fixture(scope="module")
def copper(tmp_path_factory):
    """The folder of the first tutorial, which its test and the pages after it share."""
    place = tmp_path_factory.mktemp("copper")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        execute(FIRST, quick=True)
    return place


def test_the_first_tutorial_runs(copper):
    for name in ("config.yaml", "run/model.safetensors", "report.html", "cu.race.pt"):
        assert (copper / name).exists()


@pytest.mark.parametrize("name", CONTINUED)
def test_pages_after_it_run(name, copper, monkeypatch):
    monkeypatch.chdir(copper)
    if name.endswith("averages.md") and not (copper / "log.lammps").exists():
        execute(DOCS / "tutorials/npt.md", quick=True)
    execute(DOCS / name, quick=True)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_page_that_runs_leaves_no_block_out(page):
    for block in blocks(page):
        assert block.file or block.language in ("python", "bash", "text"), block.text


def test_every_other_block_is_run_or_says_why_not():
    assert {block.values[0].language for block in BLOCKS} <= CHECKED
    for block in of_language("bash"):
        assert block.values[0].not_run, block.id
    for block in of_language("lammps"):
        assert block.id.startswith("index.md"), block.id


def test_what_a_quick_form_replaces_is_there(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- quick: 20 -> 2 -->\n<!-- quick: b -> -->\n```python\na = 20b\n```\n")
    (block,) = blocks(page)
    assert block.quickly() == "a = 2\n"
    page.write_text("<!-- quick: 30 -> 2 -->\n```python\na = 20\n```\n")
    with pytest.raises(ValueError, match="`30` is not in the block"):
        execute(page, quick=True)


@pytest.mark.parametrize("block", of_language("yaml"))
def test_configs_are_accepted(block, tmp_path):
    (tmp_path / "config.yaml").write_text(block.text)
    raw = read_raw(tmp_path / "config.yaml")
    if set(raw) == {"oracle"}:  # alone, as `race label` takes it
        validated(raw["oracle"], OracleConfig, "oracle")
    else:
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("block", of_language("bash"))
def test_commands_are_as_the_program_says(block, capsys):
    for line in block.text.replace("\\\n", " ").splitlines():
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


@pytest.mark.parametrize("block", of_language("python"))
def test_python_runs(block, folder, monkeypatch):  # noqa: F811
    if block.not_run:
        pytest.skip(block.not_run)
    if "torch_sim" in block.text:
        pytest.importorskip("torch_sim", reason="needs Python 3.11")
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(block.text, names)
    if "forces_cov" in names:
        assert (torch.linalg.eigvalsh(torch.from_numpy(names["forces_cov"])) > 0).all()


def test_the_first_page_runs_in_lammps_word_for_word(folder, monkeypatch):  # noqa: F811
    (block,) = (b.values[0] for b in of_language("lammps") if b.id.startswith("index.md"))
    atoms = ase.build.bulk("BN", "zincblende", a=3.6, cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    write_data(folder / "bn.data", atoms, ["B", "N"])
    monkeypatch.setenv("LAMMPS_PLUGIN_PATH", str(plugin_path().parent))
    finished = Lammps(plugin_path(), folder).run(block.text, ranks=2)
    assert finished.status == 0, finished.output
    rows = thermo(finished.output)
    assert rows[-1]["Step"] == 100 and rows[0]["c_U[1]"] > 0


def test_the_page_of_the_artifact_has_its_fields(folder, copper):  # noqa: F811
    text = (DOCS / "reference/artifact.md").read_text()
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    described = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    metadata, _ = read_metadata(copper / "cu.race.pt")
    assert described - {"intervals"} == set(metadata) - {"intervals"}
    assert f"race-artifact/{metadata['format']} " in text
